"""No command replaces what it didn't make, or loses what it printed; two never meet."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from minimind.atomic_io import replace_file
from minimind.clean import __main__ as clean
from minimind.cli.output import check_file, check_run_folder, claim_folder, output_may_break
from minimind.evaluate import __main__ as evaluate
from minimind.inspect import __main__ as inspect
from minimind.pretrain import __main__ as pretrain
from minimind.sft import __main__ as sft
from minimind.training.run_folder import CARD_TITLE, written_by_a_run
from tests.support.faults import small_disk
from tests.support.tiny import CONFIG, write_base

ROWS = "".join(
    json.dumps({"instruction": f"{n} + {n} = ?", "output": f"{2 * n}."}) + "\n" for n in range(20)
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sft, "ANSWER_TOKENS", 4)
    Path("data.jsonl").write_text(ROWS)
    Path("text.jsonl").write_text(
        "".join(json.dumps({"text": f"One cat saw {n} dogs. " * 9}) + "\n" for n in range(9))
    )
    Path("base").symlink_to(base)


SMALL = "--tokens-per-step 200 --max-length 64 --val-fraction 0.2 --tokens 600"
COMMANDS = {
    "inspect": (inspect.main, "data.jsonl --html {}"),
    "evaluate": (evaluate.main, "data.jsonl --model base --no-generate --out {}"),
    "clean": (clean.main, "data.jsonl --out {}"),
    "clean --rejected": (clean.main, "data.jsonl --out kept.jsonl --rejected {}"),
    "sft": (sft.main, "data.jsonl --model base --max-steps 1 --out {}"),
    "sft --resume": (sft.main, "data.jsonl --model base --max-steps 1 --resume --out {}"),
    "pretrain": (pretrain.main, f"text.jsonl --model base {SMALL} --out {{}}"),
}


def run(command: str, place: object, *more: str) -> int:
    main, line = COMMANDS[command]
    try:
        return main([word.format(place) for word in line.split()] + list(more))
    except SystemExit as error:  # how tyro ends
        return int(str(error.code))


FILES = ["inspect", "clean", "clean --rejected"]
# Into a folder: what a foreign file there may be called.
FOLDERS = {
    "evaluate": ["results.json", "report.html"],
    "sft": ["thesis.txt", "README.md", "config.json", "run.json", "model.safetensors"],
    "sft --resume": ["README.md", "config.json", "model.safetensors", "run.json", "loss.png"],
    "pretrain": ["config.json", "run.json", "tokenizer.json", "model.safetensors"],
}


@pytest.mark.parametrize("command", FILES)
def test_a_file_that_is_there_needs_overwrite_and_is_then_replaced(command, capsys) -> None:
    Path("mine").write_text("precious")
    assert run(command, "mine") == 2
    assert "mine: exists; --overwrite replaces it" in " ".join(
        capsys.readouterr().err.replace("│", "").split()
    )
    assert Path("mine").read_text() == "precious"
    assert run(command, "mine", "--overwrite") == 0
    assert Path("mine").read_text() != "precious"


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command, names in FOLDERS.items() for name in names]
)
def test_a_foreign_file_in_an_outputs_folder_is_not_replaced(command, name, capsys) -> None:
    folder = Path("there")
    folder.mkdir()
    (folder / name).write_text("precious")
    assert run(command, folder) == 2
    assert "another" in capsys.readouterr().err
    if command in ("sft", "pretrain"):  # a run's folder alone may be overwritten
        assert run(command, folder, "--overwrite") == 2
        assert "isn't the folder of a run; --overwrite would delete it" in capsys.readouterr().err
    if command != "evaluate":
        assert (folder / name).read_text() == "precious"
        assert os.listdir(folder) == [name]
    else:
        assert run(command, folder, "--overwrite") == 0
        assert (folder / name).read_text() != "precious"


@pytest.mark.parametrize("command", FILES)
@pytest.mark.parametrize("place", ["folder", "pipe", "-", "data.jsonl", "data.jsonl/below"])
def test_what_is_no_regular_file_is_never_replaced(command, place, capsys) -> None:
    Path("folder").mkdir()
    os.mkfifo("pipe")
    assert run(command, place, "--overwrite") == 2
    assert Path("data.jsonl").read_text() == ROWS
    assert Path("pipe").is_fifo()


@pytest.mark.parametrize("command", FILES)
def test_where_a_link_leads_to_is_replaced_and_the_link_stays(command) -> None:
    Path("real").write_text("old")
    Path("link").symlink_to("real")
    assert run(command, "link") == 2
    assert run(command, "link", "--overwrite") == 0
    assert Path("link").is_symlink()
    assert Path("real").read_text() != "old"


@pytest.mark.parametrize("command", ["sft", "pretrain"])
def test_overwriting_a_run_deletes_what_a_run_writes_and_nothing_else(command) -> None:
    assert run(command, "run") == 0
    for place in ("run", "run/last", "run/checkpoints"):
        Path(place, "notes.txt").write_text("mine")
    metrics = Path("run/metrics.jsonl").read_bytes()
    assert run(command, "run", "--overwrite") == 0
    assert len(Path("run/metrics.jsonl").read_bytes().splitlines()) == len(metrics.splitlines())
    assert all(Path(p, "notes.txt").exists() for p in ("run", "run/last", "run/checkpoints"))


def test_a_readme_of_ones_own_in_a_runs_folder_is_not_replaced_by_resuming(capsys) -> None:
    assert run("sft", "run") == 0
    assert Path("run/README.md").read_text().startswith(CARD_TITLE)
    Path("run/README.md").write_text("mine")
    assert run("sft --resume", "run") == 0
    assert Path("run/README.md").read_text() == "mine"
    assert "README.md isn't a card of ours, and stays as it is" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sft", "sft --resume", "pretrain"])
def test_a_finished_run_without_checkpoints_is_not_begun_again(command, capsys) -> None:
    first = command.partition(" ")[0]
    assert run(first, "run") == 0
    before = Path("run/model.safetensors").read_bytes()
    for checkpoint in Path("run/checkpoints").iterdir():
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    capsys.readouterr()
    assert run(command, "run") == 2
    message = capsys.readouterr().err
    assert ("no checkpoint to resume from; name another --out" in message) == (command != "sft")
    assert Path("run/model.safetensors").read_bytes() == before
    assert run(first, "run", "--overwrite") == 0


# A full disk


@pytest.mark.parametrize("command", ["inspect", "evaluate"])
def test_a_full_disk_leaves_old_results_whole_and_shows_the_new(command, tmp_path, capsys) -> None:
    name = "page.html" if command == "inspect" else ""
    with small_disk(tmp_path / "disk", 64) as disk:
        kept = ["page.html"] if command == "inspect" else ["results.json", "report.html"]
        for file in kept:
            (disk / file).write_text("old")
        (disk / "filler").write_bytes(bytes(shutil_free(disk)))
        assert run(command, disk / name, "--overwrite") == 1
        printed = capsys.readouterr()
        assert "hash: " in printed.out if command == "inspect" else "perplexity" in printed.out
        assert "can't be written (No space left on device), and what was there" in printed.err
        assert printed.err.count("\n") == 1
        assert [(disk / file).read_text() for file in kept] == ["old"] * len(kept)
        assert sorted(os.listdir(disk)) == sorted([*kept, "filler"])


def shutil_free(disk: Path) -> int:
    status = os.statvfs(disk)
    return status.f_bavail * status.f_bsize


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o600)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name, owner in (("write_bytes", Path), ("replace", os), ("fsync", os)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, full)
            with pytest.raises(OSError, match=r"file: can't be written \(No space .*; make room"):
                replace_file(path, "new")
        assert path.read_text() == "old"
        assert not list(tmp_path.glob(".minimind-*"))
    replace_file(path, "new \udcb0")
    assert path.read_bytes() == b"new \\udcb0"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob(".minimind-*"))


# Names


@pytest.mark.parametrize(
    ("file", "name"),
    [("a/chats.jsonl.gz", "chats"), ("-", "stdin"), (".jsonl", "rows"), ("\udcb4x.jsonl", "_x")],
)
def test_each_run_gets_the_first_free_number_after_its_file(file, name, tmp_path) -> None:
    (tmp_path / f"{name}-1").mkdir()
    (tmp_path / f"{name}-3").mkdir()
    assert claim_folder(file, tmp_path) == tmp_path / f"{name}-2"
    assert (tmp_path / f"{name}-2").is_dir()


def test_runs_that_start_at_once_never_meet(tmp_path) -> None:
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: claim_folder("chats", tmp_path / "new"), range(64)))
    assert len(set(folders)) == 64
    assert set(folders) == {tmp_path / "new" / f"chats-{n}" for n in range(1, 65)}


def test_a_run_whose_name_another_takes_meanwhile_gets_the_next(monkeypatch) -> None:
    real = sft.select_rows

    def meanwhile(*arguments: object) -> object:
        Path("runs/data-1").mkdir(parents=True)
        return real(*arguments)

    monkeypatch.setattr(sft, "select_rows", meanwhile)
    assert sft.main(["data.jsonl", "--model", "base", "--max-steps", "1"]) == 0
    assert os.listdir("runs/data-1") == []
    assert Path("runs/data-2/run.json").exists()


@pytest.mark.parametrize("command", ["sft", "pretrain"])
def test_printed_commands_name_the_folder_so_that_a_shell_reads_it(command, capsys) -> None:
    assert run(command, "my run") == 0
    assert "--model 'my run'\n" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["sft", "pretrain"])
def test_a_stopped_command_names_what_it_measured_and_how_to_resume(command, capsys) -> None:
    more = ("--max-steps", "3", "--epochs", "3") if command == "sft" else ()
    assert run(command, "run", "--val-fraction", "0.3", "--max-minutes", "0", *more) == 0
    printed = capsys.readouterr().out
    outcome = json.loads(Path("run/run.json").read_text())["outcome"]
    assert (outcome["finished"], outcome["best_step"], outcome["last_loss_step"]) == (False, 1, 1)
    loss = f"{outcome['best_loss']:.4f} at step 1, where it was stopped"
    assert loss in printed
    assert "run holds the weights of step 1, where it was stopped before its first sch" in printed
    assert "of it in checkpoints/, which resuming needs" in printed
    assert "at the end" not in printed
    assert "stopped after step 1 of " in printed
    if command == "sft":
        assert loss in Path("run/README.md").read_text()


# Files' names that aren't UTF-8


def test_a_file_whose_name_is_not_utf_8_is_trained_on_and_resumed(capsys) -> None:
    name = os.fsdecode("대화.jsonl".encode("cp949"))
    Path(name).write_text(ROWS)
    common = [name, "--model", "base", "--max-steps", "2", "--val-fraction", "0.3"]
    assert sft.main([*common, "--max-minutes", "0"]) == 0
    (folder,) = Path("runs").iterdir()
    str(folder).encode()
    assert sft.main([*common, "--out", str(folder), "--resume"]) == 0
    assert "resuming from step 1 of 2" in capsys.readouterr().out
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert record["options"]["files"] == [name]
    assert "\\udcb4\\udceb" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_folder_whose_name_is_not_utf_8_is_refused(capsys) -> None:
    folder = os.fsdecode("결과".encode("cp949"))
    for command in ("sft", "pretrain"):
        assert run(command, folder) == 2
        assert "safetensors reads no path that isn't UTF-8" in capsys.readouterr().err
    assert not Path(folder).exists()


# A log that breaks


class Broken(io.StringIO):
    """A stream that fails from its second write on."""

    def __init__(self, error: int) -> None:
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes > 1:
            raise OSError(self.error, os.strerror(self.error))
        return super().write(text)

    def flush(self) -> None:
        if self.writes > 1:
            raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", [errno.EPIPE, errno.ENOSPC, errno.EIO])
def test_what_is_printed_into_a_broken_output_is_dropped(error, monkeypatch) -> None:
    out, err = Broken(error), Broken(error)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with output_may_break():
        for word in ("one", "two"):
            print(word, flush=True)
            print(word, file=sys.stderr)
    assert (sys.stdout, sys.stderr) == (out, err)
    assert (out.getvalue(), err.getvalue()) == ("one", "one")


SCRIPT = "import sys; from minimind.{0}.__main__ import main; sys.exit(main(sys.argv[1:]))"


def start(command: str, out: str, **streams: object) -> subprocess.Popen[bytes]:
    line = COMMANDS[command][1].replace("--max-steps 1", "--max-steps 60 --epochs 60")
    line = line.replace("--tokens 600", "--tokens 4000").format(out)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    program = [sys.executable, "-c", SCRIPT.format(command)]
    return subprocess.Popen([*program, *line.split()], env=environment, **streams)


@pytest.mark.parametrize("command", ["sft", "pretrain"])
@pytest.mark.parametrize("stopped", [False, True], ids=["", "by SIGHUP"])
def test_a_run_outlives_the_tee_that_it_is_piped_into(command, stopped) -> None:
    with start(command, "run", stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout
        for line in process.stdout:
            if line.startswith(b"step 0: validation loss") or b"training 280,800" in line:
                break
        process.stdout.close()
        if stopped:
            while not Path("run/metrics.jsonl").exists():
                assert process.poll() is None
            process.send_signal(signal.SIGHUP)
    assert process.returncode == 0
    record = json.loads(Path("run/run.json").read_text())
    if not stopped:
        assert record["outcome"]["finished"]
    newest = max(Path("run/checkpoints").iterdir())
    assert newest.name == f"step-{record['outcome']['steps']:08d}"


def test_a_run_outlives_a_full_disk_under_its_log() -> None:
    with open("/dev/full", "wb") as full, start("sft", "run", stderr=full) as process:
        pass
    assert process.returncode == 0
    assert json.loads(Path("run/run.json").read_text())["outcome"]["finished"]


# The checks alone


def test_a_file_of_a_run_that_is_no_file_is_named(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"data.jsonl: is the data itself; name another file"):
        check_file(Path("data.jsonl"), True, ["x", None, "./data.jsonl"])
    with pytest.raises(FileExistsError, match=r"data.jsonl is a file; name a folder"):
        check_run_folder(Path("data.jsonl"), [], resume=False, overwrite=False)
    check = partial(check_run_folder, tmp_path / "none", [], resume=True, overwrite=False)
    assert check() is None
    assert written_by_a_run(tmp_path) == []
    assert CONFIG.hidden_size == 32


# Before anything is tokenized


@pytest.mark.parametrize("name", ["sft", "pretrain"])
@pytest.mark.parametrize("fault", ["read-only", "full"])
def test_a_folder_that_cannot_hold_the_run_is_one_line_before_tokenizing(
    name, fault, tmp_path, monkeypatch, capsys
) -> None:
    if fault == "full":
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        said = r": the run takes at least 0\.\d+ GB and 0\.000 GB are free; make room, or name"
    else:  # root may write anywhere
        monkeypatch.setattr(os, "access", lambda *_: False)
        said = r": .+ can't be written to; name another --out"
    command, rows = (sft, "data") if name == "sft" else (pretrain, "text")
    for out in ("new/run", None) if name == "sft" else ("new/run",):
        place = ["--out", out] if out else []
        assert command.main([f"{rows}.jsonl", "--model", "base", "--max-length", "64", *place]) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(f"error: {out or 'runs'}{said}.*\n", printed.err)
        assert printed.out == ""
        assert not (tmp_path / "cache").exists()
        assert not Path("new").exists()
        assert not Path("runs").exists()
