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

from minimind.data.dataset import Dataset, Example
from minimind.data.packing import Batch, make_batch
from minimind.data.padding import shape_of_run
from minimind.model import compiling
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, generate_batch
from minimind.training.loop import train
from minimind.training.state import TrainConfig
from tests.support.ragged import new_model, ragged_rows

EAGER = TrainConfig(precision="fp32", learning_rate=1e-3)
COMPILED = replace(EAGER, compile="on")


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
    model.compile_training()
    return model


def varied_steps(count: int) -> list[list[Batch]]:
    """Steps of other lengths, cuts and supervised counts each; the smallest one too."""
    dataset = ragged_rows(64)
    generator = np.random.default_rng(0)
    one_token = Dataset.from_examples([Example([3, 4], [False, True])])
    steps = [[make_batch(one_token, np.array([0]))]]
    while len(steps) < count:
        rows = generator.choice(64, generator.integers(1, 5), replace=False)
        steps.insert(0, [make_batch(dataset, rows)])
    return steps


def test_no_step_is_compiled_again_however_steps_vary(compiled) -> None:
    steps = varied_steps(1000)
    assert len({len(batch) for (batch,) in steps}) > 100
    assert len({batch.documents.lengths for (batch,) in steps}) > 500
    large = Dataset.from_examples([Example([7] * 50, [False] + [True] * 49)] * 100)
    steps.append([make_batch(large, np.arange(100))])  # beyond the shape: it runs eagerly
    assert not shape_of_run(steps).holds(steps[-1][0])
    run = train(compiled, steps, COMPILED)
    results = [next(run), next(run)]
    with torch.compiler.set_stance("fail_on_recompile"):  # an error
        results += run
    assert len(results) == 1001
    # What stands before attention, and after it for all tokens and for supervised ones.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
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


def test_without_gradients_the_compiled_model_runs_eagerly(compiled) -> None:
    fast, slow = copy.deepcopy(compiled), new_model()
    fast.load_state_dict(slow.state_dict())
    ids = torch.arange(6).view(2, 3)
    with torch.compiler.set_stance("fail_on_recompile"), torch.no_grad():
        assert torch.equal(fast(ids), slow(ids))


def test_a_copy_of_a_compiled_model_computes_with_its_own_weights(compiled) -> None:
    other = copy.deepcopy(compiled)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    ids = torch.zeros(1, 3, dtype=torch.long)
    assert compiled(ids).abs().sum() > 0
    assert other(ids).abs().sum() == 0


@pytest.mark.parametrize(
    "autocast", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str
)
def test_a_compiled_step_in_half_precision_is_near_the_eager_one(compiler, autocast) -> None:
    precision = "bf16" if autocast == torch.bfloat16 else "fp16"
    losses = []
    for compile in ("off", "on"):
        config = replace(EAGER, precision=precision, compile=compile)
        losses.append([r.loss.item() for r in train(new_model(), varied_steps(5), config)])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def test_where_compiling_fails_the_reason_is_said_once_and_the_run_continues(monkeypatch) -> None:
    calls = []

    def broken(function: object, **_: object) -> Callable[..., object]:
        def call(*args: object) -> object:
            calls.append(function)
            raise torch._dynamo.exc.InternalTorchDynamoError("no working C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    model, ids = new_model(), torch.arange(4)[None]
    expected = model(ids)
    compiling.compiled.cache_clear()
    try:
        model.compile_training()
        with pytest.warns(UserWarning, match="^not compiled: .*no working C") as notes:
            states = [model(ids), model(ids)]
        assert all(torch.equal(state, expected) for state in states)
        assert len(notes) == len(calls) == 2  # what stands before attention, and after
        model.compile_training()  # another run tries, and says, it again
        with pytest.warns(UserWarning, match="^not compiled: .*no working C"):
            model(ids)
    finally:
        compiling.compiled.cache_clear()


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


def test_decoding_stays_eager_where_the_compiler_fails(monkeypatch) -> None:
    model = new_model()
    config = SampleConfig(temperature=0, max_new_tokens=5)
    expected = generate_batch(model, [[3, 4]], config)

    def broken(function: object, **_: object) -> Callable[..., object]:
        def call(*args: object) -> object:
            raise RuntimeError("no working C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.raises(RuntimeError, match=r"no working C\+\+"):
        model.compile_decoding()
    assert generate_batch(model, [[3, 4]], config) == expected
