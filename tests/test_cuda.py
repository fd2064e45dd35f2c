"""What only a GPU can show; skipped where there is none. An H200 passed them at commit e1d76b3."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from minimind.data.packing import Batch, make_batch
from minimind.data.padding import shape_of_run
from minimind.data.plan import make_steps
from minimind.documents import Documents
from minimind.model.attention import _sdpa_by_document, flash_serves, packed_attention
from minimind.model.transformer import Transformer
from minimind.training.loop import train, train_step
from minimind.training.state import TrainConfig, TrainState
from minimind.training.step import batch_loss
from tests.support.ragged import new_model, ragged_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

CUDA = torch.device("cuda")
BF16 = TrainConfig(precision="bf16", learning_rate=1e-3, compile="off")


def cuda_model() -> Transformer:
    """Heads of 16: the flash kernel takes multiples of 8."""
    return new_model(head_dim=16).to(CUDA)


def plan(count: int = 60, epochs: int = 1) -> list[list[Batch]]:
    steps = make_steps(ragged_rows(count), tokens_per_step=300, tokens_per_batch=150, epochs=epochs)
    return [list(step) for step in steps]


def graphed_state(model: Transformer, steps: list[list[Batch]], config: TrainConfig) -> TrainState:
    state = TrainState(model, config)
    state.shape = shape_of_run(steps)
    train_step(model, steps[0], config, state, 1.0)  # captures
    assert (state.graphs is None) == (config.precision != "bf16"), state.notes
    return state


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_waits(precision) -> None:
    config = replace(BF16, precision=precision)
    steps, model = plan(), cuda_model()
    state = graphed_state(model, steps, config)
    with waiting_is_an_error():
        results = [train_step(model, step, config, state, 1.0) for step in steps[1:]]
    assert all(torch.isfinite(result.loss) for result in results)


@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_graphed_run_is_the_eager_run(compile) -> None:
    steps, config = plan(epochs=3), replace(BF16, compile=compile)
    runs = []
    for may_capture in (True, False):
        model = cuda_model()
        state = TrainState(model, config)
        state.may_capture = may_capture
        results = list(train(model, steps, config, state=state))
        assert (state.graphs is not None) == may_capture, state.notes
        runs.append(results)
    for graphed, eager in zip(*runs, strict=True):
        assert graphed.loss.item() == pytest.approx(eager.loss.item(), abs=0.02)
        assert graphed.grad_norm.item() == pytest.approx(eager.grad_norm.item(), rel=0.1)


def test_gradients_of_a_graph_are_near_those_of_float32_on_the_cpu() -> None:
    steps = plan()
    model = cuda_model()
    state = graphed_state(model, steps, BF16)
    assert state.graphs is not None
    on_cpu = new_model(head_dim=16)
    on_cpu.load_state_dict({name: x.cpu() for name, x in model.state_dict().items()})
    state.working.refresh()
    (batch, *_) = steps[1]
    state.graphs._begin_step(batch.num_supervised)
    state.graphs._load(batch)
    state.graphs._micro_batch()
    fp32 = TrainConfig(precision="fp32")
    (batch_loss(on_cpu, batch, fp32, "fp32") / batch.num_supervised).backward()
    for p, q in zip(model.parameters(), on_cpu.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert (p.grad.cpu() - q.grad).norm() <= 0.05 * q.grad.norm()


def test_batches_of_odd_sizes_and_beyond_the_shape() -> None:
    rows, model = ragged_rows(40), cuda_model()
    groups = [np.arange(1), np.arange(3, 10), np.arange(10, 12), np.arange(12, 40)]
    steps = [[make_batch(rows, group)] for group in groups]
    state = TrainState(model, BF16)
    state.shape = shape_of_run(steps[:3])
    eager = TrainState(cuda_model(), BF16)
    for step in steps:
        ours = train_step(model, step, BF16, state, 1.0)
        theirs = train_step(eager.model, step, BF16, eager, 1.0)
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), abs=0.02)
    assert state.eager_batches == 1


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    rows = ragged_rows(9, weighted=True)
    steps = [[make_batch(rows, group)] for group in np.split(np.arange(9), 3)]
    model = cuda_model()
    state = graphed_state(model, steps, BF16)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    (batch,) = steps[1]
    assert batch.weights is not None
    broken = replace(batch, weights=torch.full_like(batch.weights, torch.inf))
    result = train_step(model, [broken], BF16, state, 1.0)
    assert not torch.isfinite(result.loss)
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.isfinite(train_step(model, steps[2], BF16, state, 1.0).loss)


def test_fp16_learns_as_fp32_does() -> None:
    """At commit 94a8f45 the 40th step's loss was 11.7 where fp32 had 5.6 (docs/gpus.md)."""
    steps = plan(400, epochs=4)[:60]
    last = {}
    for precision in ("fp32", "bf16", "fp16"):
        config = replace(BF16, precision=precision, learning_rate=3e-3)
        results = list(train(cuda_model(), steps, config))
        last[precision] = float(torch.stack([r.loss for r in results[-10:]]).mean())
    assert last["bf16"] == pytest.approx(last["fp32"], abs=0.1)
    assert last["fp16"] == pytest.approx(last["fp32"], abs=0.1)


def test_with_deterministic_algorithms_a_run_repeats_and_resumes_to_the_same_bits() -> None:
    """Flash attention's backward pass adds in any order otherwise."""
    steps = plan(epochs=2)
    half = len(steps) // 2
    torch.use_deterministic_algorithms(True)
    try:
        whole = cuda_model()
        list(train(whole, steps, BF16))
        first = cuda_model()
        state = TrainState(first, BF16)
        run = train(first, steps, BF16, state=state)
        for _ in range(half):
            next(run)
        resumed = cuda_model()
        resumed.load_state_dict(first.state_dict())
        again = TrainState(resumed, BF16)
        again.load_state_dict(state.state_dict())
        list(train(resumed, steps, BF16, state=again))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(
        torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_flash_attention_is_the_documents_own_attention(kv_heads, dtype) -> None:
    lengths = [3, 1, 70, 26]
    shapes = [(100, 4, 64), (100, kv_heads, 64), (100, kv_heads, 64)]
    inputs = [torch.randn(s, device=CUDA, dtype=dtype, requires_grad=True) for s in shapes]
    if not flash_serves(inputs[0]):
        pytest.skip("this GPU has no flash attention")
    documents = Documents.of(lengths, CUDA)
    fast = packed_attention(*inputs, documents)
    slow = _sdpa_by_document(*inputs, documents)
    assert torch.allclose(fast, slow, atol=0.02)
    upstream = torch.randn_like(fast)
    ours, theirs = (torch.autograd.grad(out, inputs, upstream) for out in (fast, slow))
    assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(ours, theirs, strict=True))
