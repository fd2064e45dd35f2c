"""Whether a run compiles its layers: where it is long enough, and only if that makes it faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TypeVar

import torch

from minimind.training.state import TrainConfig, TrainState

ResultT = TypeVar("ResultT")

SKIPPED, TIMED = 3, 20  # steps before, and in, a measurement
COMPILING = 21.0  # seconds, as measured for 26M on an H100 (commit 94a8f45)
SHARE = 0.1  # of the time left that compiling may take


class CompileTrial:
    """With `compile="auto"`: measure graphed steps, compile if that can pay, and measure again.

    Steps that are measured wait for the device, some fifty in a run. What is decided stands in the
    state's notes.
    """

    def __init__(self, config: TrainConfig, state: TrainState, steps: int) -> None:
        self._state, self._steps = state, steps
        self._done = config.compile != "auto" or state.compiled
        self._eager: float | None = None  # seconds a step, once it is known
        self._seconds: list[float] = []

    def run(self, step: Callable[[], ResultT]) -> ResultT:
        """One step; after the last that is measured, decide."""
        if self._done or self._state.graphs is None:  # the step that captures isn't measured
            return step()
        start = self._clock()
        result = step()
        self._seconds.append(self._clock() - start)
        if len(self._seconds) == SKIPPED + TIMED:
            seconds = median(self._seconds[SKIPPED:])
            self._seconds.clear()
            if self._eager is None:
                self._decide(seconds)
            else:
                self._judge(self._eager, seconds)
        return result

    def _decide(self, seconds: float) -> None:
        left = (self._steps - self._state.step) * seconds
        fact = f"{left:,.0f} s of steps are left, {1000 * seconds:.1f} ms each, and compiling takes"
        self._eager = seconds
        if left * SHARE > COMPILING:
            self._state.notes.append(f"compiling: {fact} about {COMPILING:.0f} s")
            self._state.compile()
        else:
            self._state.notes.append(f"not compiled: {fact} about {COMPILING:.0f} s")
            self._done = True

    def _judge(self, eager: float, compiled: float) -> None:
        self._done = True
        fact = f"{1000 * compiled:.1f} ms a step, before {1000 * eager:.1f} ms"
        if compiled < eager:
            self._state.notes.append(f"compiled: {fact}")
        else:
            self._state.compile(False)
            self._state.notes.append(f"compiled pieces dropped: {fact}")

    def _clock(self) -> float:
        if self._state.device.type == "cuda":
            torch.cuda.synchronize(self._state.device)
        return time.perf_counter()
