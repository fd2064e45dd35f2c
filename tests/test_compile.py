"""Compiled or not, a run computes the same; and what is compiled is compiled once."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch._dynamo.utils
import torch._inductor.config
from torch import Tensor

from minimind.data.dataset import Dataset, Example
from minimind.data.packing import Batch, make_batch
from minimind.model.transformer import DecoderLayer, Transformer
from minimind.sampler import SampleConfig, generate_batch
from minimind.training import compiling
from minimind.training.compiling import Compiling
from minimind.training.loop import TrainConfig, TrainState, train
from tests.support.ragged import new_model, ragged_rows

EAGER = TrainConfig(precision="fp32", learning_rate=1e-3)
COMPILED = replace(EAGER, compile=True)


@pytest.fixture(scope="module")
def compiler() -> Iterator[None]:
    """The real compiler: half a minute the first time on a machine."""
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler here, and PyTorch compiles with it")
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._inductor.config.patch(compile_threads=1):  # no pool of processes for four files
        yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def compiled(compiler) -> Transformer:
    """A model that trains compiled."""
    model = new_model()
    model.compile_tokenwise()
    return model


def varied_steps(count: int) -> list[list[Batch]]:
    """Steps of other lengths, cuts and supervised counts each; the smallest and a large one too."""
    dataset = ragged_rows(64)
    generator = np.random.default_rng(0)
    one_token = Dataset.from_examples([Example([3, 4], [False, True])])
    large = Dataset.from_examples([Example([7] * 50, [False] + [True] * 49)] * 100)
    steps = [[make_batch(one_token, np.array([0]))], [make_batch(large, np.arange(100))]]
    while len(steps) < count:
        rows = generator.choice(64, generator.integers(1, 5), replace=False)
        steps.insert(0, [make_batch(dataset, rows)])
    return steps


def test_no_step_is_compiled_again_however_steps_vary(compiled) -> None:
    steps = varied_steps(1000)
    assert len({len(batch) for (batch,) in steps}) > 100
    assert len({batch.lengths for (batch,) in steps}) > 500
    with torch.compiler.set_stance("fail_on_recompile"):  # an error, from the very first step
        results = list(train(compiled, steps, COMPILED))
    assert len(results) == 1000
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_compiled_run_has_the_losses_of_an_eager_one(compiled) -> None:
    steps = varied_steps(12)
    fast = copy.deepcopy(compiled)
    slow = new_model()
    fast.load_state_dict(slow.state_dict())
    for ours, theirs in zip(train(fast, steps, COMPILED), train(slow, steps, EAGER), strict=True):
        assert ours.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-5)
        assert ours.grad_norm.item() == pytest.approx(theirs.grad_norm.item(), rel=1e-4)
    assert all(
        torch.allclose(p, q, atol=1e-5)
        for p, q in zip(fast.parameters(), slow.parameters(), strict=True)
    )


def test_activation_checkpointing_and_compiling_go_together(compiled) -> None:
    steps = varied_steps(6)
    runs = []
    for frugal in (False, True):
        model = copy.deepcopy(compiled)
        config = replace(COMPILED, activation_checkpointing=frugal)
        with torch.compiler.set_stance("fail_on_recompile"):
            runs.append([result.loss.item() for result in train(model, steps, config)])
    assert runs[0] == pytest.approx(runs[1], rel=1e-6)


# From here on "compiling" only counts what is called


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The names of compiled functions, in the order in which they are called."""
    names: list[str] = []

    def compile_(function: Callable[..., object], **options: object) -> Callable[..., object]:
        assert options == {"dynamic": True}

        def noted(*args: object) -> object:
            names.append(function.__name__)
            return function(*args)

        return noted

    monkeypatch.setattr(torch, "compile", compile_)
    return names


def test_every_layer_is_compiled_around_its_attention(calls) -> None:
    model = new_model(num_hidden_layers=3)
    model.compile_tokenwise()
    assert calls == ["before_attention", "after_attention"]  # the trial
    calls.clear()
    list(train(model, varied_steps(3)[:1], COMPILED))
    # The last layer's queries are of the tails alone: another function, once a step.
    assert calls == ["before_attention", "after_attention"] * 2 + ["after_attention"]


def test_compiling_twice_compiles_once(calls) -> None:
    model = new_model()
    model.compile_tokenwise()
    first = [layer.compiled for layer in model.model.layers]
    model.compile_tokenwise()
    assert [layer.compiled for layer in model.model.layers] == first
    assert len(calls) == 2


def test_without_gradients_nothing_is_compiled(calls) -> None:
    model = new_model()
    model.compile_tokenwise()
    calls.clear()
    with torch.no_grad():
        model.logits(torch.zeros(1, 3, dtype=torch.long))
    assert calls == []


def test_trying_the_compiler_leaves_no_gradient_and_moves_no_weight(calls) -> None:
    model = new_model()
    before = [p.detach().clone() for p in model.parameters()]
    model.compile_tokenwise()
    assert all(p.grad is None for p in model.parameters())
    assert all(map(torch.equal, model.parameters(), before))


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(calls) -> None:
    model = new_model()
    model.compile_tokenwise()
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert model.logits(ids).abs().sum() > 0
    assert other.logits(ids).abs().sum() == 0


