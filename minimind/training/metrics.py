"""Note what came of each step, once the device is through with it. Knows no rows.

The host reads a step's loss and norm a step late where that keeps the device busy.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TextIO

import torch

from minimind.training.loop import StepResult
from minimind.training.precision import Precision


class Metrics:
    """metrics.jsonl, without lines of steps that will be done again; `path` None is no file."""

    def __init__(self, path: Path | None, step: int) -> None:
        self._file: TextIO | None = None
        if path is None:
            return
        kept = 0
        if path.exists() and step:
            for line in path.read_bytes().splitlines(keepends=True):
                if not line.endswith(b"\n") or _step_of(line) > step:
                    break
                kept += len(line)
        self._file = path.open("a", encoding="utf-8")
        self._file.truncate(kept)  # never rewritten: a crash here loses no line of an earlier step

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, values: Mapping[str, float | None]) -> None:
        """Add a line."""
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()


def _step_of(line: bytes) -> float:
    """A line's step; of one that can't be read, more than any."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def behind(device: torch.device) -> int:
    """How many steps' numbers may be unread: on CUDA one, read while the next step runs."""
    return 1 if device.type == "cuda" else 0


class _Reading:
    """A step's loss and gradient norm on their way to the host."""

    def __init__(self, result: StepResult) -> None:
        self.result = result
        # Queued behind this step and before the next one, which needn't be over to read them.
        numbers = torch.stack([result.loss, result.grad_norm])
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> tuple[float, float]:
        """The loss and the norm, once the step is over."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._numbers.tolist()
        return loss, norm


class Reader:
    """Reads steps' losses and norms once they are over, and writes them down.

    Args:
        precision: fp16 alone may overflow.
        metrics: where each step becomes a line.
        error: makes what is raised at a step whose loss or norm isn't finite.
    """

    def __init__(
        self,
        precision: Precision,
        metrics: Metrics,
        error: Callable[[StepResult, float, float], Exception],
    ) -> None:
        self._precision, self._metrics, self._error = precision, metrics, error
        self._unread: list[_Reading] = []
        self._seconds, self._supervised, self.skipped = 0.0, 0, 0
        self.latest = ""  # for the bar

    @property
    def supervised_per_second(self) -> float:
        """Over the steps read so far."""
        return self._supervised / self._seconds if self._seconds else 0.0

    def start_clock(self) -> None:
        """It stands while the caller validates and saves."""
        self._clock = time.perf_counter()

    def add(self, result: StepResult) -> None:
        """A step that is under way."""
        self._unread.append(_Reading(result))

    def read(self, behind: int) -> None:
        """Note all steps but the newest few."""
        while len(self._unread) > behind:
            reading = self._unread.pop(0)
            loss, norm = reading.wait()
            self._clock, before = time.perf_counter(), self._clock
            self._note(reading.result, loss, norm, self._clock - before)

    def _note(self, result: StepResult, loss: float, norm: float, seconds: float) -> None:
        # In fp16 an infinite gradient is an overflow: the scaler skips that step.
        overflow = self._precision == "fp16" and not math.isfinite(norm)
        if not math.isfinite(loss if overflow else loss + norm):
            raise self._error(result, loss, norm)
        self.skipped += overflow
        self._supervised += result.supervised
        self._seconds += seconds
        self._metrics.write(_line(result, loss, None if overflow else norm, seconds))
        self.latest = (
            f"loss {loss:.3f}, lr {result.learning_rate:.1e}, "
            f"{self.supervised_per_second:,.0f} supervised tokens/s"
        )


def _line(
    result: StepResult, loss: float, norm: float | None, seconds: float
) -> dict[str, float | None]:
    return {
        "step": result.step,
        "loss": loss,
        "learning_rate": result.learning_rate,
        "grad_norm": norm,  # null: fp16 gradients overflowed, the step was skipped
        "tokens": result.tokens,
        "supervised": result.supervised,
        "seconds": round(seconds, 4),
    }
