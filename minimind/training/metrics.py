"""Write each step's loss, norm and speed to metrics.jsonl.

On CUDA the host reads a step's numbers one step late, so that the device never waits for it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import torch

from minimind.training.loop import StepResult
from minimind.training.precision import Precision

STOPPED = "stopped"  # marks a validation that a stopped run adds to its schedule

NonFinite = tuple[StepResult, float, float]  # with its loss and its gradient's norm


class StepLogger:
    """metrics.jsonl of a run that continues after `step`; later steps' lines are dropped.

    Args:
        path: the file; None writes none.
        step: the last step that the run has done.
        precision: gradients may overflow in fp16 alone.
        lag: how many steps' numbers may be unread while the next step runs.
    """

    def __init__(self, path: Path | None, step: int, precision: Precision, lag: int = 0) -> None:
        self._precision, self._lag = precision, lag
        self._unread: list[tuple[StepResult, torch.Tensor, torch.cuda.Event | None]] = []
        self._clock, self._seconds = time.perf_counter(), 0.0
        self._supervised, self.skipped = 0, 0
        self.step = step  # the newest whose numbers are read
        self._learning_rate, self._since = 0.0, [0.0, 0]  # loss, supervised: of `describe`
        self._file: TextIO | None = None
        if path is not None:
            kept = _bytes_until(step, path) if step and path.exists() else 0
            self._file = path.open("a", encoding="utf-8")
            self._file.truncate(kept)  # not rewritten: a crash here loses no earlier line

    def __enter__(self) -> StepLogger:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def supervised_per_second(self) -> float:
        return self._supervised / self._seconds if self._seconds else 0.0

    def start_clock(self) -> None:
        """Leave out the time until now, as of a validation or a checkpoint."""
        self._clock = time.perf_counter()

    def write(self, values: Mapping[str, float | None]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
            self._file.flush()

    def add(self, result: StepResult, wait: bool) -> NonFinite | None:
        """Queue a step's numbers, and write those that may not lag; with `wait` all.

        Returns:
            The first step that isn't finite; nothing is written from it on.
        """
        numbers = torch.stack([result.loss, result.grad_norm])
        # The copy is queued behind this step and before the next one.
        on_host = numbers.to("cpu", non_blocking=True)
        arrived = torch.cuda.Event() if numbers.is_cuda else None
        if arrived is not None:
            arrived.record()
        self._unread.append((result, on_host, arrived))
        while len(self._unread) > (0 if wait else self._lag):
            result, numbers, arrived = self._unread.pop(0)
            if arrived is not None:
                arrived.synchronize()
            loss, norm = numbers.tolist()
            # In fp16 an infinite gradient is an overflow: the scaler skips that step.
            overflow = self._precision == "fp16" and not math.isfinite(norm)
            if not math.isfinite(loss if overflow else loss + norm):
                return result, loss, norm
            seconds = time.perf_counter() - self._clock
            self._clock += seconds
            self.skipped += overflow
            self._supervised += result.supervised
            self._seconds += seconds
            self.write(
                {
                    "step": result.step,
                    "loss": loss,
                    "learning_rate": result.learning_rate,
                    "grad_norm": None if overflow else norm,
                    "tokens": result.tokens,
                    "supervised": result.supervised,
                    "seconds": round(seconds, 4),
                }
            )
            self.step, self._learning_rate = result.step, result.learning_rate
            self._since[0] += loss * result.supervised
            self._since[1] += result.supervised
        return None

    def describe(self) -> str:
        """Loss per supervised token since the last call, learning rate and speed, in words."""
        (loss, count), self._since = self._since, [0.0, 0]
        return (
            f"loss {loss / count if count else math.nan:.3f}, lr {self._learning_rate:.1e}, "
            f"{self.supervised_per_second:,.0f} supervised tokens/s"
        )


def _bytes_until(step: int, path: Path) -> int:
    """Length of the lines up to `step`, ending before the first that is cut short or damaged.

    What a stopped run measured beside its schedule ends them, too: a resumed one forgets it.
    """
    kept = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            values = json.loads(line)
            if not line.endswith(b"\n") or values["step"] > step or STOPPED in values:
                break
        except (ValueError, KeyError, TypeError):
            break
        kept += len(line)
    return kept