def test_a_run_compiles_in_the_precision_it_computes_in(monkeypatch) -> None:
    seen: list[torch.dtype] = []

    def compile_(function: Callable[..., object], **_: object) -> Callable[..., object]:
        def noted(layer: DecoderLayer, x: Tensor, *args: Tensor) -> object:
            seen.append(layer.mlp(x).dtype)
            return function(layer, x, *args)

        return noted

    monkeypatch.setattr(torch, "compile", compile_)
    monkeypatch.setattr(compiling, "MARGIN", float("inf"))  # whatever takes longer
    list(train(new_model(), varied_steps(3)[:1], replace(COMPILED, precision="bf16")))
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize("when", ["at once", "when called"])
def test_where_compiling_fails_the_reason_is_said_and_the_run_goes_on(when, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no working C++ compiler\nand a long story")

    def compile_(function: object, **_: object) -> Callable[..., object]:
        if when == "at once":
            fail()
        return fail

    monkeypatch.setattr(torch, "compile", compile_)
    fast, slow, steps = new_model(), new_model(), varied_steps(4)
    reason = "^not compiled: compiling failed: RuntimeError: no working C\\+\\+ compiler$"
    with pytest.warns(UserWarning, match=reason):
        results = list(train(fast, steps, COMPILED))
    assert len(results) == len(list(train(slow, steps, EAGER)))
    assert all(map(torch.equal, fast.parameters(), slow.parameters()))


@pytest.mark.parametrize(("compiled_takes", "kept"), [(0.5, True), (1.0, False), (2.0, False)])
def test_the_faster_of_compiled_and_eager_is_chosen_once(
    compiled_takes: float, kept: bool, calls, monkeypatch
) -> None:
    trials: list[int] = []

    def seconds(model: object, layer: DecoderLayer, parts: object, tokens: int) -> float:
        trials.append(tokens)
        return compiled_takes if parts == layer.compiled else 1.0

    monkeypatch.setattr(compiling, "_seconds", seconds)
    model, steps = new_model(), varied_steps(3)
    state = TrainState(model, COMPILED)
    if kept:
        list(train(model, steps, COMPILED, state))
    else:
        with pytest.warns(UserWarning, match="not compiled: .* 1000.0 ms eager"):
            list(train(model, steps, COMPILED, state))
    assert model.compiled == kept
    assert set(trials) == {len(steps[0][0])}
    assert state.compiling is not None
    assert state.compiling.compiled == kept
    assert f"{1000 * compiled_takes:.1f} ms compiled" in state.compiling.reason
    # A run that goes on does what was decided, without another trial.
    trials.clear()
    again, other = TrainState(new_model(), COMPILED), new_model()
    again.load_state_dict({**state.state_dict(), "step": 0})
    list(train(other, steps, COMPILED, again))
    assert other.compiled == kept
    assert again.compiling == state.compiling
    assert not trials


def test_a_run_that_was_not_asked_to_compile_says_so() -> None:
    model = new_model()
    state = TrainState(model, EAGER)
    list(train(model, varied_steps(3)[:1], EAGER, state))
    assert state.compiling == Compiling(False, "not asked for")
    assert not model.compiled


def test_a_layer_is_timed_forward_and_backward(calls) -> None:
    model = new_model()
    model.compile_tokenwise()
    calls.clear()
    layer = model.model.layers[0]
    assert compiling._seconds(model, layer, layer.compiled, 7) > 0
    assert calls == ["before_attention", "after_attention"]
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("rows", [1, 3])
def test_compiled_decoding_says_what_eager_says_and_compiles_no_token_again(compiler, rows) -> None:
    eager = new_model()
    fast = copy.deepcopy(eager)
    fast.compile_decoding(rows)
    config = SampleConfig(temperature=0, max_new_tokens=40)
    prompts = [[3 + row, 4, 5] for row in range(rows)]
    with torch.compiler.set_stance("fail_on_recompile"):
        answers = generate_batch(fast, prompts, config)
    assert answers == generate_batch(eager, prompts, config)
    assert {len(answer) for answer in answers} == {40}


def test_compiled_decoding_serves_prompts_of_any_lengths(compiler) -> None:
    eager = new_model()
    fast = copy.deepcopy(eager)
    fast.compile_decoding(3)
    prompts = [[3], [4, 5, 6, 7], [8, 9]]
    config = SampleConfig(temperature=0, max_new_tokens=10)
    stop_ids = [generate_batch(eager, prompts[:1], config)[0][4]]  # a row ends before others
    expected = generate_batch(eager, prompts, config, stop_ids)
    assert generate_batch(fast, prompts, config, stop_ids) == expected


def test_decoding_is_compiled_only_if_the_compiler_can_and_eager_again_on_demand(
    monkeypatch,
) -> None:
    model = new_model()

    def broken(function: object, **_: object) -> Callable[..., object]:
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RuntimeError, match=r"no working C\+\+"):
        model.compile_decoding()
    assert not model.decodes_compiled
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args: function(*args))
    model.compile_decoding()
    assert model.decodes_compiled
    model.use_eager()
    assert not model.decodes_compiled
