"""Stop a run between two steps: on a signal that asks for it, or after a time limit."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

STOPPING = b"\nstopping after this step, with a checkpoint; Ctrl-C again stops at once\n"


@contextmanager
def stop_requests(max_minutes: float | None = None) -> Iterator[Callable[[], bool]]:
    """First Ctrl-C, SIGTERM or SIGHUP: stop after this step. Second Ctrl-C: KeyboardInterrupt, now.

    SIGHUP comes when a terminal is closed; where it is ignored, as under nohup, it stays so.

    with stop_requests(max_minutes=30) as requested:
        for step in steps:
            if requested():  # by a signal, or this long after `with`
                save and leave
    """
    deadline = time.monotonic() + (math.inf if max_minutes is None else 60 * max_minutes)
    signalled = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not signalled:
            with suppress(OSError):  # the terminal may be gone
                os.write(2, STOPPING)  # print may be interrupted, and can't be entered twice
        signalled = True

    main_thread = threading.current_thread() is threading.main_thread()
    numbers = [signal.SIGINT, signal.SIGTERM]
    hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
    if hang_up is not None and signal.getsignal(hang_up) is not signal.SIG_IGN:
        numbers.append(hang_up)
    # Only the main thread may set handlers.
    before = {number: signal.signal(number, handle) for number in numbers if main_thread}
    try:
        yield lambda: signalled or time.monotonic() > deadline
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
