"""Where a run is killed or a checkpoint damaged, the weights at the top are those it names."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from minimind.atomic_io import link_or_copy
from minimind.chat import __main__ as chat
from minimind.cli.summary import describe_folder
from minimind.data.plan import Batches, Steps, make_steps
from minimind.evaluate import __main__ as evaluate
from minimind.model.pretrained import load
from minimind.model.transformer import Transformer
from minimind.sft import __main__ as sft
from minimind.tokenizer import Tokenizer
from minimind.training import fit as module
from minimind.training.fit import RunConfig, RunResult, fit, validation_loss
from minimind.training.run_folder import bytes_of, describe_unfinished, read_run
from minimind.training.state import TrainConfig
from tests.support.tiny import CONFIG
from tests.test_fit import examples

VALIDATION = Batches(examples(3), 1000)
STEPS: Steps = make_steps(examples(12), tokens_per_step=60, tokens_per_batch=40, epochs=5)


class Killed(BaseException):
    """Stands for a kill: nothing in the package catches it."""


def a_run(
    out: Path, tokenizer: Tokenizer, precision: str, kill_at: int | None = None, stop: bool = False
) -> RunResult:
    out.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = Transformer(CONFIG).initialize(0)
    config = TrainConfig(precision=precision, learning_rate=3e-3)
    run = RunConfig(eval_every=3, save_every=8, max_minutes=0 if stop else None)

    class Logger(module.StepLogger):
        def write(self, values: dict[str, float]) -> None:
            super().write(values)
            if values["step"] == kill_at and "loss" in values:
                raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "StepLogger", Logger)
        return fit(model, tokenizer, STEPS, config, run, out, {}, {}, VALIDATION)


def assert_top_is_what_is_named(out: Path, outcome: RunResult, precision: str) -> None:
    loaded = load(out)[0]
    assert validation_loss(loaded, VALIDATION, outcome.precision) == pytest.approx(
        outcome.best_loss, abs=1e-6 if precision == "fp32" else 2e-4
    )
    named = {
        "step": outcome.best_step,
        "validation_loss": outcome.best_loss,
        "finished": outcome.finished,
    }
    assert read_run(out) == named
    assert read_run(out / "last")["step"] == outcome.steps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("links", [True, False], ids=["", "without hard links"])
def test_killed_after_a_later_validation_and_stopped_at_once_a_run_holds_what_it_names(
    precision, links, tokenizer, tmp_path, monkeypatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("no hard links here")

    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    assert len(STEPS) == 20
    for kill_at in (5, 7, 10, 13, 15, 17, 19) if links else (13,):
        out = tmp_path / str(kill_at)
        with pytest.raises(Killed):
            a_run(out, tokenizer, precision, kill_at)
        outcome = a_run(out, tokenizer, precision, stop=True)
        assert outcome.steps == (kill_at - 1) // 8 * 8 + 1
        assert_top_is_what_is_named(out, outcome, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_where_the_newest_checkpoints_are_damaged_the_top_goes_back_with_the_run(
    precision, tokenizer, tmp_path
) -> None:
    a_run(tmp_path / "whole", tokenizer, precision)
    for name in ("tensors.safetensors", "best.safetensors", "state.json", "manifest.json"):
        out = tmp_path / name
        shutil.copytree(tmp_path / "whole", out)
        newest = max((out / "checkpoints").glob("step-*"))
        (newest / name).write_bytes(b"torn")  # copies: no links any more
        (out / "run.json").write_text("{}")
        better = read_run(out)["step"] > 16
        outcome = a_run(out, tokenizer, precision, stop=True)
        assert outcome.steps == 17
        assert_top_is_what_is_named(out, outcome, precision)
        assert not (better and (out / "run.json").exists())
    assert better  # so that weights really went back


def test_the_best_weights_are_a_second_name_that_nothing_writes_to(tokenizer, tmp_path) -> None:
    a_run(tmp_path, tokenizer, "fp32")
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    best, top = newest / "best.safetensors", tmp_path / "model.safetensors"
    assert best.samefile(top)
    before = best.read_bytes()
    a_run(tmp_path, tokenizer, "fp32")  # finished: nothing moves
    assert best.read_bytes() == before
    manifest = json.loads((newest / "manifest.json").read_text())
    assert manifest["best.safetensors"]["bytes"] == len(before)


def test_the_disk_figure_counts_links_once_and_says_what_deleting_frees(
    tokenizer, tmp_path
) -> None:
    a_run(tmp_path, tokenizer, "fp32")
    total = bytes_of(tmp_path)
    said = describe_folder(tmp_path, finished=True)
    shutil.rmtree(tmp_path / "checkpoints")
    freed = total - bytes_of(tmp_path)
    assert said.startswith(f"{tmp_path} takes {total / 1e6:.1f} MB, {freed / 1e6:.1f} MB of it in")


def test_a_run_without_validation_has_no_best_weights_among_its_checkpoints(
    tokenizer, tmp_path
) -> None:
    model = Transformer(CONFIG).initialize(0)
    config = TrainConfig(precision="fp32")
    fit(model, tokenizer, STEPS[:3], config, RunConfig(), tmp_path, {}, {})
    assert not list((tmp_path / "checkpoints").glob("*/best.safetensors"))
    assert read_run(tmp_path) == {"step": 3, "validation_loss": None, "finished": True}


@pytest.mark.parametrize("kill_at", [1, 5])
def test_weights_of_a_run_that_has_not_ended_say_so(kill_at, tokenizer, tmp_path) -> None:
    with pytest.raises(Killed):
        a_run(tmp_path, tokenizer, "fp32", kill_at)
    which = "the untuned base, step 0" if kill_at == 1 else "the weights of step 3"
    said = f"{tmp_path}: its run hasn't ended; these are {which}"
    assert describe_unfinished(tmp_path) == said
    a_run(tmp_path, tokenizer, "fp32")
    assert describe_unfinished(tmp_path) is describe_unfinished(tmp_path / "last") is None


def test_a_link_or_where_there_is_none_a_copy(tmp_path, monkeypatch) -> None:
    (tmp_path / "a").write_text("x")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError()))
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "x"
    assert not (tmp_path / "c").samefile(tmp_path / "a")


def test_commands_that_load_weights_of_an_unfinished_run_say_so_in_one_line(
    tokenizer, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    out, rows = tmp_path / "run", tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}?", "response": "{n}."}}\n' for n in range(9)))
    commands = [
        (chat, ["--prompt", "a", "--max-new-tokens", "1", "--model", str(out)]),
        (evaluate, [str(rows), "--no-generate", "--out", f"{out}-E", "--model", str(out)]),
        (sft, [str(rows), "--dry-run", "--model", str(out)]),
    ]
    with pytest.raises(Killed):
        a_run(out, tokenizer, "fp32", 5)
    for finished in (False, True):
        for command, arguments in commands:
            capsys.readouterr()
            overwrite = ["--overwrite"] * (command is evaluate and finished)
            assert command.main([*arguments, *overwrite]) == 0
            errors = capsys.readouterr().err.splitlines()
            said = f"note: {out}: its run hasn't ended; these are the weights of step 3"
            assert errors.count(said) == (0 if finished else 1), errors
        a_run(out, tokenizer, "fp32")
