"""Read conversations from files, row by row. Knows no row shapes, no templates, no tokens.

What is in a file decides how it is read, not its name: gzip is unpacked, a file that starts with
"[" is one JSON array, and all else is JSON Lines.

    JSON Lines   streamed; memory is bounded by the longest line, at most MAX_LINE bytes
    JSON array   read whole; a row's line is the one on which it starts

Text is UTF-8 whatever the locale. A byte order mark may open a file, but no other row. Lines end
with LF or CRLF, and blank lines are skipped.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import stat
import sys
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO, TypeAlias, cast

from minimind.data.conversation import Conversation, DataError, excerpt, parse_conversation
from minimind.data.strict_json import (
    NEAR,
    SPACE,
    Decoder,
    JsonError,
    one_line,
    skip_space,
    syntax_error,
    text_after,
)

MAX_LINE = 64 * 2**20  # bytes, the line feed included
REST_UNREAD = " (nothing after it is read)"  # ends the remedy of an array's last error
LOOK_AHEAD_LINES = 1000  # searched for the end of a row that isn't complete on its line
LOOK_AHEAD_BYTES = 2**18  # less than MAX_LINE, so that it ends with a line that is taken in part

PathLike: TypeAlias = "str | os.PathLike[str]"


def read_conversations(
    paths: PathLike | Iterable[PathLike],
    *,
    prompt_key: str | None = None,
    answer_key: str | None = None,
    system: str | None = None,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Conversation]:
    """Read one file or several, in order.

        for conversation in read_conversations("train.jsonl"):
            print(conversation.line, conversation.messages[-1].content)

    Args:
        paths: `.jsonl`, `.json`, either with `.gz`; "-" is standard input.
        prompt_key: with `answer_key`, two keys that hold the question and the answer.
        answer_key: see `prompt_key`.
        system: becomes the first message of every row that has no system message.
        on_error: called with each error in a file's content, after which reading goes on with the
            next row that can be made out. Without it the first error is raised.

    Raises:
        DataError: at once, whatever `on_error` is, if no file is named or one can't be opened;
            while iterating, if something is wrong with a row and `on_error` is None.
    """
    return _read(
        read_rows(paths),
        on_error,
        partial(parse_conversation, prompt_key=prompt_key, answer_key=answer_key, system=system),
    )


@dataclass(slots=True)
class Row:
    """What stands on a line, or in an array.

    Attributes:
        value: what JSON makes of it.
        path: the file.
        line: where it starts, from 1.
        text: its source; of an array's row the beginning, on one line.
        raw: its bytes: the line with what ends it, or what stands in the array.
    """

    value: object
    path: str
    line: int
    text: str
    raw: bytes


def read_rows(paths: PathLike | Iterable[PathLike]) -> Iterator[Row | DataError]:
    """Read files as `read_conversations` does, but leave to others what a row means.

    Yields:
        Each row; for what can't become one, the error, after which reading goes on.

    Raises:
        DataError: at once, if no file is named or one can't be opened.
    """
    paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    names = [os.fspath(path) for path in paths]
    if not names:
        raise DataError(
            "no_file", "no file is named", "name a .jsonl or .json file, or - for stdin"
        )
    for name in names:
        _refuse_unopenable(name)
    return (row for name in names for row in _rows(name))


def read_text(path: PathLike) -> str:
    """Read a whole text file, plain or with gzip; "-" is standard input. CRLF becomes LF.

    Raises:
        DataError: it can't be read, isn't UTF-8 (the line is named), or says nothing.
    """
    name = os.fspath(path)
    _refuse_unopenable(name)
    try:
        stream = _open(name)
        with nullcontext() if name == "-" else stream:
            data = _unzipped(stream).read().removeprefix(_BOM)
    except _DAMAGED:
        raise _bad_gzip(name, 0) from None
    except OSError as error:
        raise _unreadable(name, 0, error.strerror or error) from None
    if foreign := _foreign(data, name, "text"):
        raise foreign
    text = _decode(data, 1, name)
    if isinstance(text, DataError):
        raise text
    if not text.strip():
        raise DataError("empty_file", "has no text", "check that it was written", name)
    return text.replace("\r\n", "\n")


def copy_stream(path: str, to: BinaryIO) -> None:
    """Copy what can be read only once, standard input ("-") or a pipe, as it is.

    Raises:
        DataError: it can't be read.
    """
    _refuse_unopenable(path)
    try:
        stream = _open(path)
        with nullcontext() if path == "-" else stream:
            shutil.copyfileobj(stream, to)
    except OSError as error:
        raise _unreadable(path, 0, error.strerror or error) from None


def changed_file(path: str) -> DataError:
    """The error of a file that was written while it was read: its rows are of no one content."""
    return DataError(
        "changed_file", "changed while it was read", "read it when nothing writes to it", path
    )


def _read(
    rows: Iterable[Row | DataError],
    on_error: Callable[[DataError], None] | None,
    parse: Callable[..., Conversation],
) -> Iterator[Conversation]:
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


# Files. What can't become a row is yielded as a DataError, so that reading can go on after it.


def _refuse_unopenable(path: str) -> None:
    if path == "-":
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        raise DataError("missing_file", "there is no such file", "check its name", path) from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, 0, error) from None
    if stat.S_ISDIR(mode):
        raise DataError("directory", "is a directory", "name the files in it", path)
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):  # some never end
        raise DataError("device", "is a device", "name a file, or - for stdin", path)
    if not os.access(path, os.R_OK):
        raise _unreadable(path, 0, "no permission")


def _unreadable(path: str, line: int, reason: object) -> DataError:
    return DataError(
        "unreadable", f"can't be read ({reason})", "check the file and its permissions", path, line
    )


def _rows(path: str) -> Iterator[Row | DataError]:
    lines = None
    try:
        stream = _open(path)
        with nullcontext() if path == "-" else stream:
            before = _stamp(path, stream)
            lines = _Lines(_unzipped(stream))
            yield from _rows_of_stream(lines, path)
            if _stamp(path, stream) != before:
                yield changed_file(path)
    except _DAMAGED:
        yield _bad_gzip(path, lines.number if lines else 0)
    except OSError as error:
        yield _unreadable(path, lines.number if lines else 0, error.strerror or error)


def _stamp(path: str, stream: BinaryIO) -> tuple[int, ...]:
    """What a change of the content changes; nothing for what can be read only once."""
    if path == "-" or not stat.S_ISREG((status := os.fstat(stream.fileno())).st_mode):
        return ()
    return status.st_size, status.st_mtime_ns


_DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)  # what damaged gzip data raises


def _bad_gzip(path: str, after: int) -> DataError:
    return DataError(
        "bad_gzip",
        f"the gzip data is damaged or breaks off after line {after}",
        "copy or download the file again",
        path,
    )


def _open(path: str) -> io.BufferedReader:
    return _standard_input() if path == "-" else open(path, "rb")


def _unzipped(stream: io.BufferedReader) -> BinaryIO:
    zipped = stream.peek(1)[:1] == b"\x1f"  # no text starts so
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream) if zipped else stream)


def _standard_input() -> io.BufferedReader:
    buffer = getattr(sys.stdin, "buffer", None)
    if buffer is None:
        raise OSError("standard input is closed")
    return buffer if isinstance(buffer, io.BufferedReader) else io.BufferedReader(buffer)


class _Lines:
    """The lines of a stream, numbered from 1; lines can be put back."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._back: deque[bytes] = deque()
        self.number = 0  # of the line that was taken last

    def take(self) -> bytes:
        """The next line, at most MAX_LINE + 1 bytes of it; b"" at the end."""
        if self._back:
            line = self._back.popleft()
        elif self.number:
            line = self._stream.readline(MAX_LINE + 1)
        else:
            line = self._stream.readline(MAX_LINE + 1 + len(_BOM)).removeprefix(_BOM)
        self.number += bool(line)
        return line

    def put_back(self, lines: list[bytes]) -> None:
        self._back.extendleft(reversed(lines))
        self.number -= len(lines)

    def take_all(self) -> bytes:
        """Whatever comes after the line taken last."""
        return b"".join(self._back) + self._stream.read()

    def skip_rest_of(self, line: bytes) -> None:
        """After a `line` that was too long to be taken whole, go on to the next."""
        while line and not line.endswith(b"\n"):
            line = self._stream.readline(2**20)


