"""Find how many steps fit into a time, by a trial on a copy of the model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch

from minimind.data.plan import Steps
from minimind.model.transformer import Transformer
from minimind.training.loop import train
from minimind.training.state import TrainConfig

WARM_UP, MEASURED = 2, 7  # steps


def steps_within(
    seconds: float,
    model: Transformer,
    steps: Steps,
    config: TrainConfig,
    validate: Callable[[], object],
    eval_every: int,
) -> int:
    """How many steps take about this long, with their validations; at least one.

    Args:
        seconds: for the whole run, the trial left out.
        model, steps, config: of the run; the model is on its device.
        validate: does one validation.
        eval_every: steps between two validations; there is one more before the first step.
    """
    step = seconds_per_step(model, steps, config)
    start = time.perf_counter()
    validate()
    validation = time.perf_counter() - start
    return max(1, int((seconds - 2 * validation) / (step + validation / eval_every)))


def seconds_per_step(model: Transformer, steps: Steps, config: TrainConfig) -> float:
    """The median time of a run's first steps, after some to warm up.

    The steps train a copy: weights, gradients and random states stay as they are. Where a run has
    too few steps, they are repeated.
    """
    trial = steps.with_length(WARM_UP + MEASURED)
    with torch.random.fork_rng():
        copied = copy.deepcopy(model)
        times = [time.perf_counter()]
        for result in train(copied, trial, config):
            float(result.loss)  # waits until the step is done
            times.append(time.perf_counter())
    return median(after - before for before, after in pairwise(times[WARM_UP:]))
