"""Stop a run between two steps: on Ctrl-C, on SIGTERM, or after a time limit."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

STOPPING = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


class Stop:
    """First Ctrl-C or SIGTERM: stop after this step. Second Ctrl-C: stop now (KeyboardInterrupt).

        with Stop(max_minutes=30) as stop:
            for step in steps:
                if stop.requested():
                    save and leave

    Args:
        max_minutes: stop this long after `with` was entered; None for no limit.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self._seconds = math.inf if max_minutes is None else 60 * max_minutes
        self._signalled = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stop:
        self._deadline = time.monotonic() + self._seconds
        if threading.current_thread() is threading.main_thread():  # others get no signals
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        return self._signalled or time.monotonic() > self._deadline

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self._signalled:
            os.write(2, STOPPING)  # print may be what was interrupted, and can't be entered twice
        self._signalled = True
