"""Decode JSON strictly, one value at a time. Knows no files and no row shapes.

Stricter than Python's json: NaN is an error, and so is a key that stands twice in an object. Faults
are told in our own words, which don't change from one Python to the next.
"""

from __future__ import annotations

import json
import re

from minimind.data.conversation import DataError, excerpt

SPACE = " \t\n\r"
_SPACES = re.compile(f"[{SPACE}]*")
_BREAKS = re.compile(r"\s*\n\s*")
NEAR = 400  # characters before and after a fault that may go into its excerpt


class JsonError(Exception):
    """JSON that can't be a row.

    Attributes:
        at: the index of the fault, or of the row's start, in the text that was decoded.
        end: the index after the row, if that could be made out.
    """

    def __init__(self, kind: str, fact: str, remedy: str, at: int, end: int | None = None) -> None:
        self.kind = kind
        self.fact = fact
        self.remedy = remedy
        self.at = at
        self.end = end

    def error(self, path: str, line: int, text: str, row_at: int = 0) -> DataError:
        """Place it: `text` has the row at `row_at`, where the file's line `line` is."""
        line += text.count("\n", row_at, self.at)
        start = max(_line_start(text, self.at), self.at - NEAR)
        near = one_line(text[start : self.at + NEAR]).rstrip()
        return DataError(
            self.kind, self.fact, self.remedy, path, line, excerpt(near, self.at - start)
        )


class Decoder:
    """Decodes one JSON value at a time."""

    def __init__(self) -> None:
        self._fault: tuple[str, str, str] | None = None
        self._raw_decode = json.JSONDecoder(
            object_pairs_hook=self._object, parse_constant=self._constant, parse_int=_integer
        ).raw_decode

    def decode(self, text: str, at: int) -> tuple[object, int]:
        """The value that starts at index `at`, and the index after it. Raises JsonError."""
        self._fault = None
        try:
            value, end = self._raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise syntax_error(text, error.pos, error.msg) from None
        except RecursionError:
            raise JsonError(
                "too_deep", "the JSON is nested too deeply to read", "flatten it", at
            ) from None
        if self._fault:
            raise JsonError(*self._fault, at, end)
        return value, end

    # The hooks note a fault and let the value end, so that the next row can be found.

    def _object(self, pairs: list[tuple[str, object]]) -> dict[str, object]:
        row = dict(pairs)
        if len(row) < len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in seen:
                    fact = f'the key "{excerpt(key)}" stands twice in one object'
                    self._fault = ("duplicate_key", fact, "keep one of them")
                seen.add(key)
        return row

    def _constant(self, name: str) -> None:
        self._fault = ("not_finite", f"{name} is not JSON", "write null or a number")


def _integer(digits: str) -> int | float:
    """Python refuses to read integers of thousands of digits; no key we know needs one."""
    return int(digits) if len(digits) < 400 else float(digits)


def syntax_error(text: str, at: int, message: str = "") -> JsonError:
    """Say in our own words why `text` stops being JSON at `at`; `message` is the json module's."""
    inside_string = message.startswith(("Invalid", "Unterminated"))
    at = at if inside_string else skip_space(text, at)
    found = text[at : at + 5]
    column = f"column {at - _line_start(text, at) + 1}"
    if not found:
        kind, fact = "cut_off", "the JSON breaks off before it is complete"
        remedy = "write the rest; was the file cut?"
        at = len(text.rstrip(SPACE))
    elif found[0] == "\0":
        kind, fact = "raw_nul", f"a NUL byte stands at {column}"
        remedy = "write it as \\u0000 or remove it"
    elif found[0] == "\ufeff":
        kind, fact = "bom", f"a byte order mark stands at {column}"
        remedy = "it may only open a file; remove it"
    elif message.startswith("Unterminated"):
        kind, fact = "open_string", f"the string that starts at {column} has no end"
        remedy = "close it, and write line breaks in it as \\n; or was the file cut?"
    elif message.startswith("Invalid control character"):
        kind, fact = "control_character", f"a string has a raw {found[0]!r} at {column}"
        remedy = "write it escaped, as json.dumps does"
    elif message.startswith("Invalid \\"):
        kind, fact = "bad_escape", f"a string has a wrong escape at {column}"
        remedy = "write a backslash as \\\\"
    elif found.startswith(("'", "None", "True", "False")):
        kind, fact = "python_literal", f"this is Python, not JSON, at {column}"
        remedy = "write it with json.dumps, not str"
    else:
        kind, fact = "bad_json", f"this is not JSON at {column}"
        remedy = "write each row with json.dumps, or mend it there"
    return JsonError(kind, fact, remedy, at)


def text_after(what: str, text: str, at: int) -> JsonError:
    """The fault of a line or file whose `what` is followed by more text at `at`."""
    if text[at] in "\0\ufeff":
        return syntax_error(text, at)
    column = at - _line_start(text, at) + 1
    fact = f"more text follows the {what} at column {column}"
    return JsonError("extra_text", fact, f"let nothing stand after the {what}", at)


def skip_space(text: str, at: int) -> int:
    """The index of the first character from `at` on that isn't JSON's white space."""
    match = _SPACES.match(text, at)
    return match.end() if match else at


def one_line(text: str) -> str:
    """Join the lines of a row that is spread over several, for an excerpt."""
    return _BREAKS.sub(" ", text)


def _line_start(text: str, at: int) -> int:
    return text.rfind("\n", 0, at) + 1
