"""Know when a run is to stop between two steps: signals, a time limit. Knows no run."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

STOPPING = b"\nstopping after this step, with a checkpoint; Ctrl-C again leaves at once\n"


class Stop:
    """The first Ctrl-C or SIGTERM is a wish, the next Ctrl-C an interruption.

        with Stop(max_minutes=30) as stop:
            for step in steps:
                if stop.wanted(): save and leave

    Args:
        max_minutes: stop this long after `with` was entered; None for no limit.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self._seconds = math.inf if max_minutes is None else 60 * max_minutes
        self._asked = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self._deadline = time.monotonic() + self._seconds
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def wanted(self) -> bool:
        """Whether to stop now."""
        return self._asked or time.monotonic() > self._deadline

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._asked:
            os.write(2, STOPPING)  # print may be what was interrupted, and can't be entered twice
        self._asked = True
