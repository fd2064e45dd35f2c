"""The main job as a person runs it: exit codes, what is printed, what is left behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import minimind.training.fit
from minimind.atomic_io import folder_lock
from minimind.clean import __main__ as clean
from minimind.cli.command import EXIT_DATA, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE
from minimind.data.build import DataOptions, build_dataset
from minimind.data.selection import split_by_prompt
from minimind.model.pretrained import load, save
from minimind.sft import __main__ as sft
from minimind.sft.options import BASE_LEARNING_RATE
from tests.support.tiny import write_base

QUESTIONS = ["안녕하세요?", "What is a dog?", "하늘은 무슨 색?", "Who are you?", "2 더하기 3은?"]
ANSWERS = ["안녕하세요!", "A dog is an animal.", "하늘은 파란색이에요.", "I am Mini.", "5입니다."]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "chats.jsonl"
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for number in range(6)
        for q, a in zip([f"{number} {q}" for q in QUESTIONS], ANSWERS, strict=True)
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def _quiet_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sft, "ANSWER_TOKENS", 4)


def run(*arguments: object) -> int:
    """The exit code, whichever way it comes."""
    try:
        return sft.main([str(argument) for argument in arguments])
    except SystemExit as error:  # how tyro ends
        return int(str(error.code))


def test_a_run_goes_from_rows_to_a_model_that_loads_and_says_how_to_chat(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(data, "--model", base, "--epochs", 3, "--val-fraction", 0.2)
    printed = capsys.readouterr().out
    out = tmp_path / "runs" / "chats-1"
    assert code == 0
    assert "rows: 30 read (30 messages)" in printed
    assert "⟦" in printed  # the row with its trained span
    assert f"python -m minimind.chat --model {Path('runs') / 'chats-1'}" in printed
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["outcome"]["finished"] is True
    assert record["outcome"]["best_loss"] < record["outcome"]["first_loss"]
    assert "torch" in record["versions"]
    assert "chats.jsonl" in (out / "README.md").read_text(encoding="utf-8")
    for folder in (out, out / "last"):
        model, _ = load(folder)
        assert model.head_weight.dtype == torch.float32
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, record["outcome"]["steps"] + 1))
    assert sum("validation_loss" in line for line in lines) == 4  # before, and after each epoch


def test_the_next_run_without_out_gets_a_new_folder(base: Path, data: Path, tmp_path: Path) -> None:
    for _ in range(2):
        assert run(data, "--model", base, "--max-steps", 1) == 0
    assert (tmp_path / "runs" / "chats-2" / "config.json").exists()


def test_a_dry_run_shows_the_plan_and_leaves_nothing(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, "--model", base, "--dry-run") == 0
    assert "steps: " in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()


def test_an_existing_folder_is_refused_before_anything_is_read(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "precious.txt").write_text("keep")
    assert run("absent.jsonl", "--model", base, "--out", out) == EXIT_USAGE
    assert "--resume continues its run, --overwrite deletes it" in capsys.readouterr().err
    assert (out / "precious.txt").read_text() == "keep"


def test_overwrite_starts_afresh_and_deletes_only_what_a_run_writes(
    base: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mine"
    common = (data, "--model", base, "--out", out)
    assert run(*common, "--max-steps", 2) == 0
    ours = sorted(path.name for path in out.iterdir())
    for place in (out, out / "last", out / "checkpoints"):
        (place / "notes.txt").write_text("keep")
    (out / "checkpoints" / "step-mine").mkdir()
    assert run(*common, "--max-steps", 1, "--overwrite") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted([*ours, "notes.txt"])
    left = sorted(path.name for path in (out / "checkpoints").iterdir())
    assert left == ["notes.txt", "step-00000001", "step-mine"]
    assert all((place / "notes.txt").read_text() == "keep" for place in (out, out / "last"))


def test_resuming_after_an_interruption_ends_at_the_same_weights(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = (data, "--model", base, "--epochs", 4, "--save-every", 2, "--tokens-per-step", 200)
    assert run(*common, "--out", tmp_path / "whole") == 0

    class Interrupted(minimind.training.fit.StepLogger):
        def write(self, values: dict[str, float]) -> None:
            super().write(values)
            if values["step"] == 5 and "loss" in values:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(minimind.training.fit, "StepLogger", Interrupted)
        code = run(*common, "--out", tmp_path / "cut", "--resume")  # begins: nothing is there yet
    assert code == EXIT_INTERRUPTED
    assert run(*common, "--out", tmp_path / "cut", "--resume") == 0
    for name in ("model.safetensors", "last/model.safetensors"):
        whole, cut = (load_file(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()
        if "grad_norm" in line
    ]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_exits_with_zero_and_says_the_command_that_resumes(
    number: signal.Signals,
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Signalled(minimind.training.fit.StepLogger):
        def write(self, values: dict[str, float]) -> None:
            super().write(values)
            if values["step"] == 5 and "loss" in values:
                os.kill(os.getpid(), number)

    common = (data, "--model", base, "--epochs", 4, "--tokens-per-step", 200)
    assert run(*common, "--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(minimind.training.fit, "StepLogger", Signalled)
        assert run(*common) == 0
    printed = capsys.readouterr().out
    assert "stopped after step 6 of " in printed
    assert "chat with it" in printed.partition("stopped")[0]  # of the first run only
    assert "chat with it" not in printed.partition("stopped")[2]
    out = Path("runs/chats-1")
    assert json.loads((out / "run.json").read_text())["outcome"]["finished"] is False
    command = printed.partition("resume with:\n    python -m minimind.sft ")[2].splitlines()[0]
    assert command.endswith(f"--out {out} --resume")
    assert run(*shlex.split(command)) == 0
    assert "resuming from step 6 of " in capsys.readouterr().out
    for name in ("model.safetensors", "last/model.safetensors"):
        whole, cut = (load_file(folder / name) for folder in (tmp_path / "whole", out))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_time_limit_stops_with_a_checkpoint_and_only_so_many_are_kept(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (data, "--model", base, "--out", "run", "--keep-checkpoints", 1)
    for step in (1, 2):
        assert run(*common, "--max-minutes", 0, "--resume") == 0
        assert f"stopped after step {step} of " in capsys.readouterr().out
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000002"]


def test_the_command_that_resumes_overwrites_nothing(tmp_path: Path) -> None:
    arguments = ["a b.jsonl", "--overwrite", "--out", "x", "--epochs", "3"]
    command = sft.resume_command(sft.parse(arguments), arguments)
    assert command == "python -m minimind.sft 'a b.jsonl' --out x --epochs 3 --resume"


def test_a_checkpoint_of_other_data_is_not_resumed(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = ("--model", base, "--out", tmp_path / "run", "--max-steps", 2)
    assert run(data, *common) == 0
    text = data.read_text(encoding="utf-8").replace("Mini", "Maxi")
    data.write_text(text, encoding="utf-8")
    assert run(data, *common, "--resume") == EXIT_FAILED
    assert "its checkpoint is of another run: data was " in capsys.readouterr().err


def test_an_option_that_makes_other_data_is_named_and_one_that_does_not_is_fine(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (data, "--model", base, "--out", tmp_path / "run", "--max-steps", 2, "--resume")
    assert run(*common) == 0
    assert run(*common, "--max-length", 25) == EXIT_FAILED
    assert ", --max-length was 256 and is 25; use the same data" in capsys.readouterr().err
    assert run(*common, "--learning-rate", 0.5) == EXIT_FAILED
    assert "another run: --learning-rate was 0.0001 and is 0.5; use" in capsys.readouterr().err
    assert run(*common, "--on-bad-row", "skip", "--save-every", 7) == 0


def test_another_tokenizer_is_not_resumed_with(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changing = write_base(tmp_path / "changing")
    common = (data, "--model", changing, "--out", tmp_path / "run", "--max-steps", 2, "--resume")
    assert run(*common) == 0
    path = changing / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    assert run(*common) == EXIT_FAILED
    assert "its checkpoint is of another run: tokenizer was " in capsys.readouterr().err


def test_resume_and_overwrite_exclude_each_other(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(data, "--out", tmp_path / "x", "--resume", "--overwrite")
    assert code == EXIT_USAGE
    assert "--resume continues a run" in capsys.readouterr().err


def test_a_bad_row_stops_the_run_before_training_and_names_its_place(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "bot", "content": "hi"}]}\n')
    assert run(data, "--model", base) == EXIT_DATA
    assert 'chats.jsonl:31: message 1 has role "bot"' in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_skipped_rows_are_counted_and_listed_with_reasons_beside_the_run(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "bot", "content": "hi"}]}\n')
    out = tmp_path / "run"
    options = ("--model", base, "--out", out, "--max-steps", 1, "--on-bad-row", "skip")
    assert run(data, *options) == 0
    printed = capsys.readouterr().out
    assert "rejected: 1 unknown_role" in printed
    assert f"{out / 'rejected.jsonl'} lists the rejected rows\n" in printed
    entry = json.loads((out / "rejected.jsonl").read_text(encoding="utf-8"))
    assert (entry["line"], entry["kind"]) == (31, "unknown_role")
    assert json.loads(entry["row"]) == {"messages": [{"role": "bot", "content": "hi"}]}


def test_bad_rows_are_shown_together_and_the_ways_out_work(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "bot", "content": "hi"}]}\n{"text": 1}\n')
    assert run(data, "--model", base) == EXIT_DATA
    told = capsys.readouterr().err
    assert told.startswith(f"error: {data}:31: message 1 has role")
    assert f"\n{data}:32: the row's shape is unknown" in told
    assert "\n2 of 32 rows can't be used; --on-bad-row skip leaves them out, and python" in told
    assert not (tmp_path / "runs").exists()
    assert clean.main([str(data), "--out", "new.jsonl", "--rules"]) == 0
    assert run("new.jsonl", "--model", base, "--dry-run") == EXIT_OK
    assert run(data, "--model", base, "--dry-run", "--on-bad-row", "skip") == EXIT_OK


def test_keys_that_are_not_read_are_told_at_each_start(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row |= {"id": 1, "source": "web"}
        row["messages"][0]["mood"] = "sad"
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"question": "Who?", "answer": "Me.", "topic": "x"}))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = tmp_path / "run"
    common = (data, "--model", base, "--val-data", held, "--out", out)
    for more in (("--max-steps", 1), ("--max-steps", 2, "--resume")):
        assert run(*common, *more) == EXIT_OK
        printed = capsys.readouterr().out
        assert "not read: id (30 rows), source (30), mood (30 messages)\n" in printed
        assert "not read: topic (1 row)\n" in printed
    assert run(*common, "--dry-run", "--overwrite", "--ignore-keys", "id", "mood") == EXIT_OK
    assert "not read: source (30 rows)\n" in capsys.readouterr().out


def test_validation_prompts_are_never_trained(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("".join(data.read_text(encoding="utf-8").splitlines(keepends=True)[:3]))
    options = ("--model", base, "--max-steps", 1, "--val-data", held)
    assert run(data, *options) == 0
    assert f"3 rows left out of training: their prompts are in {held}" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_rows(
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "broken"
    model, tokenizer = load(base)
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    save(broken, model, tokenizer)
    options = ("--model", broken, "--out", tmp_path / "run", "--val-fraction", 0, "--limit", 2)
    assert run(data, *options) == EXIT_FAILED
    message = capsys.readouterr().err
    assert "step 1: the loss is nan" in message
    assert "chats.jsonl:1" in message
    assert "chats.jsonl:2" in message
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_running_out_of_memory_names_the_option_that_helps(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")

    monkeypatch.setattr(sft, "fit", fit)
    assert run(data, "--model", base) == EXIT_FAILED
    assert "the default of --tokens-per-batch, printed above; halve it" in capsys.readouterr().err


def test_other_runtime_errors_are_not_dressed_up(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(*_: object) -> None:
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(sft, "fit", fit)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        run(data, "--model", base)


def test_options_come_from_a_file_and_the_command_line_goes_first(tmp_path: Path) -> None:
    config = tmp_path / "options.json"
    config.write_text(
        '{"epochs": 3, "learning_rate": 0.01, "compile": "on", "system": "-x", "betas": [0.8, 0.9]}'
    )
    options = sft.parse(["a.jsonl", "--config", str(config), "--epochs", "5"])
    assert (options.epochs, options.training.learning_rate) == (5, 0.01)
    assert options.training.compile == "on"
    assert options.training.betas == (0.8, 0.9)
    assert options.data.system == "-x"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("{", "name a JSON file of options"),
        ("[1]", "not a JSON object"),
        ('{"eppochs": 1}', "no option is called eppochs; see --help"),
        (
            '{"floor_ratio": 0.1}',
            "options.json: --floor_ratio is called --min-lr-ratio since 0.2",
        ),
        ('{"keep": 1}', "options.json: --keep is called --keep-checkpoints since 0.2.0"),
        ('{"system": {"a": 1}}', "system is an object; give a plain value"),
        ('{"model": [["a"]]}', "model has a list or an object in it; give plain values"),
        ('{"a":' * 100_000, "options.json: the JSON is nested too deeply to read; name a J"),
        ("[" * 100_000, "options.json: the JSON is nested too deeply to read; name a JSON file"),
        (f'{{"seed": {"9" * 5000}}}', "options.json: seed is a huge number; give a smaller"),
        ('{"seed": 1, "seed": 2}', r'options.json: the key "seed" appears twice in one object; na'),
        ('{"seed": NaN}', r"options.json: NaN is not JSON; name a JSON file"),
        ('{"seed": 1} {}', r"options.json: more text follows the object at column 13; name a J"),
        (f'{{"seed": {"9" * 30}}}', "--seed is a huge number; use less than 281,474"),
    ],
)
def test_an_options_file_that_cannot_be_read_is_named(
    tmp_path: Path, text: str, match: str
) -> None:
    config = tmp_path / "options.json"
    config.write_text(text)
    with pytest.raises(ValueError, match=match):
        sft.parse(["a.jsonl", "--config", str(config)])


def test_an_options_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    config = tmp_path / "options.json"
    config.write_bytes(b'\xef\xbb\xbf{"epochs": 4}')
    assert sft.parse(["a.jsonl", "--config", str(config)]).epochs == 4
    config.write_bytes(b'{"model": "\xb0\xa1"}')
    with pytest.raises(ValueError, match=r"options.json: not UTF-8 at byte 12; name a JSON file"):
        sft.parse(["a.jsonl", "--config", str(config)])


def test_interrupted_while_it_answers_a_finished_run_says_so_and_where_it_lies(
    base: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "run"
    monkeypatch.setattr(sft, "_answer_some", interrupt)
    assert run(data, "--model", base, "--out", out, "--max-steps", 1) == EXIT_INTERRUPTED
    said = f"error: interrupted; the run is finished, and lies in {out}\n"
    assert capsys.readouterr().err.endswith(said)


def test_the_refusal_of_a_moved_run_does_not_name_its_place(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (data, "--model", base, "--max-steps", 2)
    assert run(*common, "--out", tmp_path / "run") == 0
    (tmp_path / "run").rename(tmp_path / "moved")
    assert run(*common, "--out", tmp_path / "moved", "--resume", "--seed", 1) == EXIT_FAILED
    said = capsys.readouterr().err
    assert "of another run: --seed was 0 and is 1" in said
    assert "--out was" not in said


def test_the_guides_learning_rate_is_the_default_except_for_the_embedded_base() -> None:
    assert sft.parse(["a.jsonl", "--model", "x"]).training.learning_rate == 1e-4
    assert sft.parse(["a.jsonl"]).training.learning_rate == BASE_LEARNING_RATE
    for given in (
        ["--learning-rate", "3e-4"],
        ["--learning_rate", "3e-4"],
        ["--learning-rate=3e-4"],
    ):
        assert sft.parse(["a.jsonl", *given]).training.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "no data file"),
        (["a.jsonl", "--epochs", "0"], "--epochs is 0"),
        (["a.jsonl", "--val-fraction", "1"], "--val-fraction is 1"),
        (["a.jsonl", "--resume"], "--resume needs --out"),
        (["a.jsonl", "--keep-checkpoints", "0"], "keep_checkpoints is 0; use 1 or more"),
        (["a.jsonl", "--max-minutes", "-1"], "max_minutes is -1.0; use 0 or more"),
        (["a.jsonl", "--max-minutes", "nan"], "max_minutes is nan; use 0 or more"),
        (["a.jsonl", "--save-dtype", "int4"], "invalid choice 'int4'"),
        (["a.jsonl", "--learning-rate", "-1"], "use a positive number"),
        (["a.jsonl", "--seed", "-1"], "--seed is -1; use 0 or more"),
        (["a.jsonl", "--prompt-key", "q"], "one of --prompt-key and --answer-key is missing"),
        (["a.jsonl", "--device", "quantum"], "use auto, or a device that is here"),
    ],
)
def test_a_wrong_value_is_named_and_exits_with_two(
    arguments: list[str], match: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == EXIT_USAGE
    assert match in " ".join(capsys.readouterr().err.replace("│", "").split())


def test_a_model_that_is_not_there_is_a_wrong_option(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, "--model", "no/such/model") == EXIT_USAGE
    assert "no/such/model: no such directory" in capsys.readouterr().err


def test_an_unknown_option_is_named_and_exits_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("a.jsonl", "--lerning-rate", "1") == EXIT_USAGE
    assert "--lerning-rate" in capsys.readouterr().err


OPTIONS = """
    model out epochs max-steps limit max-length tokens-per-step tokens-per-batch learning-rate
    warmup-ratio precision device compile seed val-data val-fraction train-on system on-bad-row
    prompt-key answer-key save-every eval-every resume overwrite config dry-run
