"""Read conversations row by row, from files or from rows in Python.

What is in a file decides how it is read, not its name: gzip is unpacked, a file that starts with
"[" is one JSON array, unless its first line is a list of messages; all else is JSON Lines.

    JSON Lines   streamed; memory is bounded by the longest line, at most MAX_LINE bytes
    JSON array   read whole; a row's line is the one on which it starts

Text is UTF-8 in any locale. A byte order mark may only start a file. Lines end with LF
or CRLF, and blank lines are skipped.
"""

from __future__ import annotations

import gzip
import io
import os
import stat
import sys
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import BinaryIO, TypeAlias, cast

from minimind.data.conversation import Conversation, parse_conversation
from minimind.data.errors import DataError, excerpt
from minimind.data.formats import refuse_foreign, refuse_table
from minimind.data.shapes import is_message
from minimind.data.strict_json import SPACE, JsonText

MAX_LINE = 64 * 2**20  # bytes, the line feed included
_NOTHING = object()

PathLike: TypeAlias = "str | os.PathLike[str]"
PathsOrRows: TypeAlias = "PathLike | Iterable[PathLike] | Iterable[Mapping[str, object]]"


def read_conversations(
    source: PathsOrRows,
    *,
    prompt_key: str | None = None,
    answer_key: str | None = None,
    system: str | None = None,
    ignore_keys: Collection[str] = (),
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Conversation]:
    """Read one file or several, or rows from Python, in order.

        for conversation in read_conversations("train.jsonl"):
            print(conversation.line, conversation.messages[-1].content)

        read_conversations([{"messages": [...]}, {"prompt": "...", "completion": "..."}])
        read_conversations(datasets.load_dataset("...", split="train"))
        read_conversations(pandas.read_parquet("train.parquet").to_dict("records"))

    Args:
        source: a path or several (`.jsonl`, `.json`, either with `.gz`; "-" is standard input), or
            any iterable of rows, each a mapping of an accepted shape: see `parse_conversation`.
        prompt_key: with `answer_key`, two keys that hold the question and the answer.
        answer_key: see `prompt_key`.
        system: becomes the first message of every row that has no system message.
        ignore_keys: rows are read as if neither they nor their messages had these keys.
        on_error: called with each error in the rows, after which reading continues with the next
            row. Without it the first error is raised.

    Raises:
        ValueError: while iterating, if only one of `prompt_key` and `answer_key` is given.
        DataError: at once, whatever `on_error` is, if there is nothing to read or a file can't be
            opened; while iterating, if something is wrong with a row and `on_error` is None.
        TypeError: `source` is neither paths nor rows.
    """
    rows = read_rows(source)
    parse = partial(
        parse_conversation,
        prompt_key=prompt_key,
        answer_key=answer_key,
        system=system,
        ignore_keys=ignore_keys,
    )

    def conversations() -> Iterator[Conversation]:
        for row in rows:
            try:
                if isinstance(row, DataError):
                    raise row
                conversation = parse(row.value, path=row.path, line=row.line, text=row.text)
            except DataError as error:
                error.row = error.row or (row.text if isinstance(row, Row) else "")
                if on_error is None:
                    raise
                on_error(error)
            else:
                yield conversation

    return conversations()


@dataclass(slots=True)
class Row:
    """A row of a file or of a caller. A caller's row has a number in `line`, and no path.

    `text` is its JSON; `raw` its bytes: the full line with its line end, or a part of the array.
    """

    value: object
    path: str
    line: int
    text: str = ""
    raw: bytes = b""


def read_rows(source: PathsOrRows) -> Iterator[Row | DataError]:
    """Read as `read_conversations` does, but leave it to the caller what a row means.

    For what can't become a row the error is yielded, and reading continues after it.
    """
    items: Iterator[object] | None = None
    if isinstance(source, (str, os.PathLike)):
        items = iter([source])
    elif not isinstance(source, (bytes, Mapping, io.IOBase)) and not hasattr(source, "iterrows"):
        with suppress(TypeError):
            items = iter(source)
    first = source if items is None else next(items, _NOTHING)
    messages = isinstance(first, (list, tuple)) and first and isinstance(first[0], Mapping)
    if items is not None and (messages or isinstance(first, Mapping)):
        return (Row(row, "", number) for number, row in enumerate(chain([first], items), start=1))
    if items is not None and isinstance(first, (str, os.PathLike)):
        names = [os.fspath(path) for path in (first, *cast("Iterator[PathLike]", items))]
        for name in names:
            _refuse_unopenable(name)
        return (row for name in names for row in _rows_of_file(name))
    if first is _NOTHING:
        remedy = "name a .jsonl or .json file, or - for stdin"
        raise DataError("no_file", "there is nothing to read", remedy)
    raise TypeError(
        f"source: neither paths nor rows, but {type(first).__name__}; give a file's path, a list "
        'of paths, or rows such as [{"messages": [...]}] (of a frame: .to_dict("records"))'
    )


def _refuse_unopenable(path: str) -> None:
    if path == "-":
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise DataError("missing_file", "there is no such file", "check its name", path) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    if stat.S_ISDIR(mode):
        raise DataError("directory", "is a directory", "name the files in it", path)
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # some never end
        raise DataError("device", "is a device", "name a file, or - for stdin", path)
    if not os.access(path, os.R_OK):
        raise _unreadable(path, "no permission")


def _unreadable(path: str, reason: object) -> DataError:
    fact = f"can't be read ({reason})"
    return DataError("unreadable", fact, "check the file and its permissions", path)


