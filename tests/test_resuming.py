"""A stopped run resumes to the same bits, or says why not; another run is refused by name."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minimind.atomic_io import folder_lock
from minimind.data.plan import Batches, Steps, make_steps
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import environment
from minimind.training import resume as module
from minimind.training import step as step_module
from minimind.training.fit import RunConfig, RunResult, fit
from minimind.training.optim import schedule_at
from minimind.training.resume import TrainingError
from minimind.training.state import TrainConfig
from tests.support.tiny import CONFIG
from tests.test_fit import examples

FP32 = TrainConfig(precision="fp32", learning_rate=1e-3)
FIRST = 5  # the step that is interrupted
ROWS = examples(12)
VALIDATION = Batches(examples(3), 1000)


def plan(epochs: int = 3, tokens_per_batch: int = 40, seed: int = 0) -> Steps:
    return make_steps(
        ROWS, tokens_per_step=60, tokens_per_batch=tokens_per_batch, epochs=epochs, seed=seed
    )


@dataclass
class Fitting:
    """A tiny run, and what it says."""

    out: Path
    tokenizer: Tokenizer
    epochs: int = 3
    options: dict[str, object] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    config: TrainConfig = FP32
    keep: int = 2
    max_minutes: float | None = None
    model: dict[str, object] = field(default_factory=dict)
    seed: int = 0
    data: str = "1234"
    tokens_per_batch: int = 40
    measure: Callable[..., dict[str, float]] | None = None

    @property
    def steps(self) -> Steps:
        return plan(self.epochs, self.tokens_per_batch, self.seed)

    def __call__(self, **changes: object) -> RunResult:
        now = replace(self, **changes)
        now.out.mkdir(exist_ok=True)
        torch.manual_seed(0)  # a checkpoint holds the random state, too
        model = Transformer(replace(CONFIG, **now.model)).initialize(0)
        made_of = (model, now.tokenizer, now.steps, now.config)
        identity = {"data": now.data}
        run = RunConfig(
            eval_every=FIRST,
            save_every=2,
            keep_checkpoints=now.keep,
            max_minutes=now.max_minutes,
        )
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                measure = now.measure or VALIDATION
                return fit(*made_of, run, now.out, identity, now.options, measure)
        finally:
            self.said += printed.getvalue().splitlines()


@pytest.fixture
def fitting(tmp_path: Path, tokenizer: Tokenizer) -> Fitting:
    return Fitting(tmp_path / "run", tokenizer)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """What a run that is never interrupted leaves."""
    out = tmp_path_factory.mktemp("whole") / "run"
    assert Fitting(out, tokenizer)().finished
    return out


def during(step: int, blow: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `blow` in the middle of a step, after its first micro-batch."""
    seen = []
    batch_loss = step_module.batch_loss
    batches = [len(micro) for micro in islice(plan(), step)]
    assert batches[-1] > 1
    calls = sum(batches[:-1]) + 1

    def note(*arguments: object) -> torch.Tensor:
        seen.append(1)
        if len(seen) == calls:
            blow()
        return batch_loss(*arguments)

    monkeypatch.setattr(step_module, "batch_loss", note)


def fail() -> None:
    raise RuntimeError("a failing kernel")


def send(*numbers: signal.Signals) -> Callable[[], None]:
    return lambda: [os.kill(os.getpid(), number) for number in numbers] and None


