"""Name the format of a file that isn't JSON Lines, and the command that converts it."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
from typing import Any

from minimind.data.errors import DataError, printable

_FOREIGN = {
    b"\xff\xfe": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > NEW.jsonl"),
    b"\xfe\xff": ("UTF-16 text", "iconv -f UTF-16 -t UTF-8 {} > NEW.jsonl"),
    b"{\0": ("UTF-16 text", "iconv -f UTF-16LE -t UTF-8 {} > NEW.jsonl"),
    b"[\0": ("UTF-16 text", "iconv -f UTF-16LE -t UTF-8 {} > NEW.jsonl"),
    b"PK\3\4": ("a zip archive", "unzip {}"),
    b"PAR1": ("a Parquet file", "read_parquet"),
    b"ARROW1": ("an Arrow file", "read_feather"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", "zstd -d {}"),
    b"\xfd7zXZ": ("xz data", "xz -d {}"),
    b"BZh": ("bzip2 data", "bzip2 -d {}"),
    b"\x1f\x8b": ("packed with gzip twice", "gzip -d {}"),
}
_TAR = slice(257, 262)  # where a tar's first header says "ustar"
_SEPARATORS = {",": "CSV", "\t": "TSV", ";": "CSV with semicolons"}
_COLUMN = re.compile(r"(?=.*[^\W\d_])[\w .()/-]{1,60}")  # a column's name


def refuse_foreign(start: bytes, path: str, format: str = "JSON Lines") -> None:
    """Raise a DataError if a file's first bytes are no text in UTF-8."""
    found = {magic: known for magic, known in _FOREIGN.items() if start.startswith(magic)}
    name, command = next(iter(found.values()), ("", ""))
    if start[_TAR] == b"ustar":
        name, command = "a tar archive", "tar -xf {}"
    if not name:
        return
    remedy = f"write it as {format} in UTF-8, plain or with gzip"
    if format == "JSON Lines":
        if command.startswith("read_"):
            command = _by_pandas(command, path)
        remedy += f": {command.format(_quoted(path))}"
    raise DataError("foreign_file", f"is {name}", remedy, path)


def refuse_table(line: bytes, following: bytes, path: str) -> None:
    """Raise a DataError if a file's first line is a table's head: names with separators."""
    if line.lstrip()[:1] in (b"{", b"[") or following.lstrip()[:1] in (b"{", b"["):
        return
    text = line.decode(errors="replace").rstrip("\r\n")
    for separator, name in _SEPARATORS.items():
        try:
            cells = next(csv.reader([text], delimiter=separator, strict=True), [])
        except csv.Error:
            continue
        cells = cells[1:] if cells[:1] == [""] else cells  # the unnamed index of a frame
        if separator in text and all(map(_COLUMN.fullmatch, cells)):
            how = {"sep": separator, "dtype": "str", "keep_default_na": False}
            command = _by_pandas("read_csv", path, **how)
            remedy = f"write it as JSON Lines: {command}"
            raise DataError("foreign_file", f"is {name}", remedy, path)


def frame_error(row: object, path: str) -> DataError | None:
    """What to say of a whole frame in one JSON object, which pandas and others write."""
    orient = _orient(row) if isinstance(row, dict) and row else None
    if orient is None:
        return None
    how = {"orient": orient, "dtype": False, "convert_dates": False}
    command = _by_pandas("read_json", path, **how)
    fact = f'the row is a whole table (what pandas calls orient="{orient}")'
    error = DataError("whole_frame", fact, f"write its rows as JSON Lines: {command}")
    error.rest_unread = True
    return error


def _orient(row: dict[Any, Any]) -> str | None:
    columns = list(row.values())
    if all(isinstance(column, dict) and column for column in columns):
        if all(str(key).isdigit() for column in columns for key in column):
            return "columns"
        return "index" if all(str(key).isdigit() for key in row) else None
    if {"columns", "data"} <= row.keys() and isinstance(row["data"], list):
        return "split"
    if not all(isinstance(column, list) and column for column in columns):
        return None
    firsts = [column[0] for column in columns]
    same = len({len(column) for column in columns}) == 1
    if (
        same
        and (len(row) > 1 or isinstance(firsts[0], list))
        and not any(isinstance(first, dict) for first in firsts)
    ):
        return "columns"
    return None


def _by_pandas(function: str, path: str, **options: object) -> str:
    """A line for a shell; a name's invisible characters are escaped, as Python reads them."""
    source = "FILE" if path in ("", "-") else path
    target = f"{os.path.splitext(source)[0]}.jsonl"
    target = target if target != source else f"rows-{os.path.basename(source)}"
    arguments = [_literal(source), *(f"{name}={_literal(x)}" for name, x in options.items())]
    code = f"import pandas; pandas.{function}({', '.join(arguments)}).to_json({_literal(target)}, "
    return shlex.join(["python", "-c", code + 'orient="records", lines=True)'])


def _literal(value: object) -> str:
    """As Python reads it; in double quotes, since a shell gets single ones around the code."""
    if isinstance(value, str):
        return printable(json.dumps(value, ensure_ascii=False))
    return repr(value)


def _quoted(path: str) -> str:
    return printable(shlex.quote("FILE" if path in ("", "-") else path))
