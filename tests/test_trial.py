"""A trial finds how many steps a time pays for, and changes nothing."""

from __future__ import annotations

import pytest
import torch

from minimind.data.plan import make_steps
from minimind.pretrain import trial
from minimind.pretrain.trial import MEASURED, WARM_UP, seconds_per_step, steps_within
from minimind.training.state import TrainConfig
from tests.support.ragged import new_model, ragged_rows

CONFIG = TrainConfig(precision="fp32")


def test_a_trial_leaves_no_trace_in_weights_gradients_or_random_states() -> None:
    model = new_model()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    random = torch.get_rng_state()
    steps = make_steps(ragged_rows(4), tokens_per_step=40)
    assert seconds_per_step(model, steps, CONFIG) > 0
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert len(steps) == steps.steps_per_epoch


def test_the_warm_up_is_left_out_and_a_slow_step_changes_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 100.0, 200.0, 202.0, 204.0, 300.0, 302.0, 304.0, 306.0, 308.0])
    assert WARM_UP + MEASURED == 9
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))
    steps = make_steps(ragged_rows(4), tokens_per_step=40)
    assert seconds_per_step(new_model(), steps, CONFIG) == 2.0


@pytest.mark.parametrize(("seconds", "expected"), [(0.5, 1), (100.0, 40), (1000.0, 415)])
def test_the_time_pays_for_steps_and_validations(
    seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "seconds_per_step", lambda model, steps, config: 2.0)
    clock = iter([0.0, 2.0])  # a validation takes 2 s, and is done every 5 steps
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(clock))
    steps = make_steps(ragged_rows(4), tokens_per_step=40)
    assert steps_within(seconds, new_model(), steps, CONFIG, lambda: None, 5) == expected
