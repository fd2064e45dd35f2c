"""What a run leaves and says when it is stopped anywhere: only what was measured."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.cli.summary import describe_losses, describe_weights
from minimind.model.pretrained import load
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training.fit import RunResult
from minimind.training.metrics import STOPPED
from minimind.training.resume import TrainingError
from tests.support.tiny import CONFIG
from tests.test_resuming import FIRST, Fitting, assert_same_end, during, fail, metrics, send

START = Transformer(CONFIG).initialize(0).state_dict()


def distance(model: Transformer, _: object = None) -> dict[str, float]:
    """A "loss" that grows as a model leaves its first weights: the base stays the best."""
    moved = sum(float((x - START[name]).square().sum()) for name, x in model.state_dict().items())
    return {"validation_loss": 1 + math.sqrt(moved)}


def closeness(model: Transformer, _: object = None) -> dict[str, float]:
    """A "loss" that falls with every step: the last weights are the best."""
    return {"validation_loss": 9 - distance(model)["validation_loss"]}


@pytest.fixture(scope="module", params=[distance, closeness], ids=["base best", "last best"])
def measure(request: pytest.FixtureRequest) -> object:
    return request.param


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, measure) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    assert Fitting(out, tokenizer, measure=measure)().finished
    return out


@pytest.fixture
def fitting(tmp_path: Path, tokenizer: Tokenizer, measure) -> Fitting:
    return Fitting(tmp_path / "run", tokenizer, measure=measure)


def assert_holds_what_it_names(out: Path, outcome: RunResult, measure) -> None:
    assert measure(load(out)[0])["validation_loss"] == pytest.approx(outcome.best_loss, abs=1e-6)
    lines = {line["step"]: line for line in metrics(out) if "validation_loss" in line}
    for step, loss in (
        (0, outcome.first_loss),
        (outcome.best_step, outcome.best_loss),
        (outcome.last_loss_step, outcome.last_loss),
    ):
        assert lines[step]["validation_loss"] == loss


@pytest.mark.parametrize("links", [True, False], ids=["", "without hard links"])
def test_stopped_after_each_step_in_turn_a_run_holds_what_it_names_and_ends_the_same(
    links, fitting, whole, measure, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    steps = len(fitting.steps)
    for step in range(1, steps + 1):
        outcome = fitting(max_minutes=0)
        assert (outcome.finished, outcome.steps) == (False, step)
        assert_holds_what_it_names(fitting.out, outcome, measure)
        early = step <= FIRST  # its validation is left to the next call
        last = load_file(fitting.out / "last" / "model.safetensors")
        assert torch.equal(last["model.norm.weight"], load_last(fitting.out))
        if early:
            assert outcome.best_step == outcome.last_loss_step == step
            assert metrics(fitting.out)[-1][STOPPED] is True
            best = load_file(fitting.out / "model.safetensors")
            assert all(torch.equal(best[name], last[name]) for name in best)
            assert f"at step {step}, where it was stopped" in describe_losses(outcome)
            assert "stopped before its first scheduled validation" in describe_weights(outcome)
        else:
            done = (step - 1) // FIRST * FIRST
            assert outcome.best_step == (0 if measure is distance else done)
            assert f"at step {done}, its last validation" in describe_losses(outcome)
            assert "at the end" not in describe_losses(outcome)
            assert describe_weights(outcome) == f"the best weights, of step {outcome.best_step}"
    outcome = fitting()
    assert outcome.finished
    assert "at the end" in describe_losses(outcome)
    assert_holds_what_it_names(fitting.out, outcome, measure)
    assert_same_end(fitting.out, whole)
    assert not any(STOPPED in line for line in metrics(fitting.out))
    assert not (fitting.out / "checkpoints" / "before.safetensors").exists()


def load_last(out: Path) -> torch.Tensor:
    newest = max((out / "checkpoints").glob("step-*"))
    return load_file(newest / "tensors.safetensors")["weights/model.norm.weight"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_checkpoint_is_there_before_the_stopped_weights_are_measured(
    number, fitting, monkeypatch
) -> None:
    there: list[bool] = []
    measured = fitting.measure

    def look(model: Transformer, precision: object) -> dict[str, float]:
        there.append(any((fitting.out / "checkpoints").glob("step-00000003")))
        return measured(model, precision)

    during(3, send(number), monkeypatch)
    assert fitting(measure=look).steps == 3
    assert there == [False, True]  # of step 0, of the stop


def test_a_run_killed_while_it_is_measured_at_its_stop_ends_the_same(
    fitting, whole, monkeypatch
) -> None:
    measured, calls = fitting.measure, []

    def interrupted(model: Transformer, precision: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(model, precision)

    with pytest.raises(KeyboardInterrupt):
        fitting(measure=interrupted, max_minutes=0)
    assert fitting().finished
    assert_same_end(fitting.out, whole)


def test_a_record_does_not_outlive_the_weights_that_it_names(fitting, measure, monkeypatch) -> None:
    """Stopped, its record written; resumed, then killed: after a better validation, or before."""
    for blow_at in (FIRST - 1, FIRST + 1):
        shutil.rmtree(fitting.out, ignore_errors=True)
        fitting(max_minutes=0)
        for name, text in (
            ("run.json", "{}"),
            ("README.md", "# A chat model fine-tuned with minimind 1"),
        ):
            (fitting.out / name).write_text(text)
        before = (fitting.out / "model.safetensors").read_bytes()
        with monkeypatch.context() as patch:
            # `during` counts the micro-batches of this call, which begins at step 2.
            during(blow_at, fail, patch)
            with pytest.raises(RuntimeError, match="a failing kernel"):
                fitting()
        same = (fitting.out / "model.safetensors").read_bytes() == before
        assert same == (blow_at < FIRST)
        assert (fitting.out / "run.json").exists() == same
        assert (fitting.out / "README.md").exists() == same


def test_a_readme_of_the_users_own_is_not_a_record(fitting) -> None:
    fitting(max_minutes=0)
    (fitting.out / "README.md").write_text("mine")
    fitting()
    assert (fitting.out / "README.md").read_text() == "mine"


@pytest.mark.parametrize("loss", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("call", "match"),
    [
        (1, r"^step 0: the validation loss is (nan|inf); nothing is trained yet: use --precision"),
        (2, rf"^step {FIRST}: the validation loss is .*; lower --learning-rate .* are intact$"),
    ],
)
def test_a_validation_that_is_not_finite_ends_the_run(call, match, loss, fitting) -> None:
    measured, calls = fitting.measure, []

    def breaks(model: Transformer, precision: object) -> dict[str, float]:
        calls.append(1)
        return {"validation_loss": loss} if len(calls) == call else measured(model, precision)

    with pytest.raises(TrainingError, match=match):
        fitting(measure=breaks)
    lines = metrics(fitting.out)
    assert all(math.isfinite(line.get("validation_loss", 0)) for line in lines)
    names = [path.name for path in (fitting.out / "checkpoints").glob("*")]
    assert sorted(names) == ([] if call == 1 else ["step-00000002", "step-00000004"])


def test_a_measurement_at_the_stop_that_is_not_finite_ends_the_run_with_its_checkpoint(
    fitting,
) -> None:
    losses = iter([1.0, math.nan])
    with pytest.raises(TrainingError, match=r"step 1: the validation loss is nan; lower"):
        fitting(measure=lambda *_: {"validation_loss": next(losses)}, max_minutes=0)
    assert [path.name for path in (fitting.out / "checkpoints").iterdir()] == ["step-00000001"]


def test_a_run_without_a_checkpoint_says_that_it_begins_again(fitting, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        during(1, fail, patch)
        with pytest.raises(RuntimeError):
            fitting()
    assert fitting().finished
    assert fitting.said == ["no checkpoint yet: starting from the beginning"]
    assert json.loads((fitting.out / "metrics.jsonl").read_text().splitlines()[0])["step"] == 0
    assert os.listdir(fitting.out / "checkpoints")
