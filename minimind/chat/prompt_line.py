"""Read what a person types: lines to edit, and what was typed before. Knows nothing of its use.

The standard library's readline does the work, GNU's best; without it, or with libedit, a backslash
at the end still begins a new line.
"""

from __future__ import annotations

import contextlib
import json
import locale
import os
from collections.abc import Callable
from pathlib import Path

KEPT = 1000  # entries; older ones are left in the file, and can't be reached by the arrow keys

KEYS = """\
Alt-Enter, or a backslash at the end of a line, begins a new line; pasted lines stay together
Up, Down        what was typed before; Ctrl-R searches it"""


class PromptLine:
    """Asks for input, again and again.

    Args:
        history: keeps what is typed, a JSON string a line, readable by its owner alone; None: only
            what is typed now can be brought back.
        note: takes a sentence if the history can't be kept; it goes on without.
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
            if os.environ.get("TERM") != "dumb":  # where it would be seen
                readline.parse_and_bind("set enable-bracketed-paste on")  # older ones need it said
            readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')  # Alt-Enter: a line's end, as text
            self._add = readline.add_history
            self._recall(readline.add_history)

    def read(self) -> str:
        """What is typed next; its lines are separated by newlines.

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
            self._give_up(error)
            return
        for line in lines[-KEPT:]:
            # A line that a crash cut short, or that somebody wrote, is passed over.
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
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._history = None
        self._note(f"what is typed isn't kept for another time: {error}")
