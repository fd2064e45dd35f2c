"""The graphed step is the eager step. Here "capturing" is calling: a CPU has no graphs.

What a capture allows is checked where tensors hold no numbers (test_no_wait.py), and the graphs
themselves where there is a GPU (test_cuda.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from itertools import count

import pytest
import torch

from minimind.data.packing import Batch
from minimind.data.padding import shape_of_run
from minimind.data.plan import make_steps
from minimind.model.transformer import Transformer
from minimind.training import graphs as module
from minimind.training import loop
from minimind.training.compile_trial import SKIPPED, TIMED, CompileTrial
from minimind.training.graphs import why_not_captured
from minimind.training.loop import StepResult, train
from minimind.training.state import TrainConfig, TrainState
from tests.support.ragged import new_model, ragged_rows

FP32 = TrainConfig(precision="fp32", learning_rate=1e-2, compile="off")


def plan(weighted: bool = False) -> list[list[Batch]]:
    rows = ragged_rows(60, weighted=weighted)
    return [list(s) for s in make_steps(rows, tokens_per_step=300, tokens_per_batch=150, epochs=2)]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Graphs on a CPU: captured functions are called; which ones, in order."""
    called: list[str] = []

    def capture(function: Callable[[], None]) -> Callable[[], None]:
        function()  # a warm-up, which makes the moments

        def replay() -> None:
            called.append(function.__name__)
            function()

        return replay

    monkeypatch.setattr(module, "capture", capture)
    monkeypatch.setattr(module.StepGraphs.__init__, "__defaults__", (capture,))
    monkeypatch.setattr(loop, "why_not_captured", lambda config, state: None)
    return called


def graphed(
    model: Transformer, steps: list[list[Batch]], config: TrainConfig, **state: object
) -> tuple[list[StepResult], TrainState]:
    """A run whose state may capture and has fixed shapes, as on CUDA."""
    run = TrainState(model, config, **state)  # type: ignore[arg-type]
    run.may_capture, run.shape = True, shape_of_run(steps)
    return list(train(model, steps, config, state=run)), run


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_graphed_run_is_the_eager_run(calls, precision, weighted) -> None:
    steps, config = plan(weighted), replace(FP32, precision=precision)
    fast, slow = new_model(), new_model()
    ours, state = graphed(fast, steps, config)
    theirs = list(train(slow, steps, config))
    near = 1e-5 if precision == "fp32" else 1e-2
    for a, b in zip(ours, theirs, strict=True):
        assert a.loss.item() == pytest.approx(b.loss.item(), rel=near)
        assert a.grad_norm.item() == pytest.approx(b.grad_norm.item(), rel=10 * near)
        assert replace(a, loss=b.loss, grad_norm=b.grad_norm) == b
    if precision == "fp32":
        for p, q in zip(fast.parameters(), slow.parameters(), strict=True):
            assert torch.allclose(p, q, atol=2e-5)
    assert state.graphs is not None
    assert state.eager_batches == 0
    micro = sum(map(len, steps))
    assert calls.count("_forward_backward") == micro + 1  # one to compare the first loss
    assert calls.count("_step_optimizer") == len(steps)


