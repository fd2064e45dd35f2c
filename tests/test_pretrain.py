"""Pretraining uses the same loop: text in, a Hugging Face folder out, and it can be resumed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from minimind.cli.command import EXIT_DATA, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from minimind.data.selection import split_by_prompt
from minimind.evaluate.evaluation import score_documents
from minimind.model.pretrained import load
from minimind.pretrain import __main__ as pretrain
from minimind.pretrain.corpus import build_corpus
from minimind.sft import __main__ as sft
from minimind.training import loop
from tests.support.tiny import CONFIG, write_base
from tests.test_resuming import rewrite_extra

KOREAN = ["{}번 고양이가 생선을 {}마리 먹고 잠을 잡니다.", "{}일에는 비가 {}번 왔어요."]
ENGLISH = ["Cat number {} eats {} fish and falls asleep.", "On day {} it rained {} times."]
SMALL = ("--max-length", "32", "--tokens-per-step", "256", "--tokens-per-batch", "256")


def main(arguments: list[str]) -> int:
    """The exit code, whichever way it comes."""
    try:
        return pretrain.main(arguments)
    except SystemExit as error:  # how tyro ends
        return int(error.code or 0)


def write(path: Path, sentences: list[str], count: int) -> Path:
    texts = [sentences[n % 2].format(n, n * n % 97) for n in range(count)]
    rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(rows), encoding="utf-8")
    return path


@pytest.fixture
def shape(tmp_path: Path) -> tuple[str, str]:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(CONFIG.to_hf()))
    return "--config", str(path)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    korean = write(tmp_path / "ko.jsonl", KOREAN, 200)
    english = write(tmp_path / "en.jsonl", ENGLISH, 60)
    return [str(korean), str(english)]


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "run.json").read_text(encoding="utf-8"))
    return found


def test_text_becomes_a_model_and_its_bits_per_byte_are_those_that_evaluation_finds(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = (*SMALL, *shape, "--val-fraction", "0.1", "--out", str(out), "--epochs", "2")
    assert main([*files, *options, "--eval-every", "15"]) == 0
    model, tokenizer = load(out)
    assert (model.config.hidden_size, tokenizer.vocab_size) == (32, 8192)
    found = record(out)
    assert found["outcome"]["finished"] is True
    first, *_, last = found["validations"]
    assert last["step"] == found["outcome"]["steps"]
    assert last["bits_per_byte"] < first["bits_per_byte"]
    assert {"bits_per_byte_hangul", "bits_per_byte_latin"} < set(last)
    assert "bits per byte hangul" in capsys.readouterr().err

    windows, _ = build_corpus(files, tokenizer, 32)
    held_back = split_by_prompt(windows, 0.1)[1]
    model, _ = load(out / "last")  # in bfloat16; what was measured were float32 weights
    for name, file in (("", None), ("_hangul", 0), ("_latin", 1)):
        chosen = held_back if file is None else held_back.select(held_back.column("file") == file)
        bits, text_bytes = score_documents(model, tokenizer, chosen, "").sums["bits_per_byte"]
        found_here = bits / text_bytes
        assert last[f"bits_per_byte{name}"] == pytest.approx(found_here, rel=2e-3)


def test_a_mix_has_the_shares_asked_for_and_tokens_are_the_budget(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    budget = ("--mix", "1", "3", "--tokens", "8000", "--out", str(out))
    assert main([*files, *SMALL, *shape, *budget]) == 0
    told = capsys.readouterr().out
    shares = [float(line.split(" times its text, ")[1].split("%")[0]) for line in told.splitlines()
              if "times its text" in line]  # fmt: skip
    assert shares == pytest.approx([25, 75], abs=0.5)
    assert told.count("% requested") == 2
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [line for line in map(json.loads, lines) if "tokens" in line]
    assert sum(line["tokens"] for line in steps) == pytest.approx(8000, rel=0.03)
    floor = pretrain.PretrainOptions(files=("x",), out=out).training.learning_rate * 0.1
    assert steps[-1]["learning_rate"] == pytest.approx(floor, rel=1e-12)  # the cosine ends


def interrupt_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next run be interrupted when it begins one step more."""
    train_step, done = loop.train_step, []

    def interrupted(*arguments: Any) -> Any:
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(1)
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", interrupted)


