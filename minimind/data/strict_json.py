"""Read JSON values one by one, more strictly than Python's json: no NaN, no key twice in an object.

Errors are in our own words, since the json module's change from one Python to the next.
"""

from __future__ import annotations

import json
import re
from collections import Counter

from minimind.data.errors import DataError, excerpt

SPACE = " \t\n\r"  # JSON's, no other
_SPACES = re.compile(f"[{SPACE}]*")


class JsonText:
    """Text with JSON values, a line or a whole file. It starts on `line` of the file `path`."""

    def __init__(self, text: str, path: str, line: int) -> None:
        self.text, self._path = text, path
        self._line, self._counted = line, 0
        self.fault_end: int | None = None

    def value(self, at: int) -> tuple[object, int]:
        """The value that starts at index `at`, and the index after it.

        Raises:
            DataError: it isn't JSON, or is but isn't allowed; `fault_end` is then the index after
                it where it is known, else None.
        """
        self.fault_end = None
        try:
            return _raw_decode(self.text, at)
        except json.JSONDecodeError as error:
            raise self.syntax_error(error.pos, error.msg) from None
        except RecursionError:
            fact = "the JSON is nested too deeply to read"
            raise self._error(at, "too_deep", fact, "flatten it") from None
        except DataError as error:
            _, self.fault_end = _lenient_decode(self.text, at)
            raise self._error(at, error.kind, error.fact, error.remedy) from None

    def expect_end(self, at: int, what: str) -> None:
        """Raise a DataError unless only space follows the row or array that ends at `at`."""
        if (at := self.skip_space(at)) < len(self.text):
            fact = f"more text follows the {what} at column {self._column(at)}"
            raise self._error(at, "extra_text", fact, f"remove the text after the {what}")

    def skip_space(self, at: int) -> int:
        """The index of the first character from `at` on that isn't white space."""
        match = _SPACES.match(self.text, at)
        return match.end() if match else at

    def line_at(self, at: int) -> int:
        """The line of index `at`, which isn't before the index asked for last."""
        self._line += self.text.count("\n", self._counted, at)
        self._counted = at
        return self._line

    def syntax_error(self, at: int, message: str = "") -> DataError:
        """Say why the text stops being JSON at `at`; `message` is the json module's."""
        if message.startswith("Unterminated"):
            at = len(self.text)  # the string goes on to the end
        elif not message.startswith("Invalid"):
            at = self.skip_space(at)
        column = f"column {self._column(at)}"
        if at == len(self.text):
            at = len(self.text.rstrip(SPACE))
            kind, fact = "cut_off", "the JSON breaks off before it is complete"
            remedy = "write each row on one line, as jq -c . does; or was the file cut?"
        elif message.startswith("Invalid control"):
            kind, fact = "control_character", f"a string has a raw {self.text[at]!r} at {column}"
            remedy = "write it escaped, as json.dumps does"
        elif message.startswith("Invalid \\"):
            kind, fact = "bad_escape", f"a string has a wrong escape at {column}"
            remedy = "write a backslash as \\\\"
        elif self.text.startswith(("'", "None", "True", "False"), at):
            kind, fact = "python_literal", f"this is Python, not JSON, at {column}"
            remedy = "write it with json.dumps, not str"
        else:
            kind, fact = "bad_json", f"this is not JSON at {column}"
            remedy = "write each row with json.dumps, or fix it there"
        return self._error(at, kind, fact, remedy)

    def _error(self, at: int, kind: str, fact: str, remedy: str) -> DataError:
        before = self._column(at) - 1  # characters on the line
        shown = excerpt(self.text[at - before : at + 100], before)
        return DataError(kind, fact, remedy, self._path, self.line_at(at), shown)

    def _column(self, at: int) -> int:
        return at - self.text.rfind("\n", 0, at)


def parse_object(content: bytes, path: str) -> dict[str, object]:
    """The one JSON object that a file holds; a byte order mark before it is passed over.

    Raises:
        DataError: it holds anything else.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        fact = f"not UTF-8 at byte {error.start + 1}"
        raise DataError("encoding", fact, "save it as UTF-8", path) from None
    json_text = JsonText(text, path, 1)
    value, end = json_text.value(json_text.skip_space(0))
    json_text.expect_end(end, "object")
    if not isinstance(value, dict):
        raise DataError("no_object", "not a JSON object", "write one, in { and }", path)
    return value


# What JSON allows or Python reads, and we don't: errors without a place, which `value` adds.


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        fact = f'the key "{excerpt(twice)}" appears twice in one object'
        raise DataError("duplicate_key", fact, "keep one of them")
    return row


def _constant(name: str) -> None:
    raise DataError("not_finite", f"{name} is not JSON", "write null or a number")


def _integer(digits: str) -> int | float:
    """Python refuses to read integers of thousands of digits; no key that we know needs one."""
    return int(digits) if len(digits) < 400 else float(digits)


_raw_decode = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_constant, parse_int=_integer
).raw_decode


def _lenient_decode(text: str, at: int) -> tuple[object, int | None]:
    """As Python reads it; no end where it isn't JSON after all."""
    try:
        return json.JSONDecoder(parse_int=_integer).raw_decode(text, at)
    except (json.JSONDecodeError, RecursionError):
        return None, None
