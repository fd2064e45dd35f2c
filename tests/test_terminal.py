"""What others wrote is shown and never obeyed, whatever prints it; what is fine stays whole."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import unicodedata
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from minimind.cli.command import prepare_terminal, print_escaped
from minimind.terminal import EscapingStream, escape, unescaped
from tests.support.strategies import EMOJI
from tests.support.terminal import Terminal
from tests.support.tiny import write_base

ROOT = Path(__file__).parents[1]
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
HOSTILE = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202e\u2066\x7f\r\x08"
TEXTS = st.text(st.characters() | st.sampled_from([*HOSTILE, *"\ud800\u200d\u3000👨🏳"]))


@given(TEXTS)
def test_nothing_is_left_that_a_terminal_obeys(text: str) -> None:
    shown = escape(text)
    assert not OBEYED.search(shown)
    shown.encode()  # no half of a surrogate pair
    assert escape(shown) == shown
    kept = [char for char in text if escape(char) == char]
    assert re.sub(r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})", "", shown) == re.sub(
        r"\\(?:x[0-9a-f]{2}|u[0-9a-f]{4})", "", "".join(kept)
    )


def test_every_control_and_bidi_control_of_unicode_is_escaped() -> None:
    """By Unicode's own classes rather than by a list."""
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        turns = unicodedata.bidirectional(char) in {
            "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI",
        }  # fmt: skip
        control = unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} and char not in "\n\t"
        marks = char in "\u061c\u200e\u200f" or "\u206a" <= char <= "\u206f"
        assert (escape(char) != char) == (turns or control or marks), hex(code)


@pytest.mark.parametrize("text", [*EMOJI, "\u3000", "\u00a0", "a\tb\n", "신\u200c나라", "é", "🏴󠁧󠁢󠁥󠁮󠁧󠁿"])
def test_joiners_wide_spaces_and_emoji_stay_whole(text: str) -> None:
    assert escape(text) == text


@given(TEXTS)
def test_json_keeps_its_meaning(text: str) -> None:
    assert json.loads(escape(json.dumps([text], ensure_ascii=False))) == [text]


def test_a_stream_is_otherwise_the_one_it_stands_for() -> None:
    inner = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    stream = EscapingStream(inner)
    assert stream.write("a\x1b") == 2
    print("\x1b[1m", 3, file=stream, flush=True)
    stream.writelines(["\r", "b\n"])
    stream.flush()
    assert stream.buffer.getvalue() == b"a\\x1b\\x1b[1m 3\n\\x0db\n"
    assert stream.encoding == "utf-8"
    assert not stream.isatty()
    assert unescaped(stream) is inner is unescaped(inner)


def test_a_bar_draws_and_its_name_is_escaped() -> None:
    out = io.StringIO()
    with tqdm(total=2, desc="\x1b[2J\r\u202e", file=EscapingStream(out, bars=True)) as bar:
        bar.update()
    assert out.getvalue().startswith("\r\\x1b[2J\\x0d\\u202e: ")
    assert not re.search("[\x1b\u202e]", out.getvalue())


# Whatever prints: every command, on a hostile row, answer, name, tensor name and config value


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """A command's exit code and all that it prints."""
    command = [sys.executable, "-m", *arguments]
    ours = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(command, env=ours, stdin=subprocess.DEVNULL, capture_output=True)
    return done.returncode, (done.stdout + done.stderr).decode()


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{HOSTILE}{n}"},
                {"role": "assistant", "content": HOSTILE},
            ]
        }
        for n in range(4)
    ]
    rows.append({"messages": [turn(f"\x1b[31m{HOSTILE}", HOSTILE)], HOSTILE: 1})
    path = tmp_path / "rows\x1b[31m\u202e.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture
def hostile_base(tmp_path: Path) -> Path:
    base = write_base(tmp_path / "base\x1b[31m")
    tensors = load_file(base / "model.safetensors")
    save_file(tensors | {f"model.{HOSTILE}.weight": torch.zeros(1)}, base / "model.safetensors")
    return base


