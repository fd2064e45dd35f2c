"""What a person types: several lines, keys within them, and what was typed another time."""

from __future__ import annotations

import builtins
import json
import sys
from pathlib import Path

import pytest

from minimind.chat.prompt_line import PromptLine
from tests.support.terminal import Terminal

TYPED = """
import sys
from pathlib import Path
from minimind.chat.prompt_line import PromptLine
line = PromptLine(Path(sys.argv[1]), print)
while True:
    print(f"<{line.read()!a}>")
"""
LEFT, UP, BACKSPACE, DELETE, ALT_ENTER = "\x1b[D", "\x1b[A", "\x7f", "\x1b[3~", "\x1b\r"


class Typist:
    """Types into a terminal, and sees what was read."""

    def __init__(self, history: Path) -> None:
        self.terminal = Terminal("-c", TYPED, str(history), TERM="xterm")

    def __enter__(self) -> Typist:
        return self

    def __exit__(self, *_: object) -> None:
        self.terminal.__exit__()

    def type(self, *keys: str) -> str:
        self.terminal.wait_for("> ")
        self.terminal.type("".join(keys) + "\r")
        self.terminal.wait_for("<'")
        return self.terminal.wait_for("'>").removesuffix("'>").encode().decode("unicode_escape")


def test_keys_edit_whole_syllables_and_lines_in_a_terminal(tmp_path) -> None:
    with Typist(tmp_path / "history") as typist:
        assert typist.type("가나다라", LEFT, LEFT, BACKSPACE) == "가다라"
        assert typist.type("가나", LEFT, DELETE, "👍!") == "가👍!"
        assert typist.type("👍", BACKSPACE, "ok") == "ok"
        nfd = "\u1112\u1161\u11ab"  # 한, letter by letter: still one syllable to a person
        assert typist.type("가", nfd, BACKSPACE, "나") == "가나"
        assert typist.type("첫째", ALT_ENTER, "둘째", LEFT * 3, BACKSPACE, "!") == "첫!\n둘째"
        assert typist.type("\x1b[200~a\n\tb\n\x1b[201~", "c") == "a\n\tb\nc"  # pasted


def test_what_was_typed_comes_back_now_and_another_time(tmp_path) -> None:
    history = tmp_path / "new" / "history"
    with Typist(history) as typist:
        typist.type("첫째", ALT_ENTER, "줄")
        typist.type("/help")
        assert typist.type(UP, UP, "!") == "첫째\n줄!"
    with Typist(history) as typist:
        assert typist.type(UP, UP) == "/help"
        assert typist.type(UP, UP, UP, UP, "?") == "첫째\n줄?"
    lines = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    assert lines == ["첫째\n줄", "/help", "첫째\n줄!", "/help", "첫째\n줄?"]


# Without a terminal


@pytest.fixture(params=["readline", "no readline"])
def typed(request, monkeypatch):
    """Lines that `input` gives; the prompts it was given are returned."""
    if request.param == "no readline":
        monkeypatch.setitem(sys.modules, "readline", None)
    else:
        pytest.importorskip("readline")
    prompts: list[str] = []

    def type_lines(*lines: str) -> list[str]:
        waiting = iter(lines)

        def read(prompt: str) -> str:
            prompts.append(prompt)
            return next(waiting)

        monkeypatch.setattr(builtins, "input", read)
        return prompts

    return type_lines


def test_a_backslash_at_the_end_begins_a_new_line(typed) -> None:
    prompts = typed("첫째\\", "\\", "끝", "C:\\ ")
    line = PromptLine(None, pytest.fail)
    assert line.read() == "첫째\n\n끝"
    assert line.read() == "C:\\ "
    assert prompts == ["> ", ". ", ". ", "> "]


def test_the_history_is_for_its_owner_alone_and_skips_what_is_empty_or_repeated(
    tmp_path, monkeypatch
) -> None:
    readline = pytest.importorskip("readline")
    added: list[str] = []
    monkeypatch.setattr(readline, "add_history", added.append)
    history = tmp_path / "folder" / "history"
    lines = iter(["안녕?", "안녕?", " ", "잘 가"])
    monkeypatch.setattr(builtins, "input", lambda _: next(lines))
    line = PromptLine(history, pytest.fail)
    for _ in range(4):
        line.read()
    assert added == ["안녕?", "잘 가"]
    assert history.read_text(encoding="utf-8") == '"안녕?"\n"잘 가"\n'
    assert history.stat().st_mode & 0o777 == 0o600
    assert history.parent.stat().st_mode & 0o777 == 0o700


def test_a_broken_line_of_the_history_is_passed_over(tmp_path, typed, monkeypatch) -> None:
    history = tmp_path / "history"
    history.write_bytes(b'"\xea\xb0\x80"\n[1]\n"\\ud800"\n"a\\u0000b"\n\xff\n\n"b"\n"cut sho')
    typed("")
    added: list[str] = []
    readline = pytest.importorskip("readline") if sys.modules.get("readline") else None
    if readline:
        real = readline.add_history
        monkeypatch.setattr(readline, "add_history", lambda text: (real(text), added.append(text)))
    assert PromptLine(history, pytest.fail).read() == ""
    assert added == (["가", "b"] if readline else [])


@pytest.mark.parametrize("place", [".", "file/history", "later/history"])
def test_a_history_that_cannot_be_kept_is_said_once_and_typing_goes_on(
    tmp_path, monkeypatch, place
) -> None:
    pytest.importorskip("readline")
    lines, notes = iter("12"), []
    monkeypatch.setattr(builtins, "input", lambda _: next(lines))
    (tmp_path / "file").touch()
    line = PromptLine(tmp_path / place, notes.append)
    (tmp_path / "later").touch()  # where its folder should be made
    assert [line.read(), line.read()] == ["1", "2"]
    (note,) = notes
    assert note.startswith("the history isn't kept: [Errno")
