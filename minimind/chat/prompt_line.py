"""Read a prompt from the terminal, with line editing and a history.

The standard library's readline edits the line. Without it, or with libedit in place of GNU
readline, a backslash at the end of a line still begins a new one.
"""

from __future__ import annotations

import contextlib
import json
import locale
import os
from collections.abc import Callable
from pathlib import Path

RECALLED = 1000  # newest entries that the arrow keys reach; older ones stay in the file

KEYS = """\
Alt-Enter, or a backslash at the end of a line, begins a new line; pasted lines stay together
Up, Down        what was typed before; Ctrl-R searches it"""


class PromptLine:
    """Reads one prompt after the other.

    Args:
        history: file to keep the history in, a JSON string per line, readable by its owner alone;
            None keeps it in memory only.
        note: takes a sentence if the file can't be read or written; it isn't used from then on.
    """

    def __init__(self, history: Path | None, note: Callable[[str], None]) -> None:
        self._history, self._note = history, note
        self._last = ""
        self._add: Callable[[str], None] | None = None
        # Windows has neither module; without a UTF-8 locale readline would drop Korean letters.
        with contextlib.suppress(ImportError, AttributeError, locale.Error):
            if locale.nl_langinfo(locale.CODESET) != "UTF-8":
                os.environ["LC_ALL"] = locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
            import readline  # gives `input` its keys

            readline.set_auto_history(False)  # an entry may be several lines
            if os.environ.get("TERM") != "dumb":  # a dumb terminal shows its escape codes
                readline.parse_and_bind("set enable-bracketed-paste on")  # older ones: off
            readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter inserts a newline
            self._add = readline.add_history
            self._recall(readline.add_history)

    def read(self) -> str:
        """Wait for the next prompt; its lines are separated by newlines.

        Raises:
            EOFError, KeyboardInterrupt: Ctrl-D, Ctrl-C.
            UnicodeDecodeError: it isn't UTF-8.
        """
        line = input("> ")
        lines = [line]
        while line.endswith("\\"):
            lines[-1] = line[:-1]
            line = input(". ")
            lines.append(line)
        text = "\n".join(lines)
        self._remember(text)
        return text

    def _recall(self, add: Callable[[str], None]) -> None:
        if self._history is None:
            return
        try:
            lines = self._history.read_bytes().splitlines()
        except FileNotFoundError:
            return
        except OSError as error:
            self._stop_keeping(error)
            return
        for line in lines[-RECALLED:]:
            # Skip a line that a crash cut short, or that isn't ours.
            with contextlib.suppress(ValueError, TypeError):
                add(json.loads(line))

    def _remember(self, text: str) -> None:
        if self._add is None or not text.strip() or text == self._last:
            return
        self._last = text
        self._add(text)
        if self._history is None:
            return
        try:
            self._history.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner_only = os.open(self._history, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            with os.fdopen(owner_only, "ab") as file:
                file.write(json.dumps(text, ensure_ascii=False).encode() + b"\n")
        except OSError as error:
            self._stop_keeping(error)

    def _stop_keeping(self, error: OSError) -> None:
        self._history = None
        self._note(f"the history isn't kept: {error}")