def assert_same_end(out: Path, whole: Path) -> None:
    """Weights, best weights, moments and the validation losses."""
    last = max((whole / "checkpoints").glob("step-*")).relative_to(whole) / "tensors.safetensors"
    for name in ("model.safetensors", "last/model.safetensors", last):
        ours, theirs = load_file(out / name), load_file(whole / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    ours, theirs = ([line | {"seconds": 0} for line in metrics(f)] for f in (out, whole))
    assert ours == theirs


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def rewrite_extra(checkpoint: Path, extra: dict[str, object]) -> None:
    """Make a checkpoint one that another version wrote."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"extra": extra}))
    content = path.read_bytes()
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest[path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


def planned_rates(steps: int) -> list[float]:
    warmup = round(FP32.warmup_ratio * steps)
    return [1e-3 * schedule_at(step, steps, warmup, 0.1) for step in range(steps)]


# The same run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_a_signal_the_step_is_finished_and_saved_and_the_run_resumes(
    number, fitting, whole, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        during(FIRST, send(number), patch)
        outcome = fitting()
    assert (outcome.finished, outcome.steps) == (False, FIRST)
    steps = len(fitting.steps)
    assert fitting.said == []
    assert fitting().finished
    assert fitting.said == [f"resuming from step {FIRST} of {steps}"]
    assert_same_end(fitting.out, whole)


def test_a_second_ctrl_c_stops_at_once_and_the_run_resumes_from_the_checkpoint_before(
    fitting, whole, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        during(FIRST, send(signal.SIGINT, signal.SIGINT), patch)
        with pytest.raises(KeyboardInterrupt):
            fitting()
    assert fitting().finished
    assert fitting.said == [f"resuming from step {FIRST - 1} of {len(fitting.steps)}"]
    assert_same_end(fitting.out, whole)


def test_after_an_exception_a_run_resumes_from_the_checkpoint_before(
    fitting, whole, monkeypatch
) -> None:
    with monkeypatch.context() as patch:
        during(FIRST, fail, patch)
        with pytest.raises(RuntimeError, match="a failing kernel"):
            fitting()
    assert fitting().finished
    assert_same_end(fitting.out, whole)


def test_a_run_of_many_short_calls_ends_like_one_long_call(fitting, whole) -> None:
    """Each call does one step, whether validation is due after it or not."""
    steps = len(fitting.steps)
    for step in range(1, steps + 1):
        outcome = fitting(max_minutes=0)
        assert (outcome.finished, outcome.steps) == (False, step)
    assert fitting().finished  # there is only validation left to do
    assert_same_end(fitting.out, whole)


def test_a_damaged_checkpoint_is_passed_over_aloud_and_the_run_ends_the_same(
    fitting, whole
) -> None:
    fitting()
    newest = max((fitting.out / "checkpoints").glob("step-*"))
    (newest / "manifest.json").unlink()
    assert fitting().finished
    assert f"{newest}: is damaged (" in fitting.said[0]
    assert fitting.said[0].endswith("; using the one before it")
    assert_same_end(fitting.out, whole)


def test_only_so_many_checkpoints_are_kept(fitting) -> None:
    fitting(keep=1)
    assert len(list((fitting.out / "checkpoints").iterdir())) == 1
    assert fitting().finished  # another --keep-checkpoints is no other run


def test_a_checkpoint_holds_what_the_run_was_made_of(fitting) -> None:
    fitting(options={"--save-every": 2})
    newest = max((fitting.out / "checkpoints").glob("step-*"))
    state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
    fingerprint = state["extra"]["fingerprint"]
    assert fingerprint["options"] == {"--save-every": 2}
    assert fingerprint["identity"]["data"] == "1234"
    assert fingerprint["identity"]["tokenizer"] == fitting.tokenizer.fingerprint
    assert fingerprint["identity"]["--learning-rate"] == 1e-3
    assert fingerprint["identity"]["config.json's hidden_size"] == CONFIG.hidden_size
    assert {"torch", "numpy", "minimind", "threads", "processor", "device"} <= set(
        fingerprint["environment"]
    )
    assert state["precision"] == "fp32"


def test_the_learning_rate_of_a_resumed_run_ends_where_planned(fitting) -> None:
    for _ in range(2):
        fitting(max_minutes=0)
    fitting()
    rates = [line["learning_rate"] for line in metrics(fitting.out) if "learning_rate" in line]
    total = len(fitting.steps)
    assert rates == [1e-3 * schedule_at(i, total, round(0.03 * total), 0.1) for i in range(total)]
    assert abs(rates[-1] / 1e-4 - 1) <= 1e-12


# Not to the last bit


def test_what_makes_a_resumed_run_not_bit_exact_is_said(fitting, monkeypatch) -> None:
    fitting(max_minutes=0)
    fitting.said.clear()
    newer = environment.versions() | {"torch": "9.9", "threads": "7", "tokenizers": "9.9"}
    monkeypatch.setattr(module, "versions", lambda: newer)
    monkeypatch.setattr(module, "processor", lambda: "an abacus")
    assert fitting(tokens_per_batch=41).finished
    said = [sentence for sentence in fitting.said if sentence.startswith("not bit-exact: ")]
    names = [sentence.removeprefix("not bit-exact: ").partition(" was ")[0] for sentence in said]
    assert set(names) == {"torch", "threads", "processor", "tokens per batch"}
    assert said[names.index("torch")].endswith(" and is 9.9")
    assert "not bit-exact: tokens per batch was 40 and is 41" in said


def test_activation_checkpointing_may_change_when_a_run_is_resumed(fitting) -> None:
    fitting(max_minutes=0)
    fitting.said.clear()
    fitting.config = replace(fitting.config, activation_checkpointing=True)
    assert fitting().finished
    assert not any("another run" in sentence for sentence in fitting.said)


def test_more_epochs_follow_the_longer_runs_cosine_and_say_so(fitting) -> None:
    assert fitting().finished
    done = len(fitting.steps)
    fitting.said.clear()
    assert fitting(epochs=5).finished
    longer = replace(fitting, epochs=5)
    total = len(longer.steps)
    assert fitting.said == [
        f"resuming from step {done} of {total}",
        f"{total} steps are planned and were {done}: from here on the learning rate follows the "
        "longer run's cosine",
    ]
    rates = [line["learning_rate"] for line in metrics(fitting.out) if "learning_rate" in line]
    warmup = round(0.03 * total)
    assert rates[done:] == [1e-3 * schedule_at(i, total, warmup, 0.1) for i in range(done, total)]


# Another run


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"data": "5678"}, r"of another run: data was 1234 and is 5678; use the same data"),
        (
            {"data": "5678", "options": {"--max-length": 64, "--resume": True}},
            r": data was 1234 and is 5678, --max-length was None and is 64; use",
        ),
        (
            {
                "config": replace(FP32, weight_decay=0.5),
                "options": {"--weight-decay": 0.5, "--epochs": 3},
            },
            r"run: --weight-decay was 0\.01 and is 0\.5, --weight-decay was None and is 0\.5, --e",
        ),
        ({"config": replace(FP32, betas=(0.9, 0.5))}, r"--betas was \[0\.9, 0\.95\] and is \[0\.9"),
        (
            {"model": {"intermediate_size": 48}},
            r"config\.json's intermediate_size was 64 and is",
        ),
        ({"epochs": 2}, r"steps was 12 and is 8; use .* at least as many steps, or another --out"),
        ({"seed": 1}, r"step 1 of its checkpoint trained other rows than this plan has there; use"),
    ],
)
def test_another_run_is_refused_by_name(changes, match, fitting) -> None:
    fitting(max_minutes=0)
    before = (fitting.out / "metrics.jsonl").read_bytes()
    with pytest.raises(TrainingError, match=match):
        fitting(**changes)
    assert (fitting.out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("what", ["tokenizer", "chat template"])
def test_another_tokenizer_or_template_is_refused_by_name(what, fitting, monkeypatch) -> None:
    fitting(max_minutes=0)
    if what == "tokenizer":
        monkeypatch.setattr(fitting.tokenizer, "fingerprint", "another")
    else:
        monkeypatch.setattr(module, "chat_template", lambda *frame: "another")
    with pytest.raises(TrainingError, match=f"its checkpoint is of another run: {what} was"):
        fitting()


def test_where_no_checkpoint_is_whole_the_run_is_not_begun_again_over_its_results(fitting) -> None:
    assert fitting().finished
    for path in (fitting.out / "checkpoints").glob("step-*"):
        (path / "manifest.json").unlink()
    before = (fitting.out / "model.safetensors").read_bytes()
    with pytest.raises(TrainingError, match="none of its checkpoints is complete; restore one"):
        fitting()
    assert (fitting.out / "model.safetensors").read_bytes() == before
    assert (fitting.out / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("extra", [{"fingerprint": {}}, {"origin": {}, "steps": [], "losses": []}])
def test_a_checkpoint_of_another_version_is_refused_in_one_line(extra, fitting) -> None:
    assert fitting().finished
    newest = max((fitting.out / "checkpoints").glob("step-*"))
    rewrite_extra(newest, extra)
    match = (
        "its checkpoint is of another version of minimind .*; finish the run with that version, or "
        "start a new one from its weights with --model .*run and another --out"
    )
    with pytest.raises(TrainingError, match=match):
        fitting()


def test_two_runs_do_not_write_into_one_folder(fitting) -> None:
    fitting.out.mkdir()
    with folder_lock(fitting.out), pytest.raises(BlockingIOError, match="another run writes there"):
        fitting()
    assert fitting().finished  # once the other is gone