COMMANDS = {
    "sft": ["--dry-run", "--on-bad-row", "skip"],
    "sft, a bad row": ["--dry-run"],
    "inspect": ["--on-bad-row", "skip", "--check"],
    "inspect, JSON": ["--on-bad-row", "skip", "--json"],
    "clean": ["--out", "clean.jsonl"],
    "evaluate": ["--on-bad-row", "skip", "--model", "base", "--max-new-tokens", "3"],
    "a tensor": ["--model", "named"],
    "a config": ["--config", "config.json"],
    "a name": ["--model", f"\x1b[31m{HOSTILE}"],
    "an option": [f"--\x1b[31m{HOSTILE}"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_prints_nothing_that_a_terminal_obeys(
    name: str, hostile: Path, hostile_base: Path, tmp_path: Path
) -> None:
    write_base(tmp_path / "plain")
    (tmp_path / "config.json").write_text(json.dumps({"epochs": f"\x1b[31m{HOSTILE}"}))
    places = {"base": str(tmp_path / "plain"), "named": str(hostile_base)}
    places |= {file: str(tmp_path / file) for file in ("clean.jsonl", "config.json")}
    arguments = [places.get(word, word) for word in COMMANDS[name]]
    command = name if name in ("clean", "evaluate") else name.partition(",")[0]
    command = command if command in ("sft", "inspect", "clean", "evaluate") else "sft"
    if command == "evaluate":
        arguments += ["--out", str(tmp_path / "out"), "--device", "cpu"]
    code, shown = run(f"minimind.{command}", str(hostile), *arguments)
    assert code in ((0, 1) if "--check" in arguments else (0, 1, 2, 3))
    assert "Traceback" not in shown
    assert "\\x1b" in shown or "\\u001b" in shown
    assert not OBEYED.search(shown), shown


def test_colours_of_our_own_reach_a_terminal_and_no_other(capsys, monkeypatch) -> None:
    prepare_terminal()
    print_escaped("\x1b[32mgreen\x1b[0m")
    print("\x1b[32mred\x1b[0m")
    assert capsys.readouterr().out == "\x1b[32mgreen\x1b[0m\n\\x1b[32mred\\x1b[0m\n"


def test_a_row_is_green_in_a_terminal_and_its_own_colours_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "\x1b[31m?", "completion": "\x1b[0m!"}))
    for command, more in (("sft", ["--dry-run", "--val-fraction", "0"]), ("inspect", [])):
        with Terminal("-m", f"minimind.{command}", str(path), *more) as terminal:
            shown = terminal.wait_for("\x1b[0m")
            assert "\x1b[32m" in shown
            assert "31m?" in shown.replace("│", "")
            assert "\x1b[31m" not in shown


def test_help_has_its_colours_in_a_terminal(tmp_path: Path) -> None:
    with Terminal("-m", "minimind.sft", "--help", TERM="xterm") as terminal:
        assert "\\x1b" not in terminal.wait_for("--resume")


# Streams that are closed or broken, and Ctrl-C


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    ours = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(["bash", "-c", line], env=ours, capture_output=True, check=False)


@pytest.fixture
def line(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    row = json.dumps({"prompt": "질문", "completion": "답 " * 50})
    path.write_text(f"{row}\n" * 30, encoding="utf-8")
    return f"{sys.executable} -m minimind.sft {path} --dry-run --val-fraction 0"


FULL = "error: what was printed is incomplete (No space left on device)\n"


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 0, "note: standard output is closed, so nothing is printed there\n"),
        ("2>&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("<&-", 0, ""),
        (">/dev/full", 1, FULL),
        ("2>/dev/full --none", 1, ""),
        ("--help >/dev/full", 1, FULL),
        ("--help >&-", 0, "note: standard output is closed, so nothing is printed there\n"),
    ],
)
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this platform has no /dev/full")
def test_a_stream_that_takes_nothing_gets_a_line_and_no_traceback(
    streams: str, code: int, said: str, line: str
) -> None:
    done = shell(f"{line} {streams}")
    assert (done.returncode, done.stderr.decode()) == (code, said)


@pytest.mark.parametrize("streams", ["| head -c 1", "2>&1 | head -c 1", "--help | head -c 1"])
def test_a_reader_that_has_seen_enough_is_no_error(streams: str, line: str) -> None:
    done = shell(f"{line} {streams}")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("command", ["sft", "chat", "inspect", "clean", "evaluate", "pretrain"])
@pytest.mark.skipif(sys.platform == "win32", reason="signals are Unix's")
def test_ctrl_c_while_a_command_is_imported_ends_it_quietly(command: str) -> None:
    arguments = [sys.executable, "-X", "importtime", "-m", f"minimind.{command}", "--help"]
    ours = {**os.environ, "PYTHONPATH": str(ROOT)}
    for module in ("minimind.data.errors", "torch._C", "torch.nn"):
        with subprocess.Popen(
            arguments, env=ours, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr
            for text in process.stderr:
                if text.split("|")[-1].strip() == module:
                    process.send_signal(signal.SIGINT)
                    break
            rest = [
                x for x in process.stderr.read().splitlines() if not x.startswith("import time")
            ]
            assert (process.wait(), rest) == (130, [])


def test_importing_the_library_leaves_signals_alone() -> None:
    code = "import signal, minimind; print(signal.getsignal(signal.SIGINT).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "default_int_handler\n"


def test_a_command_that_runs_is_interrupted_as_before(capsys, monkeypatch) -> None:
    main = import_module("minimind.inspect.__main__")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for place in ("parse_options", "load_tokenizer"):
        with monkeypatch.context() as patched:
            patched.setattr(main, place, stop)
            assert main.main(["a.jsonl"]) == 130
        assert capsys.readouterr().err == "error: interrupted\n"