def test_a_run_that_was_killed_goes_on_to_the_same_bits_under_a_mix(
    files: list[str], shape: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*files, *SMALL, *shape, "--mix", "2", "1", "--tokens", "7000", "--save-every", "4")
    assert main([*options, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    for steps in (1, 6, 9):  # killed before its first checkpoint, between two, in the next epoch
        with monkeypatch.context() as patched:
            interrupt_after(steps, patched)
            assert main([*options, "--out", str(out)]) == EXIT_INTERRUPTED
    assert main([*options, "--out", str(out)]) == 0
    steps = record(out)["outcome"]["steps"]
    assert steps == record(tmp_path / "whole")["outcome"]["steps"] > 17
    one, other = (
        load_file(run / "checkpoints" / f"step-{steps:08d}" / "tensors.safetensors")
        for run in (tmp_path / "whole", out)
    )
    assert one.keys() == other.keys()
    different = {name for name in one if not torch.equal(one[name], other[name])}
    assert different <= {"random/cpu"}  # what this process drew before; nothing here draws
    assert record(out)["validations"] == record(tmp_path / "whole")["validations"]


def test_minutes_fix_the_number_of_steps_once(
    files: list[str],
    shape: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    options = (*files, *SMALL, *shape, "--minutes", "3", "--out", str(out))
    # The machine is faster the second time, and nothing was saved yet.
    for speed, code in ((9.0, EXIT_INTERRUPTED), (5.0, 0)):
        monkeypatch.setattr("minimind.pretrain.trial.seconds_per_step", lambda *_, s=speed: s)
        with monkeypatch.context() as patched:
            if speed == 9.0:
                interrupt_after(0, patched)
            assert main([*options, "--max-minutes", "0"]) == code
    planned = record(out)["identity"]["steps"]
    assert 30 <= planned <= 36
    monkeypatch.setattr("minimind.pretrain.trial.seconds_per_step", lambda *_: 1.0)
    capsys.readouterr()
    assert main([*options, "--max-minutes", "0"]) == 0
    told = capsys.readouterr().out
    assert f"steps: {planned} of" in told
    assert "resuming from step 1" in told
    assert record(out)["outcome"]["steps"] == 2
    more, less = ([*options, "--minutes", minutes, "--max-minutes", "0"] for minutes in "41")
    assert main(more) == 0
    assert "the longer run's cosine" in capsys.readouterr().out
    assert main(less) == EXIT_FAILED
    longer = record(out)["identity"]["steps"]
    assert (
        f"its checkpoint is of another run: steps was {longer} and is " in capsys.readouterr().err
    )


def test_a_resumed_run_reads_its_checkpoint_for_its_hash_once(
    files: list[str], shape: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = [*files, *SMALL, *shape, "--minutes", "3", "--max-minutes", "0", "--out", str(out)]
    monkeypatch.setattr("minimind.pretrain.trial.seconds_per_step", lambda *_: 9.0)
    assert main(options) == 0
    (newest,) = (out / "checkpoints").glob("step-*")
    opened, opens = [], Path.open

    def counted(path: Path, *arguments: object, **keywords: object) -> object:
        opened.append(path)
        return opens(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", counted)
    assert main(options) == 0
    assert opened.count(newest / "tensors.safetensors") == 1


def test_a_trial_before_a_run_changes_nothing_of_it(
    files: list[str], shape: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*files, *SMALL, *shape)
    monkeypatch.setattr("minimind.pretrain.trial.MEASURED", 2)
    tried, other = tmp_path / "tried", tmp_path / "other"
    assert main([*options, "--minutes", "0.002", "--out", str(tried)]) == 0
    steps = record(tried)["identity"]["steps"]
    tokens = record(tried)["outcome"]["steps"] * 256
    assert main([*options, "--tokens", str(tokens), "--out", str(other)]) == 0
    assert record(other)["identity"]["steps"] == steps
    one, two = (load_file(run / "last" / "model.safetensors") for run in (tried, other))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_models_training_goes_on_where_it_ended(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    options = [*files, *SMALL, "--val-fraction", "0.1", "--precision", "fp32"]
    assert main([*options, *shape, "--tokens", "4000", "--out", str(first)]) == 0
    start = ["--model", str(first / "last"), "--tokens", "3000"]
    assert main([*options, *start, "--save-every", "5", "--out", str(second)]) == 0
    ended, (began, *_, best) = record(first)["validations"][-1], record(second)["validations"]
    assert began["step"] == 0
    assert began["bits_per_byte"] == pytest.approx(ended["bits_per_byte"], rel=1e-3)  # bf16 between
    assert best["bits_per_byte"] < began["bits_per_byte"]

    same = ["--model", str(first / "last"), "--tokens", "3000", "--out", str(second)]
    assert main([*options, *same]) == 0  # done: nothing is left to train
    assert f"fine-tune it with:\n    python -m minimind.sft data.jsonl --model {second}" in (
        capsys.readouterr().out
    )
    other = ["--model", str(first), "--tokens", "3000", "--out", str(second)]
    assert main([*options, *other]) == EXIT_FAILED
    assert "--model" in capsys.readouterr().err


def test_a_tokenizer_may_be_named_as_on_the_hub(
    files: list[str], shape: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, out = write_base(tmp_path / "base"), tmp_path / "run"
    fetched = []

    def download(name: str, **_: object) -> str:
        fetched.append(name)
        return str(base)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    budget = ["--tokens", "300", "--tokenizer", "org/name", "--out", str(out)]
    assert main([*files, *SMALL, *shape, *budget]) == 0
    assert fetched == ["org/name"]


def test_a_models_own_folder_is_not_trained_over(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base")
    (base / "metrics.jsonl").write_text("{}\n")  # as a run that was killed early leaves one
    before = (base / "model.safetensors").read_bytes()
    options = [*files, *SMALL, "--model", str(base), "--out", f"{base}/."]
    assert main(options) == EXIT_USAGE
    assert "is --model's own folder; name another --out" in capsys.readouterr().err
    assert (base / "model.safetensors").read_bytes() == before


def test_an_interruption_before_the_first_checkpoint_is_said(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "load", interrupted)
    options = [*files, "--model", "base", "--out", str(tmp_path / "run")]
    assert main(options) == EXIT_INTERRUPTED
    assert "interrupted before the first checkpoint" in capsys.readouterr().err


def test_nothing_held_back_is_said_and_the_last_weights_stand(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert (
        main([*files, *SMALL, *shape, "--val-fraction", "0", "--tokens", "500", "--out", str(out)])
        == 0
    )
    assert "no documents to validate on; give more documents" in capsys.readouterr().out
    assert load(out)[0].config.hidden_size == 32


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        (["--epochs", "2", "--tokens", "9"], "--epochs, --tokens and --minutes are budgets; use"),
        (["--mix", "1"], "--mix has 1 weights for 2 files; give each one"),
        (["--mix", "0", "1"], "--mix is 0 1; use positive weights, and leave out other files"),
        (["--mix", "nan", "1"], "--mix is nan 1; use positive weights"),
        (["--tokens", "0"], "--tokens is 0; use 1 or more"),
        (["--minutes", "0"], "--minutes is 0.0; use a positive number"),
        (["--max-minutes", "-1"], "max_minutes is -1.0; use 0 or more"),
        (["--val-fraction", "1"], "--val-fraction is 1.0; use 0 to less than 1"),
        (["--learning-rate", "0"], "learning_rate is 0.0; use a positive number"),
        (["--device", "quantum"], "device quantum: "),
        (["--model", "b", "--config", "tiny"], "--model brings its own shape and tokenizer; drop"),
        (["--model", "b", "--tokenizer", "t"], "shape and tokenizer; drop --tokenizer"),
        (["--model", "./none"], "./none: no such directory; give a model directory or"),
        (["--model", ""], ".: no config.json; give a directory"),
    ],
)
def test_a_wrong_option_is_named(
    options: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["a.jsonl", "b.jsonl", "--out", str(tmp_path), *options]) == EXIT_USAGE
    assert fact in re.sub(r"[\s│]+", " ", capsys.readouterr().err)  # out of tyro's box
    assert main(["--out", str(tmp_path)]) == EXIT_USAGE
    assert "no file; name one, such as text.jsonl" in capsys.readouterr().err


def test_a_document_that_is_most_of_the_windows_is_told(
    shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever side the long one is on, the share isn't a tenth of the text."""
    long, short = tmp_path / "long.txt", tmp_path / "short.txt"
    long.write_text("A long tale goes on and on. " * 200, encoding="utf-8")
    short.write_text("A short tale ends here.", encoding="utf-8")
    options = ("--tokens", "300", "--val-fraction", "0.1", "--out", str(tmp_path / "run"))
    assert main([str(long), str(short), *options, *shape, *SMALL]) == 0
    told = re.search(
        r"warning: 0 of (\d+) windows \(0\.0%\) validate, and --val-fraction is 0\.1: windows of "
        r"one document stay together, and the largest such group has (\d+) \(from (.*)\)\n",
        capsys.readouterr().out,
    )
    assert told
    assert (int(told[1]), told[3]) == (int(told[2]) + 1, str(long))


def test_what_does_not_fit_together_is_named(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", str(tmp_path / "run"))
    assert main([*files, *out, "--config", "huge"]) == EXIT_USAGE
    assert "huge: no such shape; use tiny, small, medium" in capsys.readouterr().err
    assert main([*files, *out, *shape, "--max-length", "257"]) == EXIT_USAGE
    assert "--max-length is 257 and the model's context 256; lower" in capsys.readouterr().err
    assert main([*files, *out, *shape, *SMALL, "--val-fraction", "0.9999999"]) == EXIT_DATA
    assert "no text is left to train on; see the counts above" in capsys.readouterr().err


def test_a_model_that_stands_in_the_folder_is_not_written_over(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base")
    before = (base / "model.safetensors").read_bytes()
    assert main([*files, *SMALL, *shape, "--out", str(base)]) == EXIT_USAGE
    assert "holds a model, but no run to resume" in capsys.readouterr().err
    assert (base / "model.safetensors").read_bytes() == before
    done = ("--tokens", "2000", "--out", str(tmp_path / "run"))
    assert main([*files, *SMALL, *shape, *done]) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert main([*files, *SMALL, *shape, *done]) == EXIT_USAGE
    assert "holds a model, but no checkpoint to resume from" in capsys.readouterr().err


def test_a_folder_of_fine_tuning_is_refused_in_one_line(
    files: list[str], shape: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = Path(__file__).parent / "data" / "conversations.jsonl"
    base, out = str(write_base(tmp_path / "base")), str(tmp_path / "tuned")
    tuning = ["--model", base, "--limit", "20", "--max-steps", "2", "--out", out]
    assert sft.main([str(rows), *tuning]) == 0
    assert main([*files, *SMALL, *shape, "--minutes", "1", "--out", out]) == EXIT_FAILED
    assert (
        "use the same data and options, at least as many steps, or another --out"
        in capsys.readouterr().err
    )


def test_a_file_in_place_of_the_folder_is_refused(
    files: list[str], shape: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*files, *SMALL, *shape, "--out", files[0]]) == EXIT_USAGE
    assert "is a file; name a folder" in capsys.readouterr().err


def test_a_checkpoint_of_another_version_is_refused_in_one_line(
    files: list[str],
    shape: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*files, *SMALL, *shape, "--out", str(tmp_path / "run")]
    assert main([*arguments, "--tokens", "600"]) == 0
    newest = max((tmp_path / "run" / "checkpoints").glob("step-*"))
    rewrite_extra(newest, {"origin": {"options": {"minutes": 1.0}, "planned": 2}})
    monkeypatch.setattr("minimind.pretrain.trial.seconds_per_step", lambda *_: 9.0)
    assert main([*arguments, "--minutes", "1"]) == EXIT_FAILED
    assert "finish the run with that version, or start a new one" in capsys.readouterr().err


def test_a_row_without_text_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine"}\n{"body": "no"}\n')
    assert main([str(rows), "--out", str(tmp_path / "run")]) == EXIT_DATA
    assert 'rows.jsonl:2: no "text" string in the row' in capsys.readouterr().err


def test_running_out_of_memory_names_the_option_that_helps(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def run(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(pretrain, "run", run)
    assert main([*files, *SMALL, "--out", str(tmp_path / "run")]) == EXIT_FAILED
    assert "--tokens-per-batch 256; halve it" in capsys.readouterr().err
