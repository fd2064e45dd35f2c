from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from minimind.training.optim import clip_gradients, make_optimizer, schedule_at, step_if_finite

BETAS = (0.9, 0.95)


class Layers(nn.Module):
    """A matrix, a norm's weight, a bias, and a matrix that isn't trained."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.linear = nn.Linear(7, 5)
        self.norm = nn.RMSNorm(5)
        self.frozen = nn.Parameter(torch.ones(3, 3), requires_grad=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)

    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]


# The schedule


def test_the_schedule_has_the_values_worked_out_by_hand() -> None:
    rates = [2.0 * schedule_at(step, 11, 2, 0.1) for step in range(11)]
    # Up in two steps; then eight falling ones from 2 to 0.2, half a cosine: at a quarter of the
    # way cos is the root of a half, half way it is 0.
    assert rates[:3] == [1.0, 2.0, 2.0]
    assert rates[4] == pytest.approx(0.2 + 0.9 * (1 + math.sqrt(0.5)), abs=1e-12)
    assert rates[6] == pytest.approx(1.1, abs=1e-12)
    assert rates[8] == pytest.approx(0.2 + 0.9 * (1 - math.sqrt(0.5)), abs=1e-12)
    assert rates[10] == pytest.approx(0.2, abs=1e-12)


@given(steps=st.integers(1, 400), warmup_ratio=st.floats(0, 1), min_lr_ratio=st.floats(0, 1))
def test_the_rate_rises_falls_and_ends_where_planned(steps, warmup_ratio, min_lr_ratio) -> None:
    warmup_steps = min(round(warmup_ratio * steps), steps - 1)
    shares = [schedule_at(step, steps, warmup_steps, min_lr_ratio) for step in range(steps)]
    assert abs(shares[-1] - min_lr_ratio) <= 1e-12
    rising, falling = shares[:warmup_steps], shares[warmup_steps:]
    assert all(0 < share <= 1 for share in rising)
    assert all(a < b for a, b in pairwise(rising))
    assert all(a >= b for a, b in pairwise(falling))
    assert all(min_lr_ratio - 1e-12 <= share <= 1 + 1e-12 for share in falling)
    if rising:
        assert rising[-1] == 1
    if len(falling) > 1:
        assert falling[0] == 1


def test_a_run_of_one_step_takes_the_last_steps_rate() -> None:
    assert schedule_at(0, 1, 0, 0.25) == 0.25


# AdamW and clipping


def textbook_adamw(
    parameter: torch.Tensor,
    gradients: list[torch.Tensor],
    rates: list[float],
    decay: float,
    eps: float = 1e-8,
) -> torch.Tensor:
    """Algorithm 2 of Loshchilov & Hutter 2019, in float64."""
    theta = parameter.double()
    m, v = torch.zeros_like(theta), torch.zeros_like(theta)
    beta1, beta2 = BETAS
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        theta = theta - rate * (m_hat / (v_hat.sqrt() + eps) + decay * theta)
    return theta


@pytest.mark.parametrize("max_norm", [0.5, 1e9], ids=["clipped", "unclipped"])
def test_steps_with_clipping_are_the_textbooks_in_float64(max_norm) -> None:
    model, steps = Layers(), 12
    generator = torch.Generator().manual_seed(1)
    # Small and large gradients by turns, and a rate that changes: what a schedule does.
    drawn = [
        [torch.randn(p.shape, generator=generator) * 10 ** (t % 4 - 3) for p in model.trained()]
        for t in range(steps)
    ]
    rates = [1e-2 * schedule_at(t, steps, 3, 0.1) for t in range(steps)]
    norms = [math.sqrt(sum(float(g.double().square().sum()) for g in now)) for now in drawn]
    clipped = [
        [g.double() * min(1.0, max_norm / norm) for g in now]
        for now, norm in zip(drawn, norms, strict=True)
    ]
    expected = {
        name: textbook_adamw(
            parameter.detach(),
            [now[index] for now in clipped],
            rates,
            0.1 if parameter.ndim >= 2 else 0.0,
        )
        for index, (name, parameter) in enumerate(
            (name, p) for name, p in model.named_parameters() if p.requires_grad
        )
    }
    optimizer = make_optimizer(model, 1.0, BETAS, 0.1)
    for now, rate, norm in zip(drawn, rates, norms, strict=True):
        for parameter, gradient in zip(model.trained(), now, strict=True):
            parameter.grad = gradient.clone()
        assert float(clip_gradients(model.parameters(), max_norm)) == pytest.approx(norm, rel=1e-5)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert torch.allclose(parameter.double(), expected[name], rtol=0, atol=2e-6), name
    assert max(norms) > 0.5 > min(norms)  # both sides of the clipping were seen


def test_weight_decay_shrinks_matrices_and_nothing_else() -> None:
    model = Layers()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = make_optimizer(model, 0.5, BETAS, 0.2)
    for parameter in model.trained():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    assert torch.allclose(after["linear.weight"], before["linear.weight"] * (1 - 0.5 * 0.2))
    for name in ("linear.bias", "norm.weight", "frozen"):
        assert torch.equal(after[name], before[name]), name


def test_every_trained_parameter_is_optimized_once_and_frozen_ones_are_not() -> None:
    model = Layers()
    optimizer = make_optimizer(model, 1e-3, BETAS, 0.1)
    optimized = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(optimized) == sorted(id(p) for p in model.trained())
    assert {group["betas"] for group in optimizer.param_groups} == {BETAS}


def test_a_model_without_matrices_can_be_optimized() -> None:
    (group,) = make_optimizer(nn.RMSNorm(4), 1e-3, BETAS, 0.1).param_groups
    assert group["weight_decay"] == 0.0


def test_clipping_scales_all_gradients_by_one_factor_and_returns_the_norm_before() -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1, 1))
    a.grad, b.grad = torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])
    untouched = nn.Parameter(torch.zeros(3))  # took no part in the step: it has no gradient
    norm = clip_gradients([a, b, untouched], 1.0)
    assert norm.item() == 5.0
    assert a.grad.tolist() == pytest.approx([0.6, 0.0], rel=1e-5)
    assert b.grad.tolist() == [pytest.approx([0.8], rel=1e-5)]
    assert untouched.grad is None


def test_gradients_within_the_norm_are_left_bit_for_bit() -> None:
    a = nn.Parameter(torch.zeros(2))
    a.grad = torch.tensor([0.3, -0.4])
    assert clip_gradients([a], 1.0).item() == pytest.approx(0.5)
    assert torch.equal(a.grad, torch.tensor([0.3, -0.4]))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_gradient_that_is_not_finite_shows_in_the_norm(bad) -> None:
    a = nn.Parameter(torch.zeros(2))
    a.grad = torch.tensor([0.3, bad])
    assert not math.isfinite(clip_gradients([a], 1.0).item())


# A step that the device itself decides about


def stepped(flags: list[bool], fused: bool = True) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """A weight after one step for each flag, and its moments."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=fused)
    for step, ok in enumerate(flags):
        weight.grad = torch.full_like(weight, 1.0 + step if ok else math.nan)
        step_if_finite(torch.tensor(ok), optimizer)
    return weight.detach(), optimizer.state[weight]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "not fused"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_moments(fused) -> None:
    weight, moments = stepped([True, True], fused)
    disturbed, others = stepped([True, False], fused)
    assert not torch.equal(weight, disturbed)  # the flag is seen
    once, first = stepped([True], fused)
    assert torch.equal(disturbed, once)
    assert all(torch.equal(others[name], first[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    assert moments["step"].item() == 2


def test_a_finite_step_is_adamws_own() -> None:
    weight, _ = stepped([True, True])
    plain = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([plain], lr=0.1, fused=True)
    for gradient in (1.0, 2.0):
        plain.grad = torch.full_like(plain, gradient)
        optimizer.step()
    assert torch.equal(weight, plain.detach())