@contextmanager
def open_bytes(path: str, *, unpack: bool = True) -> Iterator[BinaryIO]:
    """Open a file or standard input ("-"); errors, then or while reading, become DataErrors."""
    _refuse_unopenable(path)
    try:
        with nullcontext(_standard_input()) if path == "-" else open(path, "rb") as stream:
            zipped = unpack and stream.peek(1)[:1] == b"\x1f"  # no text starts so
            yield cast(BinaryIO, gzip.GzipFile(fileobj=stream) if zipped else stream)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        fact, remedy = "the gzip data is damaged or breaks off", "copy or download the file again"
        raise DataError("bad_gzip", fact, remedy, path) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None


def _standard_input() -> io.BufferedReader:
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        raise OSError("standard input is closed")
    return buffer if isinstance(buffer, io.BufferedReader) else io.BufferedReader(buffer)


BOM = b"\xef\xbb\xbf"  # the byte order mark, in UTF-8


def _rows_of_file(path: str) -> Iterator[Row | DataError]:
    number, empty = 0, True
    try:
        with open_bytes(path) as stream:
            before = _stamp(path, stream)
            line = stream.readline(MAX_LINE + 1 + len(BOM)).removeprefix(BOM)
            refuse_foreign(line, path)
            while line:
                number += 1
                if len(line) > MAX_LINE or line.strip(SPACE.encode()):
                    first, empty = empty, False
                    if first and _starts_an_array(line):
                        yield from _rows_of_array(line + stream.read(), number, path)
                        break
                    if first:
                        refuse_table(line, cast(io.BufferedReader, stream).peek(1), path)
                    try:
                        yield _row_of_line(line, number, path)
                    except DataError as error:
                        yield error
                while len(line) > MAX_LINE and not line.endswith(b"\n"):
                    line = stream.readline(MAX_LINE + 1)  # the rest of a line that is too long
                line = stream.readline(MAX_LINE + 1)
            if empty:
                raise DataError("empty_file", "has no rows", "check that it was written", path)
            if _stamp(path, stream) != before:
                raise changed_file(path)
    except DataError as error:
        if error.kind == "bad_gzip":
            error.fact += f" after line {number}"
        error.rest_unread = True
        yield error


def changed_file(path: str) -> DataError:
    remedy = "read it when nothing writes to it"
    return DataError("changed_file", "changed while it was read", remedy, path)


def _stamp(path: str, stream: BinaryIO) -> tuple[int, ...]:
    """A file's size and time; nothing for what can be read only once."""
    if path == "-" or not stat.S_ISREG((status := os.fstat(stream.fileno())).st_mode):
        return ()
    return status.st_size, status.st_mtime_ns


def _starts_an_array(line: bytes) -> bool:
    """Whether a file's first line starts an array of rows, and isn't a row: a list of messages."""
    text = line.decode(errors="replace").strip(SPACE)
    if not text.startswith("["):
        return False
    if text.endswith("]"):
        with suppress(DataError):
            json = JsonText(text, "", 0)
            return not is_message(json.value(json.skip_space(1))[0])
    return True


def _row_of_line(line: bytes, number: int, path: str) -> Row:
    if len(line) > MAX_LINE:
        fact = f"the line has more than {MAX_LINE:,} bytes"
        remedy = "split the row, or write the rows on lines of their own"
        shown = excerpt(line[:400].decode(errors="replace"))
        raise DataError("long_line", fact, remedy, path, number, shown)
    text = decode_utf8(line, number, path).rstrip("\r\n")
    json = JsonText(text, path, number)
    try:
        value, end = json.value(json.skip_space(0))
        json.expect_end(end, "row")
    except DataError as error:
        error.row = text
        raise
    return Row(value, path, number, text, line)


def _rows_of_array(data: bytes, line: int, path: str) -> Iterator[Row | DataError]:
    """Read `[row, ...]`, which starts on `line`, up to a fault after which no row can be found."""
    text = decode_utf8(data, line, path)
    del data
    json = JsonText(text, path, line)
    end = at = json.skip_space(json.skip_space(0) + 1)
    if text.startswith("]", at):
        raise DataError("empty_file", "has no rows", "check that it was written", path)
    try:
        while not text.startswith("]", end):
            try:
                value, end = json.value(at)
                source = text[at:end]
                yield Row(value, path, json.line_at(at), source, source.encode())
            except DataError as error:
                if json.fault_end is None:
                    raise
                end = json.fault_end
                error.row = text[at:end]
                yield error
            end = json.skip_space(end)
            if text.startswith(",", end):
                at = json.skip_space(end + 1)
            elif not text.startswith("]", end):
                raise json.syntax_error(end)
        json.expect_end(end + 1, "array")
    except DataError as error:
        error.remedy += " (nothing after it is read)"
        raise


def decode_utf8(data: bytes, line: int, path: str) -> str:
    """Decode data that starts on `line`; an error names the line that isn't UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        column = len(data[start : error.start].decode())
        near = data[start : error.start + 100].decode(errors="backslashreplace")
        fact = f"byte 0x{data[error.start]:02x} at column {column + 1} is not UTF-8"
        remedy = "save the file as UTF-8 (iconv -f CP949 -t UTF-8 for older Korean ones)"
        line += data.count(b"\n", 0, start)
        raise DataError("bad_utf8", fact, remedy, path, line, excerpt(near, column)) from None
