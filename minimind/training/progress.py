"""Show how far a run is: a bar in a terminal, and in a log a line now and then."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm

from minimind.training.metrics import StepLogger

SECONDS = 30  # between two lines of a log


class Progress:
    """Shows steps whose numbers the logger has read, so that a line's figures are of its step.

    step 120/800: loss 0.408, lr 9.1e-05, 1,234 supervised tokens/s, 04:56 left

    The loss is the mean over the supervised tokens of the steps since the line before.

    Args:
        total: steps of the run.
        log: where figures come from.
        show: whether this process shows anything.
    """

    def __init__(self, total: int, log: StepLogger, show: bool) -> None:
        self._log, self._total, self._first = log, total, log.step
        self._in_log = show and not sys.stderr.isatty()
        self._shown, self._started = log.step, time.monotonic()
        self._line_at = self._started
        self._bar = tqdm(
            total=total,
            initial=log.step,
            unit="step",
            dynamic_ncols=True,
            disable=not show or self._in_log,
        )
        self._show_any = show

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        self._bar.close()

    def update(self) -> None:
        """After a step."""
        if self._log.step > self._bar.n and not self._bar.disable:
            self._bar.set_postfix_str(self._log.describe(), refresh=False)
            self._bar.update(self._log.step - self._bar.n)
        elif time.monotonic() - self._line_at > SECONDS:
            self.show()

    def show(self) -> None:
        """Print a line of a log, if there are new figures."""
        if not self._in_log or self._log.step == self._shown:
            return
        self._line_at, self._shown = time.monotonic(), self._log.step
        seconds = (self._line_at - self._started) / (self._shown - self._first)
        left = tqdm.format_interval(seconds * (self._total - self._shown))
        end = "" if self._shown == self._total else f", {left} left"
        self.say(f"step {self._shown}/{self._total}: {self._log.describe()}{end}")

    def say(self, line: str) -> None:
        if self._show_any:
            self._bar.write(line, sys.stderr)
            sys.stderr.flush()
