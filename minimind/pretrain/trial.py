"""Measure what a step takes, on a copy that is thrown away. Knows no files and no schedule."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from itertools import pairwise
from statistics import median

import torch

from minimind.data.plan import Steps
from minimind.model.transformer import Transformer
from minimind.training.loop import TrainConfig, train

WARM_UP, MEASURED = 2, 7  # steps


def steps_within(
    seconds: float,
    model: Transformer,
    steps: Steps,
    config: TrainConfig,
    validate: Callable[[], object],
    eval_every: int,
) -> int:
    """How many steps, and the validations between them, take about this long; at least one.

    Args:
        seconds: of the whole run; the trial's own aren't counted.
        model, steps, config: see `seconds_per_step`.
        validate: what a validation does.
        eval_every: steps between two; there is one more before the first step.
    """
    step = seconds_per_step(model, steps, config)
    began = time.perf_counter()
    validate()
    validation = time.perf_counter() - began
    return max(1, int((seconds - 2 * validation) / (step + validation / eval_every)))


def seconds_per_step(model: Transformer, steps: Steps, config: TrainConfig) -> float:
    """The median time of a run's first steps, after some to warm up.

    Weights, gradients and random states stay what they are: the steps train a copy.

    Args:
        model: on the device to train on.
        steps: of the run; where they are few, over and over.
        config: of the run.
    """
    trial = steps.with_length(WARM_UP + MEASURED)
    with torch.random.fork_rng():
        copied = copy.deepcopy(model)
        times = [time.perf_counter()]
        for result in train(copied, trial, config):
            float(result.loss)  # waits for the step's end
            times.append(time.perf_counter())
    return median(after - before for before, after in pairwise(times[WARM_UP:]))
