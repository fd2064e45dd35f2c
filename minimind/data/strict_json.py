"""Decode one JSON value, more strictly than Python's json: no NaN, no key twice in an object."""

from __future__ import annotations

import json
import re

from minimind.data.errors import DataError, excerpt

SPACE = " \t\n\r"  # JSON's, no other
_SPACES = re.compile(f"[{SPACE}]*")


class JsonError(Exception):
    """JSON that can't be a row; `at` is the index of the fault in the text."""

    def __init__(self, kind: str, fact: str, remedy: str, at: int = 0) -> None:
        self.kind = kind
        self.fact = fact
        self.remedy = remedy
        self.at = at

    def in_file(self, path: str, line: int, text: str, row_at: int = 0) -> DataError:
        """The error with its place: `text` has the row at `row_at`, and that is on line `line`."""
        line += text.count("\n", row_at, self.at)
        before = _column(text, self.at) - 1  # characters
        shown = excerpt(text[self.at - before : self.at + 100], before)
        return DataError(self.kind, self.fact, self.remedy, path, line, shown)


def decode(text: str, at: int) -> tuple[object, int]:
    """The value that starts at index `at`, and the index after it. Raises JsonError."""
    try:
        return _raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise syntax_error(text, error.pos, error.msg) from None
    except RecursionError:
        fact = "the JSON is nested too deeply to read"
        raise JsonError("too_deep", fact, "flatten it", at) from None
    except JsonError as error:
        error.at = at
        raise


_DIAGNOSES = {  # by how the text at the fault, or the json module's message, may begin
    ("'", "None", "True", "False"): (
        "python_literal",
        "this is Python, not JSON,",
        "write it with json.dumps, not str",
    ),
    ("Invalid control",): (
        "control_character",
        "a string has a raw control character",
        "write it escaped, as json.dumps does",
    ),
    ("Invalid \\",): ("bad_escape", "a string has a wrong escape", "write a backslash as \\\\"),
    ("",): ("bad_json", "this is not JSON", "write each row with json.dumps, or fix it there"),
}


def syntax_error(text: str, at: int, message: str = "") -> JsonError:
    """Say why `text` stops being JSON at `at`; `message` is the json module's.

    In our own words, since the json module's change from one Python to the next.
    """
    if message.startswith("Unterminated"):
        at = len(text)  # the string goes on to the end
    elif not message.startswith("Invalid"):
        at = skip_space(text, at)
    if at == len(text):
        fact = "the JSON breaks off before it is complete"
        remedy = "write each row on one line, as jq -c . does; or was the file cut?"
        return JsonError("cut_off", fact, remedy, len(text.rstrip(SPACE)))
    kind, fact, remedy = next(
        diagnosis
        for starts, diagnosis in _DIAGNOSES.items()
        if text.startswith(starts, at) or message.startswith(starts)
    )
    return JsonError(kind, f"{fact} at column {_column(text, at)}", remedy, at)


def text_after(what: str, text: str, at: int) -> JsonError:
    """The error where a row or an array is followed by more text at `at`."""
    fact = f"more text follows the {what} at column {_column(text, at)}"
    return JsonError("extra_text", fact, f"remove the text after the {what}", at)


def skip_space(text: str, at: int) -> int:
    """The index of the first character from `at` on that isn't JSON's white space."""
    match = _SPACES.match(text, at)
    return match.end() if match else at


def _column(text: str, at: int) -> int:
    return at - text.rfind("\n", 0, at)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        fact = f'the key "{excerpt(twice)}" appears twice in one object'
        raise JsonError("duplicate_key", fact, "keep one of them")
    return row


def _constant(name: str) -> None:
    raise JsonError("not_finite", f"{name} is not JSON", "write null or a number")


def _integer(digits: str) -> int | float:
    """Python refuses to read integers of thousands of digits; no key that we know needs one."""
    return int(digits) if len(digits) < 400 else float(digits)


_raw_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer
).raw_decode