def test_a_batch_beyond_the_shape_is_computed_eagerly_and_counted(calls) -> None:
    steps = plan()
    fast, slow = new_model(), new_model()
    state = TrainState(fast, FP32)
    state.may_capture = True
    shape = shape_of_run(steps)
    state.shape = replace(shape, supervised=shape.supervised // 2)
    beyond = sum(not state.shape.holds(batch) for step in steps for batch in step)
    ours = list(train(fast, steps, FP32, state=state))
    theirs = list(train(slow, steps, FP32))
    assert state.graphs is not None
    assert state.eager_batches == beyond > 0
    assert [r.loss.item() for r in ours] == pytest.approx([r.loss.item() for r in theirs], rel=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_in_graphs_either(calls) -> None:
    steps = plan(weighted=True)
    model = new_model()
    _, state = graphed(model, steps[:3], FP32)
    before = copy.deepcopy((model.state_dict(), state.state_dict()))
    broken = [replace(b, weights=torch.full_like(b.weights, torch.inf)) for b in steps[3]]
    result = loop.train_step(model, broken, FP32, state, 1.0)
    assert not torch.isfinite(result.loss)
    after = model.state_dict(), state.state_dict()
    assert all(torch.equal(after[0][name], x) for name, x in before[0].items())
    moments = (s["optimizer"]["state"] for s in (before[1], after[1]))
    for a, b in zip(*(m.values() for m in moments), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    good = loop.train_step(model, steps[3], FP32, state, 1.0)  # no gradient of it is left
    assert torch.isfinite(good.loss + good.grad_norm)


def test_a_state_dict_shows_no_graph_and_loading_one_captures_anew(calls) -> None:
    steps = plan()
    plain = new_model()
    slow = TrainState(plain, FP32)
    list(train(plain, steps[:2], FP32, state=slow))
    model = new_model()
    _, state = graphed(model, steps[:2], FP32)
    ours, theirs = (s.state_dict()["optimizer"]["param_groups"] for s in (state, slow))
    assert ours == theirs  # no tensor, no capturable
    first = state.graphs
    state.load_state_dict(state.state_dict())
    assert state.graphs is None
    loop.train_step(model, steps[2], FP32, state, 1.0)
    assert state.graphs is not first


def test_a_users_optimizer_steps_as_it_likes(calls) -> None:
    steps = plan()
    runs = []
    for graphs in (True, False):
        model = new_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        if graphs:
            results, state = graphed(model, steps, FP32, optimizer=optimizer)
            assert state.graphs is not None
        else:
            results = list(train(model, steps, FP32, optimizer))
        runs.append([r.loss.item() for r in results])
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)
    assert "_step_optimizer" not in calls


def move_weights(state: TrainState) -> None:
    for parameter in state.model.parameters():
        parameter.data = parameter.data.clone()  # as model.cpu().cuda() does


def load_moments(state: TrainState) -> None:
    state.optimizer.load_state_dict(copy.deepcopy(state.optimizer.state_dict()))


def freeze(state: TrainState) -> None:
    state.model.model.norm.requires_grad_(False)


def change_an_option(state: TrainState) -> None:
    state.optimizer.param_groups[0]["weight_decay"] = 0.5


def add_a_group(state: TrainState) -> None:
    parameter = state.optimizer.param_groups[0]["params"].pop()
    state.optimizer.add_param_group({"params": [parameter], "weight_decay": 0.0})


def change_the_shape(state: TrainState) -> None:
    assert state.shape is not None
    state.shape = replace(state.shape, tokens=2 * state.shape.tokens)


CHANGES = [move_weights, load_moments, freeze, change_an_option, add_a_group, change_the_shape]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_what_a_caller_changes_between_two_steps_is_captured_anew(calls, change) -> None:
    steps, model = plan(), new_model()
    _, state = graphed(model, steps[:2], FP32)
    first = state.graphs
    for step in steps[2:4]:
        loop.train_step(model, step, FP32, state, 1.0)
    assert state.graphs is first is not None  # nothing was changed
    change(state)
    state.keep_peaks(FP32)
    loop.train_step(model, steps[4], FP32, state, 1.0)
    second = state.graphs
    assert second is not first
    loop.train_step(model, steps[5], FP32, state, 1.0)
    assert state.graphs is second is not None, state.notes


def test_a_weight_that_was_frozen_stays_in_graphs_too(calls) -> None:
    steps, model = plan(), new_model()
    _, state = graphed(model, steps[:2], FP32)
    norm = model.model.norm.weight.requires_grad_(False)
    before = norm.clone()
    loop.train_step(model, steps[2], FP32, state, 1.0)
    assert torch.equal(norm, before)


def test_gradients_that_a_caller_sets_to_none_are_found_again(calls) -> None:
    steps, model = plan(), new_model()
    _, state = graphed(model, steps[:2], FP32)
    model.zero_grad(set_to_none=True)
    result = loop.train_step(model, steps[2], FP32, state, 1.0)
    assert result.grad_norm > 0


def test_a_first_loss_that_is_not_the_eager_one_makes_the_run_eager(calls, monkeypatch) -> None:
    monkeypatch.setattr(module, "batch_loss", lambda *_: torch.tensor(1e6))
    model = new_model()
    results, state = graphed(model, plan()[:2], FP32)
    assert len(results) == 2
    assert state.graphs is None
    (note,) = state.notes
    assert note.startswith("without CUDA graphs: RuntimeError: the first loss is ")
    assert not any(p.grad is not None for p in model.parameters())


def test_what_cannot_be_captured_makes_the_run_eager(calls, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(loop, "StepGraphs", refuse)
    ours, state = graphed(new_model(), plan()[:2], FP32)
    theirs = list(train(new_model(), plan()[:2], FP32))
    assert [r.loss.item() for r in ours] == pytest.approx([r.loss.item() for r in theirs], rel=1e-5)
    assert state.notes == [
        "without CUDA graphs: RuntimeError: operation not permitted when stream is capturing"
    ]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (TrainConfig(precision="fp16"), "fp16 changes its loss's scale"),
        (TrainConfig(precision="bf16", activation_checkpointing=True), "activation checkpointing"),
        (TrainConfig(precision="fp32"), "no flash attention here for fp32 and heads of 8"),
    ],
    ids=["fp16", "checkpointing", "fp32"],
)
def test_the_reason_for_no_graphs_is_named(config, reason, monkeypatch) -> None:
    monkeypatch.setattr(module, "flash_serves", lambda q: q.dtype != torch.float32)
    assert reason in (why_not_captured(config, TrainState(new_model(), config)) or "")
    graphs = TrainConfig(precision="bf16")
    assert why_not_captured(graphs, TrainState(new_model(), graphs)) is None


def test_a_short_run_says_why_it_is_not_compiled(calls) -> None:
    steps = (plan() * 9)[: SKIPPED + TIMED + 2]
    _, state = graphed(new_model(), steps, replace(FP32, compile="auto"))
    assert not state.compiled
    (note,) = state.notes
    assert note.startswith("not compiled: 0 s of steps are left, ")
    assert note.endswith("compiling takes about 21 s")


@pytest.mark.parametrize("faster", [True, False], ids=["faster", "slower"])
def test_a_long_run_is_compiled_and_stays_so_only_if_that_is_faster(
    calls, faster, monkeypatch
) -> None:
    clock = count(0.0, 1e3)  # seconds: a step takes 1e3 until it is compiled, and 1e4 or 10 then

    def now(trial: CompileTrial) -> float:
        moment = next(clock)
        return moment * (0.01 if faster else 10) if trial._state.compiled else moment

    monkeypatch.setattr(CompileTrial, "_clock", now)
    monkeypatch.setattr(Transformer, "compile_training", lambda self: None)
    steps = (plan() * 20)[: 2 * (SKIPPED + TIMED) + 4]
    _, state = graphed(new_model(), steps, replace(FP32, compile="auto"))
    assert state.compiled is faster
    assert state.state_dict()["compiled"] is faster
    first, second = state.notes
    assert first.startswith("compiling: ")
    assert second.startswith("compiled: " if faster else "compiled pieces dropped: ")


def test_compile_off_and_on_do_as_told(calls, monkeypatch) -> None:
    monkeypatch.setattr(Transformer, "compile_training", lambda self: None)
    for choice, compiled in (("off", False), ("on", True)):
        _, state = graphed(new_model(), plan()[:2], replace(FP32, compile=choice))
        assert state.compiled is compiled
        assert state.notes == []


def test_a_checkpoint_of_a_compiled_run_runs_eagerly_where_nothing_fixes_sizes() -> None:
    config = replace(FP32, compile="auto")  # off on a CPU
    model = new_model()
    state = TrainState(model, config)
    state.load_state_dict(state.state_dict() | {"compiled": True})
    next(train(model, plan(), config, state=state))
    assert not state.compiled


def test_no_steps_are_no_run() -> None:
    for compile in ("off", "on"):
        assert list(train(new_model(), [], replace(FP32, compile=compile))) == []
