"""What commands share: devices, folders, validation, the metrics file."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.data.dataset import Dataset, Example
from minimind.data.plan import Steps, make_steps
from minimind.data.show import show_row
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import fit as module
from minimind.training import loop
from minimind.training import step as step_module
from minimind.training.environment import choose_device, peak_memory
from minimind.training.fit import Measure, RunConfig, RunResult, fit, validation_loss
from minimind.training.metrics import StepLogger
from minimind.training.resume import TrainingError
from minimind.training.state import TrainConfig
from tests.support.tiny import CONFIG


def examples(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(4, 30, (count,), generator=generator).tolist():
        ids = torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()
        rows.append(Example(ids, [False, False] + [True] * (length - 2)))
    return Dataset.from_examples(rows)


def run(
    model: Transformer,
    tokenizer: Tokenizer,
    steps: Steps,
    precision: str,
    out: Path,
    validation: Measure | None = None,
    save_every: int = 0,
    **options: int,
) -> RunResult:
    config = TrainConfig(precision=precision)
    run = RunConfig(save_every=save_every, **options)
    return fit(model, tokenizer, steps, config, run, out, {}, {}, validation)


def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_cut() -> None:
    model = Transformer(CONFIG).initialize(0)
    rows = examples(12)
    losses = []
    for budget in (30, 100, 10_000):
        (batches,) = make_steps(rows, tokens_per_step=10**6, tokens_per_batch=budget)
        losses.append(validation_loss(model, batches, "fp32"))
    total, count = 0.0, 0
    for row in rows:
        logits = model(torch.tensor([row.input_ids]))[0].detach().double().log_softmax(-1)
        for position in range(2, len(row)):
            total -= float(logits[position - 1, row.input_ids[position]])
            count += 1
    assert losses == pytest.approx([total / count] * 3, rel=1e-6)


def test_validating_leaves_no_gradient_and_trains_on() -> None:
    model = Transformer(CONFIG).initialize(0)
    (batches,) = make_steps(examples(2), tokens_per_step=10**6)
    validation_loss(model, batches, "fp32")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_a_device_that_is_not_there_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"device quantum: .*use auto, or a device that is here"):
        choose_device("quantum")
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for there, name in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert asked == []
        assert choose_device("auto") == torch.device(name)
    assert asked == ["high"]  # TF32, where a GPU was found too


# A step that isn't finite, and when the host comes to know of it


@pytest.fixture(params=[0, 1], ids=["read at once", "read a step late, as on CUDA"])
def behind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    steps: int = request.param
    monkeypatch.setattr(module, "StepLogger", lambda *of_run: StepLogger(*of_run[:-1], steps))
    return steps


def train_with_a_bad_step(
    out: Path, tokenizer: Tokenizer, bad: int, save_every: int, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, torch.Tensor]]:
    """Weights after each step of a run whose step `bad` has a loss that is no number."""
    out.mkdir()
    model = Transformer(CONFIG).initialize(0)
    steps = make_steps(examples(12), tokens_per_step=60)
    assert len(steps) > bad
    seen: list[dict[str, torch.Tensor]] = []
    train_step, batch_loss = loop.train_step, step_module.batch_loss

    def loss_of_a_bad_step(*arguments: object) -> torch.Tensor:
        loss = batch_loss(*arguments)
        return loss * float("nan") if len(seen) + 1 == bad else loss

    def note(*arguments: object) -> loop.StepResult:
        result = train_step(*arguments)
        seen.append({name: x.detach().clone() for name, x in model.state_dict().items()})
        return result

    monkeypatch.setattr(step_module, "batch_loss", loss_of_a_bad_step)
    monkeypatch.setattr(loop, "train_step", note)
    first, last = steps.rows_of(bad - 1)[[0, -1]]
    named = f"^step {bad}: the loss is nan .*its rows are row {first}, .*row {last}\\. Lower"
    with pytest.raises(TrainingError, match=named) as error:
        run(model, tokenizer, steps, "fp32", out, save_every=save_every)
    aside = out / "non_finite_rows.jsonl"
    assert f"look at {aside}; checkpoints in {out} are from before it" in str(error.value)
    entries = [json.loads(line) for line in aside.read_text(encoding="utf-8").splitlines()]
    assert [entry["row"] for entry in entries] == [f"row {row}" for row in steps.rows_of(bad - 1)]
    example = steps.dataset[first]
    assert (entries[0]["input_ids"], entries[0]["loss_mask"]) == (
        example.input_ids,
        example.loss_mask,
    )
    assert entries[0]["shown"] == show_row(example, tokenizer, colour=False)
    return seen


def test_a_bad_step_stops_the_run_and_leaves_the_weights_as_they_were(
    behind: int, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    seen = train_with_a_bad_step(out, tokenizer, 3, save_every=2, monkeypatch=monkeypatch)
    assert len(seen) == 3 + behind  # a late reader has begun one more
    before, after = seen[1], seen[2]
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert not torch.equal(seen[0]["model.norm.weight"], before["model.norm.weight"])
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000002"]
    kept = load_file(out / "checkpoints" / "step-00000002" / "tensors.safetensors")
    assert torch.equal(kept["weights/model.norm.weight"], before["model.norm.weight"])
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


def test_nothing_is_saved_before_the_last_step_is_known_to_be_finite(
    behind: int, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    seen = train_with_a_bad_step(out, tokenizer, 2, save_every=2, monkeypatch=monkeypatch)
    assert len(seen) == 2
    assert not (out / "checkpoints").exists()


def test_steps_that_overflow_fp16_are_counted_and_the_run_continues(
    behind: int, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_large = partial(torch.amp.GradScaler, init_scale=2.0**30)
    monkeypatch.setattr(torch.amp, "GradScaler", too_large)
    steps = make_steps(examples(12), tokens_per_step=60)
    model = Transformer(CONFIG).initialize(0)
    outcome = run(model, tokenizer, steps, "fp16", tmp_path)
    lines = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    norms = [json.loads(line)["grad_norm"] for line in lines]
    assert outcome.finished
    assert outcome.skipped == norms.count(None) > 0


def test_a_validation_measures_what_it_is_told_and_the_best_is_by_loss(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    model = Transformer(CONFIG).initialize(0)

    def measure(model: Transformer, precision: str) -> dict[str, float]:
        return {"validation_loss": next(losses), "bits_per_byte": 1.5}

    steps = make_steps(examples(12), tokens_per_step=60)[:2]
    outcome = run(model, tokenizer, steps, "fp32", tmp_path, measure, eval_every=1)
    assert (outcome.first_loss, outcome.best_loss, outcome.best_step) == (3.0, 1.0, 1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 0, "validation_loss": 3.0, "bits_per_byte": 1.5}
    printed = capsys.readouterr().err
    for step, loss in enumerate((3.0, 1.0, 2.0)):
        assert f"step {step}: validation loss {loss:.4f}, bits per byte 1.5000" in printed


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"eval_every": 0}, "eval_every is 0; use 1 or more"),
        ({"save_every": -1}, "save_every is -1; use 0 or more"),
        ({"max_minutes": float("nan")}, "max_minutes is nan; use 0 or more"),
    ],
)
def test_a_run_that_can_not_be_is_refused(options: dict[str, float], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RunConfig(**options)


def test_the_peak_of_memory_is_plausible_and_needs_no_module_that_windows_lacks() -> None:
    assert 0.05 < float(peak_memory().split(" GB")[0]) < 1000
    code = "import sys; sys.modules['resource'] = None; import minimind.training.environment"
    subprocess.run([sys.executable, "-c", code], check=True)