_BOM = b"\xef\xbb\xbf"  # the byte order mark, in UTF-8
_FOREIGN = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"{\0": "UTF-16 text",
    b"[\0": "UTF-16 text",
    b"PK\3\4": "a zip archive",
    b"PAR1": "a Parquet file",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"\xfd7zXZ": "xz data",
    b"BZh": "bzip2 data",
    b"\x1f\x8b": "packed with gzip twice",
}


def _foreign(start: bytes, path: str, format: str = "JSON Lines") -> DataError | None:
    """What is wrong with a file that starts like no text in UTF-8."""
    for magic, name in _FOREIGN.items():
        if start.startswith(magic):
            remedy = f"write it as {format} in UTF-8, plain or with gzip"
            return DataError("foreign_file", f"is {name}", remedy, path)
    return None


def _rows_of_stream(lines: _Lines, path: str) -> Iterator[Row | DataError]:
    first = lines.take()
    if foreign := _foreign(first, path):
        yield foreign
        return
    space = SPACE.encode()  # JSON's, no other
    while first and not first.strip(space):
        first = lines.take()
    if not first:
        yield DataError("empty_file", "has no rows", "check that it was written", path)
    elif first.lstrip(space).startswith(b"["):
        line = lines.number
        yield from _rows_of_array(first + lines.take_all(), line, path)
    else:
        lines.put_back([first])
        yield from _rows_of_lines(lines, path)


