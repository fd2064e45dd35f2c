"""Show text that others wrote, and obey nothing in it.

    \\x1b]52;c;...\\x07 in a row would fill a terminal's clipboard: each ESC is shown as \\x1b

Commands put an `EscapingStream` in the place of standard output and of standard error, so that no
print has to think of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Control characters but newline and tab, bidi controls, Unicode's line separators, lone surrogates.
# Not joiners, wide spaces and tags, of which emoji and Asian text are made.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ud800-\udfff]"
)


def escape(text: str) -> str:
    """Show what a terminal would obey: \\x1b for ESC, \\u202e for a right-to-left override.

    JSON keeps its meaning: it escapes U+0000 to U+001F itself, and reads \\u202e as written here.
    """
    return _OBEYED.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 32 else f"\\u{code:04x}"


class EscapingStream:
    """A text stream that escapes what is written, and is otherwise the stream behind it.

    Args:
        unescaped: the stream that is written to.
        bars: leave a carriage return at the start of a write whole, as progress bars need it.

    Attributes:
        escapes: False for text that is escaped already; see `as_it_is`.
        failed: the error with which writing failed, None if it never did.
    """

    def __init__(self, unescaped: TextIO, bars: bool = False) -> None:
        self.unescaped = unescaped
        self._bars = bars
        self.escapes = True
        self.failed: OSError | None = None

    def write(self, text: str) -> int:
        start = "\r" if self._bars and text.startswith("\r") else ""
        shown = start + escape(text[len(start) :]) if self.escapes else text
        with self._remembering():
            self.unescaped.write(shown)
        return len(text)

    def flush(self) -> None:
        with self._remembering():
            self.unescaped.flush()

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self.failed = error
            raise

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.unescaped, name)


def unescaped(stream: Any) -> TextIO:
    """The stream behind one that escapes."""
    found: TextIO = getattr(stream, "unescaped", stream)
    return found


@contextmanager
def as_it_is(stream: Any) -> Iterator[None]:
    """Escape nothing for a while: for text whose every part is escaped already but its colours."""
    stream.escapes = False
    try:
        yield
    finally:
        stream.escapes = True


def end_quietly(*_: object) -> None:
    """Handle a Ctrl-C while a command is imported: no traceback, the code of an interruption."""
    os._exit(130)
