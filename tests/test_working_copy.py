"""A step computes with a half-precision copy; the model itself stays float32 and its own."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.data.packing import make_batch
from minimind.training.graphs import why_not_captured
from minimind.training.loop import train, train_step
from minimind.training.state import TrainConfig, TrainState
from minimind.training.step import batch_loss
from minimind.training.working_copy import WorkingCopy
from tests.support.ragged import new_model, ragged_rows

BF16 = TrainConfig(precision="bf16", learning_rate=1e-2)
FP32 = TrainConfig(precision="fp32")
ROWS = ragged_rows(12)
STEP = [make_batch(ROWS, group) for group in np.split(np.arange(12), 3)]


class Casts(TorchDispatchMode):
    """Shapes of what is cast from float32 to half precision."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and out.dtype == torch.bfloat16:
            self.shapes.append(tuple(out.shape))
        return out


def test_layers_products_are_half_precision_and_the_stream_float32() -> None:
    model = new_model()
    half = WorkingCopy(model, torch.bfloat16).model
    layer = half.model.layers[0]
    assert layer.mlp.down_proj.weight.dtype == torch.bfloat16
    x, (cos, sin) = torch.randn(5, 32), half.model.rotation(torch.arange(5))
    q, k, v = layer.before_attention(x, cos, sin)
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    assert layer.after_attention(x, q).dtype == torch.float32
    assert half.model.embed_tokens.weight is model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_float32_and_near_those_of_float32(tied) -> None:
    model = new_model(tie_word_embeddings=tied)
    twin = copy.deepcopy(model)
    working = WorkingCopy(model, torch.bfloat16)
    for batch in STEP:  # gradients add up over micro-batches
        batch_loss(working.model, batch, BF16, "fp32").backward()
        batch_loss(twin, batch, FP32, "fp32").backward()
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert p.grad.dtype == torch.float32
        assert (p.grad - q.grad).norm() <= 0.03 * q.grad.norm(), name
    assert all(p.grad is None for p in working.model.parameters() if p.dtype == torch.bfloat16)


def test_a_weights_copy_is_cast_once_a_step_whatever_its_micro_batches() -> None:
    model = new_model()
    state = TrainState(model, BF16)
    weights = {tuple(p.shape) for p in model.parameters()}
    with Casts() as casts:
        train_step(model, STEP, BF16, state, 1.0)
    assert not [shape for shape in casts.shapes if shape in weights]


def test_whatever_happens_to_the_weights_between_two_steps_counts() -> None:
    runs = []
    for late in (True, False):
        model = new_model(1)
        state = TrainState(model, BF16) if late else None
        model.load_state_dict(new_model(2).state_dict())
        state = state or TrainState(model, BF16)
        runs.append(train_step(model, STEP, BF16, state, 1.0).loss.item())
    assert runs[0] == runs[1]


def test_a_frozen_weight_gets_no_gradient_and_stays() -> None:
    model = new_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    before = copy.deepcopy(model.state_dict())
    list(train(model, [STEP] * 2, BF16))
    changed = {n for n, x in model.state_dict().items() if not torch.equal(x, before[n])}
    assert changed == {n for n in before if "q_proj" in n}


def test_a_frozen_head_costs_no_gradient_and_changes_no_other() -> None:
    for tied in (True, False):
        model, twin = (new_model(tie_word_embeddings=tied) for _ in range(2))
        model.head_weight.requires_grad_(False)
        for each in (model, twin):
            batch_loss(each, STEP[0], FP32, "fp32").backward()
        assert model.head_weight.grad is None
        for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
            if p is not model.head_weight:
                assert p.grad is not None, name
                assert torch.equal(p.grad, q.grad)


def test_the_models_own_compiled_layers_stay_its_own() -> None:
    model = new_model()
    model.compile_training()
    working = WorkingCopy(model, torch.bfloat16)
    for ours, theirs in zip(working.model.model.layers, model.model.layers, strict=True):
        assert ours.before_attention.__self__ is ours
        assert theirs.before_attention.__self__ is theirs


def test_half_precision_learns_as_float32_does() -> None:
    steps = [STEP] * 60
    losses = {
        precision: list(
            train(new_model(), steps, TrainConfig(precision=precision, learning_rate=3e-3))
        )
        for precision in ("fp32", "bf16", "fp16")
    }
    start, *_, end = (float(r.loss) for r in losses["fp32"])
    assert end < start / 2
    for precision in ("bf16", "fp16"):
        assert float(losses[precision][-1].loss) == pytest.approx(end, abs=0.05)


def test_a_weight_can_be_frozen_and_trained_again_between_two_steps() -> None:
    model = new_model()
    state = TrainState(model, BF16)
    layer = model.model.layers[0]
    for trained in (True, False, True):
        layer.requires_grad_(trained)
        before = copy.deepcopy(model.state_dict())
        train_step(model, STEP, BF16, state, 1.0)
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, before[name]) == (not parameter.requires_grad), name


def test_a_gradient_that_an_interrupted_step_left_is_dropped() -> None:
    norms = []
    for interrupted in (True, False):
        model = new_model()
        state = TrainState(model, BF16)
        half = state.working.model.model.layers[0].mlp.up_proj.weight
        if interrupted:  # between the sum and the hook that takes it
            half.grad = torch.ones_like(half)
        norms.append(train_step(model, STEP, BF16, state, 1.0).grad_norm.item())
    assert norms[0] == norms[1]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_of_model_and_state_trains_on_by_itself(precision, copied) -> None:
    config, steps = replace(BF16, precision=precision), [STEP] * 4
    model = new_model()
    state = TrainState(model, config)
    run = train(model, steps, config, state=state)
    next(run)
    other, other_state = copied((model, state))
    for ours, theirs in zip(run, train(other, steps, config, state=other_state), strict=True):
        assert torch.equal(ours.loss, theirs.loss)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


@pytest.mark.parametrize("own", ["module", "forward hook", "gradient hook"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_with_parts_of_a_callers_own_trains_under_autocast(own, precision) -> None:
    model, seen = new_model(), []
    if own == "module":
        layer = model.model.layers[0].self_attn
        linear = torch.nn.Linear(32, 32, bias=False)
        linear.weight = layer.q_proj.weight
        layer.q_proj = linear
    elif own == "forward hook":
        model.model.layers[0].register_forward_hook(lambda module, *_: seen.append(module))
    else:
        model.model.layers[0].mlp.down_proj.weight.register_hook(seen.append)
    config = TrainConfig(precision=precision)
    state = TrainState(model, config)
    assert state.working.model is model
    result = train_step(model, STEP, config, state, 1.0)
    twin = train_step(new_model(), STEP, config, TrainState(new_model(), config), 1.0)
    assert result.grad_norm > 0
    assert result.loss.item() == pytest.approx(twin.loss.item(), abs=0.02)
    assert len(seen) == (0 if own == "module" else len(STEP))
    assert why_not_captured(config, state) == ("the model has modules or hooks of a caller's own")
