"""The error of a row or file that can't be used, and text that is safe to print in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

_LENGTH = 80  # characters of an excerpt
SHOWN_ROWS = 10  # bad rows that are shown at once
_WHOLE = re.compile(
    "[\u00a0\u1680\u2000-\u200a\u200c\u200d\u202f\u205f\u3000\U000e0020-\U000e007f]"
)
_BREAKS = re.compile(r"(?<!\s)\s*\n\s*")  # from the first space on: linear


class DataError(ValueError):
    """A row or a file that can't be used.

        train.jsonl:41: message 2 has role "bot"; use system, user, assistant or tool
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "H…

    Attributes:
        kind: a short stable name for counting, such as "unknown_role".
        fact: what was found.
        remedy: what to do about it.
        path: the file, "-" for standard input, "row" or "messages" for what a caller gave, or "".
        line: the line in the file, or the row's number where `path` is empty, from 1; or 0.
        excerpt: at most 80 printable characters of the input, or "".
        row: the row's text in the file, or "" where it couldn't be read.
        rest_unread: whether the rows after it are lost: it ended the reading of its file.
    """

    def __init__(
        self, kind: str, fact: str, remedy: str, path: str = "", line: int = 0, excerpt: str = ""
    ) -> None:
        super().__init__(kind, fact, remedy, path, line, excerpt)  # so that it pickles
        self.kind = kind
        self.fact = fact
        self.remedy = remedy
        self.path = path
        self.line = line
        self.excerpt = excerpt
        self.row = ""
        self.rest_unread = False

    def __str__(self) -> str:
        place = "<stdin>" if self.path == "-" else printable(_utf8_name(self.path))
        if self.line:
            place = f"{place}:{self.line}" if place else f"row {self.line}"
        excerpt = f"\n    {self.excerpt}" if self.excerpt else ""
        return f"{place or 'data'}: {self.fact}; {self.remedy}{excerpt}"


class BadRowsError(DataError):
    """Rows that can't be used: the first ten of them, how many there are, and the ways out.

    Its attributes are those of the first.
    """

    def __init__(self, first: Sequence[DataError], bad: int, rows: int) -> None:
        one = first[0]
        super().__init__(one.kind, one.fact, one.remedy, one.path, one.line, one.excerpt)
        self.args = (first, bad, rows)
        self.row, self.rest_unread = one.row, first[-1].rest_unread

    def __str__(self) -> str:
        first, bad, rows = self.args
        least = "at least " * self.rest_unread
        above = f" (the first {len(first)} are above)" * (bad > len(first))
        end = (
            f"{least}{bad:,} of {least}{rows:,} rows can't be used{above}; --on-bad-row skip "
            "leaves them out, and python -m minimind.clean FILE --out NEW.jsonl writes the others "
            "to a file and lists these"
        )
        return "\n".join([*map(str, first), end])


def printable(text: str) -> str:
    """Put a text on one line, with nothing in it that a terminal obeys or that can't be seen.

    Joiners, wide spaces and tags, of which emoji and Asian text are made, are left whole.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or _WHOLE.match(char) else char.encode("unicode_escape").decode()
        for char in text
    )


def one_line(text: str) -> str:
    """Join the lines of a row that is spread over several."""
    return _BREAKS.sub(" ", text)


def excerpt(text: str, at: int = 0) -> str:
    """Cut at most 80 printable characters out of `text`, around the index `at`."""
    start = max(0, at - _LENGTH // 4)
    cut = printable(one_line(text[start : start + _LENGTH].rstrip("\r\n")))
    cut = "…" * (start > 0) + cut
    if len(cut) > _LENGTH or len(text.rstrip("\r\n")) > start + _LENGTH:
        cut = cut[: _LENGTH - 1] + "…"
    return cut


def _utf8_name(path: str) -> str:
    """A file's name, which has a surrogate for each byte beyond ASCII in the locale C."""
    try:
        return path.encode(errors="surrogateescape").decode(errors="surrogateescape")
    except UnicodeEncodeError:
        return path


def show(value: object) -> str:
    """Name a value in an error, short and safe: "bot", -1, null, a list, an object."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{printable(value[:40])}{"…" * (len(value) > 40)}"'
    if isinstance(value, (int, float)):
        return str(value) if isinstance(value, float) or abs(value) < 1e12 else "a huge number"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