"""


def test_help_names_every_option_of_the_issue(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    printed = capsys.readouterr().out
    missing = {option for option in OPTIONS.split() if f"--{option}" not in printed}
    assert missing == set()


def test_the_weights_kept_are_the_best_by_validation(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(minimind.training.fit, "validation_loss", lambda *_: next(losses))
    out = tmp_path / "run"
    assert run(data, "--model", base, "--out", out, "--epochs", 2, "--val-fraction", 0.3) == 0
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))["outcome"]
    assert record["best_loss"] == 1.0
    assert record["best_step"] < record["steps"]
    best, last = load_file(out / "model.safetensors"), load_file(out / "last" / "model.safetensors")
    assert any(not torch.equal(best[key], last[key]) for key in best)


def test_bfloat16_weights_are_written_on_request_and_measured_before_it_is_said(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    options = ("--model", base, "--out", out, "--save-dtype", "bf16", "--val-fraction", 0.3)
    options += ("--max-steps", 1)
    assert run(data, *options) == 0
    weights = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    said = "measured in float32; saved in bf16"
    assert f" ({said})\n" in capsys.readouterr().out
    assert f" ({said}), of " in (out / "README.md").read_text()
    assert json.loads((out / "run.json").read_text())["outcome"]["rounded"] == said


def test_a_limit_takes_the_first_rows(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--model", base, "--limit", 4, "--val-fraction", 0, "--dry-run")
    assert run(data, *options) == 0
    assert "training: 4 rows" in capsys.readouterr().out


def test_no_rows_left_to_train_on_is_an_error_with_the_remedy(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, "--model", base, "--val-data", data) == EXIT_DATA
    assert "no row is left to train on; see the counts above" in capsys.readouterr().err


def test_data_without_anything_to_train_is_an_error_before_the_first_step(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All masked; all longer than --max-length; one row, and it went to validation."""
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["messages"][1]["weight"] = 0
    masked = tmp_path / "masked.jsonl"
    masked.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    remedy = "check --val-data, --val-fraction, --max-length, --train-on"
    for arguments, count in [
        ((masked,), "dropped: 30 rows with nothing to train on"),
        (
            (data, "--max-length", 4),
            "(30 of them are dropped), 100% of the rows and 100% of the tokens",
        ),
        ((data, "--limit", 1, "--val-fraction", 0.999999), "rows: 30 read"),
    ]:
        assert run(*arguments, "--model", base) == EXIT_DATA
        printed = capsys.readouterr()
        assert count in printed.out
        assert f"no row is left to train on; see the counts above; {remedy}" in printed.err
    assert not (tmp_path / "runs").exists()