def _rows_of_lines(lines: _Lines, path: str) -> Iterator[Row | DataError]:
    decoder = Decoder()
    while line := lines.take():
        number = lines.number
        if len(line) > MAX_LINE:
            lines.skip_rest_of(line)
            yield DataError(
                "long_line",
                f"the line has more than {MAX_LINE:,} bytes",
                "split the row, or write the rows on lines of their own",
                path,
                number,
                excerpt(line[:NEAR].decode(errors="replace")),
            )
            continue
        try:
            text = line.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield _bad_utf8(line, error.start, path, number)
            continue
        start = 0 if text.startswith("{") else skip_space(text, 0)
        if start == len(text):
            continue
        try:
            value, end = decoder.decode(text, start)
            if end < len(text) and (after := skip_space(text, end)) < len(text):
                raise text_after("row", text, after)
        except JsonError as broken:
            if broken.kind == "cut_off":
                _tell_spread_from_cut(broken, _end_of_spread_row(decoder, text, lines), number)
            unusable = broken.error(path, number, text)
            unusable.row = text
            yield unusable
        else:
            yield Row(value, path, number, text, line)


def _tell_spread_from_cut(broken: JsonError, last: int, number: int) -> None:
    if last:
        broken.kind = "multiline_object"
        broken.fact = f"one row is spread over lines {number} to {last}"
        broken.remedy = "write each row on one line, as jq -c . does, or all of them in one [ ]"
        broken.at = 0
    else:
        broken.fact = "the row is not complete at the end of its line"
        broken.remedy = "write each row on one line, as jq -c . does; or was the file cut?"


def _end_of_spread_row(decoder: Decoder, text: str, lines: _Lines) -> int:
    """Find the last line of a row that isn't complete on its first, `text`; 0 if there is none.

    The lines it takes up are taken from `lines`, no others. A line that starts with a brace starts
    a row of its own: printers indent what is inside an object.
    """
    taken: list[bytes] = []
    size = 0
    while len(taken) < LOOK_AHEAD_LINES and size < LOOK_AHEAD_BYTES and (line := lines.take()):
        taken.append(line)
        size += len(line)
        if line.startswith(b"{"):
            break
    inside = taken[:-1] if taken and taken[-1].startswith(b"{") else taken
    joined = text + "\n" + b"".join(inside).decode(errors="surrogateescape")
    end: int | None
    try:
        _, end = decoder.decode(joined, skip_space(joined, 0))
    except JsonError as broken:
        end = broken.end
    used = joined.count("\n", 0, end) if end else 0
    lines.put_back(taken[used:])
    last = lines.number
    if not used:
        return 0
    rest = joined[end : joined.find("\n", end) + 1 or None]
    if rest.strip(SPACE + ","):
        lines.put_back([rest.encode(errors="surrogateescape")])
    return last


def _rows_of_array(data: bytes, line: int, path: str) -> Iterator[Row | DataError]:
    """Read `[row, ...]`, which starts on `line`. After broken JSON the rest can't be made out."""
    text = _decode(data, line, path)
    del data
    if isinstance(text, DataError):
        yield text
        return
    decoder = Decoder()
    counted = 0  # line is right for this index
    end = at = skip_space(text, skip_space(text, 0) + 1)
    if text.startswith("]", at):
        yield DataError("empty_file", "has no rows", "check that it was written", path)
    while not text.startswith("]", end):
        line += text.count("\n", counted, at)
        counted = at
        try:
            value, end = decoder.decode(text, at)
            near = one_line(text[at : min(end, at + NEAR)])
            yield Row(value, path, line, near, text[at:end].encode())
        except JsonError as broken:
            if not broken.end:
                yield _last(broken).error(path, line, text, at)
                return
            end = broken.end
            unusable = broken.error(path, line, text, at)
            unusable.row = one_line(text[at:end])
            yield unusable
        end = skip_space(text, end)
        if text.startswith(",", end):
            at = skip_space(text, end + 1)
        elif not text.startswith("]", end):
            yield _last(syntax_error(text, end)).error(path, line, text, at)
            return
    after = skip_space(text, end + 1)
    if after < len(text):
        yield _last(text_after("array", text, after)).error(path, line, text, counted)


def _last(broken: JsonError) -> JsonError:
    broken.remedy += REST_UNREAD
    return broken


def _decode(data: bytes, line: int, path: str) -> str | DataError:
    """What UTF-8 makes of data that starts on `line`."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        start = data.rfind(b"\n", 0, error.start) + 1
        line += data.count(b"\n", 0, start)
        return _bad_utf8(data[start : error.start + NEAR], error.start - start, path, line)


def _bad_utf8(line: bytes, at: int, path: str, number: int) -> DataError:
    before = line[:at].decode()
    near = before[-NEAR:] + line[at : at + NEAR].decode(errors="backslashreplace")
    return DataError(
        "bad_utf8",
        f"byte 0x{line[at]:02x} at column {len(before) + 1} is not UTF-8",
        "save the file as UTF-8 (iconv -f CP949 -t UTF-8 for older Korean ones)",
        path,
        number,
        excerpt(one_line(near).rstrip(), min(len(before), NEAR)),
    )