def test_a_single_row_trains(base: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ("--limit", 1, "--val-fraction", 0, "--epochs", 2, "--out", out)
    assert run(data, "--model", base, *options) == 0
    assert json.loads((out / "run.json").read_text())["outcome"]["steps"] == 2


def test_a_vocabulary_smaller_than_the_ids_is_an_error_before_the_first_step(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = write_base(tmp_path / "small")
    weights = load_file(small / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"][:100].clone()
    save_file(weights, small / "model.safetensors")
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    assert run(data, "--model", small) == EXIT_USAGE
    message = "the tokenizer has 8192 ids and the model rows for 100; use the two of one model"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_steps_that_overflow_fp16_are_counted_in_the_report(
    base: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    too_large = partial(torch.amp.GradScaler, init_scale=2.0**30)
    monkeypatch.setattr(torch.amp, "GradScaler", too_large)
    assert run(data, "--model", base, "--max-steps", 3, "--precision", "fp16") == 0
    assert "steps skipped: their fp16 gradients overflowed" in capsys.readouterr().out


def test_what_became_of_the_rows_is_said_even_where_none_is_left(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data.write_text('{"messages": [{"role": "bot", "content": "hi"}]}\n')
    assert run(data, "--model", base, "--on-bad-row", "skip", "--dry-run") == EXIT_DATA
    printed = capsys.readouterr().out
    assert "rejected: 1 unknown_role; listed in " in printed
    listed = Path(printed.partition("listed in ")[2].splitlines()[0])
    assert json.loads(listed.read_text(encoding="utf-8"))["line"] == 1


def test_rejected_rows_of_all_files_are_listed_in_the_runs_folder(
    base: Path, data: Path, tmp_path: Path
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"text": 1}\n' + data.read_text(encoding="utf-8").splitlines()[0] + "\n")
    with data.open("a", encoding="utf-8") as file:
        file.write('{"messages": [{"role": "bot", "content": "hi"}]}\n')
    out = tmp_path / "run"
    options = ("--model", base, "--out", out, "--max-steps", "1", "--on-bad-row", "skip")
    assert run(data, "--val-data", asked, *options) == EXIT_OK
    listed = map(json.loads, (out / "rejected.jsonl").read_text(encoding="utf-8").splitlines())
    assert [(Path(row["path"]).name, row["line"]) for row in listed] == [
        ("chats.jsonl", 31),
        ("asked.jsonl", 1),
    ]


def test_validation_data_without_an_answer_is_an_error(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked.jsonl"
    asked.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    assert run(data, "--model", base, "--val-data", asked) == EXIT_DATA
    assert "no row has an answer that can be scored" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(
    base: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, "--model", base, "--out", data, "--overwrite") == EXIT_USAGE
    assert "is a file; name a folder" in capsys.readouterr().err


def test_overwrite_deletes_nothing_but_runs(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, "--model", base, "--out", tmp_path, "--overwrite") == EXIT_USAGE
    assert "read by this run" in capsys.readouterr().err
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("keep")
    assert run(data, "--model", base, "--out", precious, "--overwrite") == EXIT_USAGE
    assert "isn't the folder of a run" in capsys.readouterr().err
    assert (precious / "thesis.txt").read_text() == "keep"


def test_what_a_run_reads_is_not_deleted_by_overwrite(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert run(data, "--model", base, "--out", out, "--max-steps", "1") == EXIT_OK
    assert run(data, "--model", out / "last", "--out", out, "--overwrite") == EXIT_USAGE
    assert "run/last, read by this run; --overwrite would delete it" in capsys.readouterr().err
    assert (out / "last" / "model.safetensors").exists()
    assert run(data, "--model", out, "--out", out, "--overwrite") == EXIT_USAGE
    assert "run, read by this run; --overwrite would delete it" in capsys.readouterr().err
    assert (out / "model.safetensors").exists()


def test_a_run_that_is_still_going_is_not_overwritten(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    common = (data, "--model", base, "--out", out, "--max-steps", "1")
    assert run(*common) == EXIT_OK
    before = (out / "metrics.jsonl").read_text()
    with folder_lock(out):
        assert run(*common, "--overwrite") == EXIT_FAILED
    assert "another run writes there; name another --out" in capsys.readouterr().err
    assert (out / "metrics.jsonl").read_text() == before
    assert (out / "checkpoints").exists()


def test_rows_longer_than_the_context_are_refused_before_the_first_step(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": "word " * 400, "output": "yes"}) + "\n")
    out = tmp_path / "run"
    options = ("--model", base, "--out", out, "--max-steps", "1", "--val-fraction", 0)
    assert run(data, *options, "--max-length", "2000") == EXIT_USAGE
    message = capsys.readouterr().err
    assert "tokens and the model's context 256; use --max-length 256, or another" in message
    assert not out.exists()
    assert run(data, *options, "--max-length", "256") == EXIT_OK


@pytest.mark.parametrize(("context", "length"), [(64, 64), (2048, 2048), (9000, 4096)])
def test_rows_are_as_long_as_the_model_reads_by_default(
    context: int, length: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The rows that the default keeps are those that the model can read, to 4,096 tokens."""
    base = write_base(tmp_path / "long", context=context)
    with data.open("a", encoding="utf-8") as file:
        for words in (40, 500, 1500, 5000):
            file.write(json.dumps({"instruction": f"{words}?", "output": "word " * words}) + "\n")
    out = tmp_path / "run"
    options = ("--model", base, "--out", out, "--max-steps", 1, "--val-fraction", 0)
    assert run(data, *options, "--tokens-per-batch", 64) == EXIT_OK
    printed = capsys.readouterr().out
    kept = 30 + sum(words < length - 20 for words in (40, 500, 1500, 5000))
    assert f"training: {kept} rows" in printed
    assert f"({34 - kept} of them are dropped)" in printed
    raised = "--tokens-per-batch is raised to" in printed
    assert raised == (length > 64)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert record["options"]["data"]["max_length"] == length


@pytest.mark.parametrize("held", [0, 1, 2])
def test_a_best_by_one_row_or_by_none_is_said(
    held: int, base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "held.jsonl").write_text("".join(lines[:held]), encoding="utf-8")
    split = ("--val-data", tmp_path / "held.jsonl") if held else ("--val-fraction", 0)
    out = tmp_path / "run"
    assert run(data, "--model", base, "--out", out, "--max-steps", 1, *split) == EXIT_OK
    printed = capsys.readouterr().out
    said = {
        0: (
            "no row validates: the last weights are kept, whether or not they are the best",
            f"{out} holds the last weights, of step 1: there is no validation data; {out / 'last'}",
            "the last weights, of step 1: there is no validation data",
        ),
        1: (
            'one row validates: it alone decides which weights are "best"',
            ", by one validation row; ",
            "at the end, of 1 row\n",
        ),
        2: (
            "; validation: 2 rows",
            f"{out} holds the best weights, of step ",
            "at the end, of 2 rows",
        ),
    }[held]
    assert said[0] in printed
    assert said[1] in printed
    assert said[2] in (out / "README.md").read_text(encoding="utf-8")


def test_a_split_of_everything_is_refused_with_the_group_in_the_way(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All rows ask the same: whichever side they go to, the other one has none."""
    said = set()
    for number in range(8):
        path = tmp_path / f"same{number}.jsonl"
        path.write_text(json.dumps({"instruction": f"{number}?", "output": "x"}) + "\n")
        path.write_text(path.read_text() * 20)
        code = run(path, "--model", base, "--val-fraction", 0.5, "--dry-run")
        printed = capsys.readouterr()
        held = 20 if code == EXIT_DATA else 0
        assert code in (EXIT_OK, EXIT_DATA)
        assert f"warning: {held} of 20 rows ({held / 20:.1%}) validate" in printed.out
        assert f"and the largest such group has 20 (from {path}:1)" in printed.out
        assert ("no row is left to train on" in printed.err) == (code == EXIT_DATA)
        said.add(code)
    assert said == {EXIT_OK, EXIT_DATA}


def test_a_model_that_is_no_run_is_not_resumed(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_base(tmp_path / "other")
    before = (other / "model.safetensors").read_bytes()
    assert run(data, "--model", base, "--out", other, "--resume") == EXIT_USAGE
    assert "holds a model, but no run to resume" in capsys.readouterr().err
    assert (other / "model.safetensors").read_bytes() == before


def test_another_base_is_not_resumed(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ("--out", tmp_path / "run", "--max-steps", 2)
    assert run(data, "--model", base, *out) == 0
    assert run(data, *out, "--resume", "--learning-rate", "1e-4") == EXIT_FAILED
    assert "its checkpoint is of another run: base was " in capsys.readouterr().err


def test_the_split_puts_no_prompt_on_both_sides(data: Path, base: Path) -> None:
    _, tokenizer = load(base)
    dataset, _, _ = build_dataset([data, data], tokenizer, DataOptions())
    training, validation = split_by_prompt(dataset, 0.3)
    assert len(training) + len(validation) == 60
    assert len(validation) > 0
    assert not set(training.column("key")) & set(validation.column("key"))


def test_the_printed_commands_can_be_run_as_they_are(
    base: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, options = tmp_path / "run", tmp_path / "options.json"
    options.write_text('{"overwrite": true, "max_steps": 2}')
    common = (data, "--model", base, "--out", out, "--system", "Be brief.", "--config", options)
    assert run(*common, "--max-minutes", 0) == EXIT_OK
    command = capsys.readouterr().out.partition("resume with:\n")[2].splitlines()[0]
    arguments = shlex.split(command)
    assert arguments[:3] == ["python", "-m", "minimind.sft"]
    arguments.remove("--max-minutes")
    arguments.remove("0")
    assert run(*arguments[3:]) == EXIT_OK
    assert "resuming from step 1 of 2" in capsys.readouterr().out
    assert "--system 'Be brief.'" in (out / "README.md").read_text(encoding="utf-8")
