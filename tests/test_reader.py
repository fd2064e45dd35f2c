from __future__ import annotations

import gzip
import io
import json
import math
import os
import pickle
import re
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Thread
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data import reader
from minimind.data.conversation import Conversation, Message
from minimind.data.errors import DataError
from minimind.data.reader import open_bytes, read_conversations
from tests.support.oracle import is_safe_line
from tests.support.strategies import json_values, texts

DATA = Path(__file__).parent / "data"
KOREAN = (
    '{"messages": [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네."}]}'
)
ENGLISH = '{"instruction": "Say hi.", "output": "Hi."}'


def write(folder: Path, content: str | bytes, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path | str) -> tuple[list[Conversation], list[DataError]]:
    errors: list[DataError] = []
    return list(read_conversations(path, on_error=errors.append)), errors


def run_bad_rows(**environment: str) -> str:
    """Read the bad rows in a process of its own, which never imports what minimind imports."""
    code = (
        "import sys, types, runpy;"
        "package = types.ModuleType('minimind'); package.__path__ = [sys.argv[1]];"
        "sys.modules['minimind'] = package;"
        "runpy.run_path(sys.argv[2], run_name='__main__');"
        "assert 'torch' not in sys.modules"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    arguments = [Path(reader.__file__).parents[1], DATA / "read_bad_rows.py"]
    result = subprocess.run(
        [*command, *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C.UTF-8"},
    ],
    ids=["C", "UTF-8"],
)
def test_each_bad_row_is_told_in_exactly_these_words_in_any_locale(
    environment: dict[str, str],
) -> None:
    # After a change on purpose: python tests/data/read_bad_rows.py > tests/data/bad_rows.txt
    expected = (DATA / "bad_rows.txt").read_text(encoding="utf-8")
    assert run_bad_rows(**environment) == expected
    assert len(set(re.findall(r"^\w+(?=: )", expected, re.MULTILINE))) >= 38


def test_every_message_has_its_place_its_fact_its_remedy_and_a_short_safe_excerpt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(DATA / "bad_rows")
    errors: list[DataError] = []
    for name in sorted(os.listdir()):
        list(read_conversations(name, on_error=errors.append))
    assert len({error.kind for error in errors}) >= 30
    assert len({(error.kind, error.fact) for error in errors}) >= 80
    for error in errors:
        place = f"{error.path}:{error.line}" if error.line else error.path
        head, *rest = str(error).split("\n")
        assert head == f"{place}: {error.fact}; {error.remedy}"
        assert rest == ([f"    {error.excerpt}"] if error.excerpt else [])
        assert error.fact
        assert error.remedy
        assert len(error.excerpt) <= 80
        assert is_safe_line(str(error).replace("\n", ""))
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.kind) == (str(error), error.kind)


def test_files_of_different_kinds_and_shapes_are_read_in_order(tmp_path: Path) -> None:
    lines = write(tmp_path, KOREAN + "\n" + ENGLISH + "\n", "a.jsonl")
    zipped = write(tmp_path, gzip.compress((ENGLISH + "\n").encode()), "b.jsonl.gz")
    array = write(tmp_path, f"[\n{ENGLISH},\n\n{KOREAN}]", "c.json")
    zipped_array = write(tmp_path, gzip.compress(f"[{KOREAN}]".encode()), "d.json.gz")
    found = list(read_conversations([lines, str(zipped), array, zipped_array]))
    assert [(Path(c.path).name, c.line, c.shape) for c in found] == [
        ("a.jsonl", 1, "messages"),
        ("a.jsonl", 2, "instruction/output"),
        ("b.jsonl.gz", 1, "instruction/output"),
        ("c.json", 2, "instruction/output"),
        ("c.json", 4, "messages"),
        ("d.json.gz", 1, "messages"),
    ]
    assert found[0].messages[1].content == "네."


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (f"{KOREAN}\r\n{ENGLISH}\r\n", [1, 2]),
        (f"\ufeff{KOREAN}\n{ENGLISH}", [1, 2]),
        (f"\ufeff\r\n\n{KOREAN}\n \t\n{ENGLISH}\n\n", [3, 5]),
        (f"  {KOREAN}  \n\t{ENGLISH}", [1, 2]),
        (f"\ufeff [{KOREAN},\r\n{ENGLISH}]\n", [1, 2]),
        (f"\n\n[\n\n{KOREAN}\n,\n{ENGLISH}\n]", [5, 7]),
    ],
    ids=["CRLF", "BOM", "blank lines", "indented", "array with BOM and CRLF", "spaced array"],
)
def test_line_ends_blank_lines_and_an_opening_byte_order_mark_are_legal(
    tmp_path: Path, content: str, lines: list[int]
) -> None:
    found, errors = read(write(tmp_path, content))
    assert errors == []
    assert [conversation.line for conversation in found] == lines


def test_what_is_in_a_file_decides_not_its_name(tmp_path: Path) -> None:
    assert len(read(write(tmp_path, f"[{KOREAN}, {ENGLISH}]", "array.jsonl"))[0]) == 2
    assert len(read(write(tmp_path, f"{KOREAN}\n{ENGLISH}", "lines.json"))[0]) == 2
    assert len(read(write(tmp_path, f"{KOREAN}\n{ENGLISH}", "plain.jsonl.gz"))[0]) == 2
    assert len(read(write(tmp_path, gzip.compress(KOREAN.encode()), "zipped.jsonl"))[0]) == 1


def test_an_escaped_nul_white_space_and_line_separators_are_content_like_any_other(
    tmp_path: Path,
) -> None:
    contents = ["\0", " \n\t", "a\u2028b\x85c", "\ufeff", "👨‍👩‍👧", "\u1112\u1161\u11ab"]
    for ensure_ascii in (True, False):
        rows = [
            json.dumps({"prompt": c, "completion": "ok"}, ensure_ascii=ensure_ascii)
            for c in contents
        ]
        found, errors = read(write(tmp_path, "\n".join(rows)))
        assert errors == []
        assert [conversation.messages[0].content for conversation in found] == contents


@given(pairs=st.lists(st.tuples(texts(min_size=1), texts(min_size=1)), min_size=1, max_size=5))
def test_any_text_survives_the_file_whatever_its_escapes(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.jsonl"
    for ensure_ascii in (True, False):
        rows = [
            json.dumps({"prompt": q, "completion": a}, ensure_ascii=ensure_ascii) for q, a in pairs
        ]
        for content in ("\n".join(rows), "[" + ",\n".join(rows) + "]"):
            path.write_bytes(content.encode())
            found = [tuple(m.content for m in c.messages) for c in read_conversations(path)]
            assert found == pairs


@settings(max_examples=200)
@given(values=st.lists(json_values, max_size=4), spread=st.booleans(), array=st.booleans())
def test_any_json_gives_conversations_or_data_errors_and_each_value_is_accounted_for(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], spread: bool, array: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    rows = [json.dumps(value, indent=1 if spread else None) for value in values]
    path.write_bytes(("[" + ",".join(rows) + "]" if array else "\n".join(rows)).encode())
    found, errors = read(path)
    rest_unread = errors and errors[-1].rest_unread
    if array and values and not rest_unread:
        assert len(found) + len(errors) == len(values)
    assert found or errors
    for conversation in found:
        assert conversation.messages
        for message in conversation.messages:
            message.content.encode()


@settings(max_examples=300)
@given(
    content=st.binary(max_size=200)
    | st.lists(
        st.sampled_from([KOREAN.encode(), ENGLISH.encode(), b"[", b"]", b"{", b"}", b",", b"\n"])
        | st.binary(max_size=6),
        max_size=12,
    ).map(b"".join),
    cut=st.integers(min_value=0, max_value=300),
    zipped=st.booleans(),
)
def test_any_bytes_give_conversations_or_data_errors_never_another_exception(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int, zipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.jsonl"
    path.write_bytes(gzip.compress(content, mtime=0)[:cut] if zipped else content[:cut])
    found, errors = read(path)
    assert found or errors
    for error in errors:
        assert is_safe_line(str(error).replace("\n    ", ""))


@given(
    rows=st.lists(
        st.sampled_from([KOREAN, '{"a": 1}', "{", "}", '{"messages": [', '  {"x": 1},', "안녕", ""])
    )
)
def test_no_bad_line_takes_a_good_one_with_it(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mixed.jsonl"
    path.write_bytes("\n".join(rows).encode())
    found, _ = read(path)
    assert [c.line for c in found] == [n for n, row in enumerate(rows, 1) if row == KOREAN]


QUESTION = '{"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": 1}'
MIXED = [
    '{"prompt": "Hi", "completion": "A"}',
    *(f'{{"prompt": "Hi", "completion": "A", "id": {id}}}' for id in ("1", '"1"', "null", "[1]")),
    '{"messages": null, "prompt": [{"role": "user", "content": "Hi"}], "completion": "A"}',
    '{"messages": [{"from": "human", "value": "Hi", "name": {}}, {"from": "gpt", "value": "A"}]}',
    f'{{"messages": [{QUESTION}, {{"role": "assistant", "content": "A", "tool_calls": []}}]}}',
    f'{{"messages": [{QUESTION}, {{"role": "assistant", "content": "A", "weight": null}}]}}',
    '{"instruction": "Hi", "input": null, "output": "A", "history": [], "system": ""}',
    '{"instruction": "Hi", "input": {}, "output": "A", "history": null, "system": null}',
]
CALLING = [
    '{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": null, '
    '"tool_calls": [{"function": {"name": "f", "arguments": ' + arguments + "}}]}]}"
    for arguments in ('{"a": 1}', '"{}"', "null", "[1]", "7")
]
CALLS, REFUSED = CALLING[:2], CALLING[2:]


@given(rows=st.permutations([*MIXED, *CALLING]))
def test_no_row_is_read_otherwise_for_the_types_that_others_have(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "mixed_types.jsonl"
    path.write_text("\n".join(rows), encoding="utf-8")
    found, errors = read(path)
    assert sorted(rows[c.line - 1] for c in found) == sorted([*MIXED, *CALLS])
    for conversation in found:
        if (text := rows[conversation.line - 1]) in CALLS:
            (call,) = conversation.messages[1].calls
            assert call.arguments == ({"a": 1} if '{"a": 1}' in text else {})
            continue
        assert [(m.role, m.content) for m in conversation.messages] == [
            ("user", "Hi"),
            ("assistant", "A"),
        ]
    assert [error.kind for error in errors] == ["bad_arguments"] * len(REFUSED)
    assert {error.fact for error in errors} == {
        f'message 2 has {what} as the arguments of call 1 of "tool_calls"'
        for what in ("null", "a list of 1", "7")
    }


MESSAGES = '[{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네."}]'
SHAREGPT = '[{"value": "안녕?", "from": "human"}, {"from": "gpt", "value": "네."}]'


@pytest.mark.parametrize("first", [MESSAGES, SHAREGPT, " " + MESSAGES + " ", "\ufeff" + MESSAGES])
@pytest.mark.parametrize("zipped", [False, True])
def test_lines_that_are_lists_of_messages_are_rows(
    tmp_path: Path, first: str, zipped: bool
) -> None:
    text = f"{first}\n\n{SHAREGPT}\n{KOREAN}\n[1]\n{MESSAGES}".encode()
    path = write(tmp_path, gzip.compress(text) if zipped else text)
    found, errors = read(path)
    assert [(c.line, c.shape) for c in found] == [
        (1, "list of messages"),
        (3, "list of messages"),
        (4, "messages"),
        (6, "list of messages"),
    ]
    for conversation in found:
        assert [m.content for m in conversation.messages] == ["안녕?", "네."]
    assert [(error.line, error.kind) for error in errors] == [(5, "not_object")]
    (alone,), _ = read(write(tmp_path, first))
    assert alone.line == 1
    assert len(read(write(tmp_path, f"[{KOREAN}, {ENGLISH}]"))[0]) == 2  # an array all the same
    assert len(read(write(tmp_path, f"[{MESSAGES},\n{SHAREGPT}]"))[0]) == 2
    rows = [json.loads(MESSAGES), tuple(json.loads(SHAREGPT))]
    assert [len(c.messages) for c in read_conversations(rows)] == [2, 2]  # type: ignore[arg-type]


def test_a_conversation_that_is_spread_over_lines_is_told_what_a_row_is(tmp_path: Path) -> None:
    found, errors = read(write(tmp_path, json.dumps(json.loads(MESSAGES), indent=1)))
    assert found == []
    with pytest.raises(DataError, match=r'a row is a whole conversation: \{"messages": \[...\]\},'):
        raise errors[0]


def test_keys_to_ignore_reach_every_row(tmp_path: Path) -> None:
    path = write(tmp_path, f'{ENGLISH[:-1]}, "tools": ["x"], "id": 1}}\n')
    (found,) = read_conversations(path, ignore_keys=["tools"])
    assert [unread.key for unread in found.unread] == ["id"]


def test_only_the_white_space_of_json_is_blank(tmp_path: Path) -> None:
    for char in ("\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u3000"):
        found, errors = read(write(tmp_path, f"{char}\n{KOREAN}\n{char}[]\n{char}"))
        assert [conversation.line for conversation in found] == [2]
        assert [(e.kind, e.line) for e in errors] == [("bad_json", line) for line in (1, 3, 4)]
    for start in ("\x0c", " \x0b"):
        _, errors = read(write(tmp_path, f"{start}[{KOREAN}]"))
        assert [error.kind for error in errors] == ["bad_json"]


def test_compressed_data_that_is_damaged_inside_ends_with_an_error(tmp_path: Path) -> None:
    content = bytearray(gzip.compress("\n".join([KOREAN, ENGLISH] * 50).encode(), mtime=0))
    for at in range(10, len(content), 7):  # after the header; each is zlib's error or the check's
        damaged = content.copy()
        damaged[at] ^= 0x55
        _, errors = read(write(tmp_path, bytes(damaged)))
        assert errors
        assert errors[-1].kind in ("bad_gzip", "cut_off", "bad_json", "bad_utf8")
    assert "bad_gzip" in {error.kind for error in errors}


def test_the_first_error_is_raised_unless_someone_takes_it(tmp_path: Path) -> None:
    path = write(tmp_path, f"{KOREAN}\n{{}}\n{ENGLISH}\nnonsense\n{KOREAN}")
    rows = read_conversations(path)
    assert next(rows).line == 1
    with pytest.raises(DataError, match=r"rows\.jsonl:2: the row is \{\}; a row needs messages, "):
        next(rows)
    found, errors = read(path)
    assert [conversation.line for conversation in found] == [1, 3, 5]
    assert [(error.kind, error.line) for error in errors] == [("unknown_shape", 2), ("bad_json", 4)]


def test_a_file_that_cannot_be_opened_stops_the_run_before_the_first_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, ignored = write(tmp_path, KOREAN), list[DataError]()
    with pytest.raises(DataError, match=r"없다\.jsonl: there is no such file; check its name"):
        read_conversations([good, tmp_path / "없다.jsonl"], on_error=ignored.append)
    with pytest.raises(DataError, match=r"is a directory; name the files in it"):
        read_conversations([good, tmp_path], on_error=ignored.append)
    with pytest.raises(
        DataError, match=r"can't be read \(.*[Nn]ot a directory.*\); check the file"
    ):
        read_conversations(good / "rows.jsonl", on_error=ignored.append)
    with pytest.raises(DataError, match=r"a\\x00b: can't be read \(embedded null byte\)"):
        read_conversations("a\0b", on_error=ignored.append)
    with pytest.raises(DataError, match=r"data: there is nothing to read; name a \.jsonl or"):
        read_conversations([], on_error=ignored.append)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(DataError, match=r"can't be read \(no permission\); check the file and"):
        read_conversations(good, on_error=ignored.append)
    assert ignored == []


def test_a_disk_that_fails_midway_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.FileIO):
        def readinto(self, buffer: object) -> int:
            raise OSError(5, "Input/output error")

    def failing(path: str, mode: str) -> io.BufferedReader:
        return io.BufferedReader(Failing(path))

    monkeypatch.setattr(reader, "open", failing, raising=False)
    with pytest.raises(DataError, match=r"rows\.jsonl: can't be read \(Input/output error\)"):
        list(read_conversations(write(tmp_path, KOREAN)))


@pytest.mark.parametrize("change", ["grows", "is cut", "is overwritten"])
def test_a_file_that_changes_while_it_is_read_is_an_error(change: str, tmp_path: Path) -> None:
    path = write(tmp_path, (KOREAN + "\n") * 2000)  # more than is read at once
    errors: list[DataError] = []
    rows = read_conversations(path, on_error=errors.append)
    next(rows)
    if change == "grows":
        with path.open("ab") as file:
            file.write(b"{}\n")
    elif change == "is cut":
        os.truncate(path, 500 * len(f"{KOREAN}\n".encode()))
    else:
        with path.open("r+b") as file:
            file.write(b"x")
    read = 1 + sum(1 for _ in rows)
    assert (read < 2000) == (change == "is cut")
    with pytest.raises(
        DataError, match=r"rows\.jsonl: changed while it was read; read it when nothing writes"
    ):
        raise errors[-1]


def test_a_file_put_in_the_place_of_one_that_is_read_changes_nothing(tmp_path: Path) -> None:
    path = write(tmp_path, (KOREAN + "\n") * 2000)
    rows = read_conversations(path)
    next(rows)
    write(tmp_path, ENGLISH, "new.jsonl").replace(path)
    assert sum(1 for _ in rows) == 1999


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
@pytest.mark.parametrize("zipped", [False, True])
def test_a_named_pipe_is_read_as_a_file_is(zipped: bool, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    content = f"{KOREAN}\nnonsense\n".encode()
    content = gzip.compress(content) if zipped else content
    writer = Thread(target=pipe.write_bytes, args=[content])
    writer.start()
    found, errors = read(pipe)
    writer.join()
    assert [conversation.line for conversation in found] == [1]
    assert [(error.kind, error.line) for error in errors] == [("bad_json", 2)]


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="this platform has no /dev/zero")
def test_a_device_that_never_ends_is_refused_at_once() -> None:
    for read_it in (read_conversations, lambda name: open_bytes(name).__enter__()):
        with pytest.raises(DataError, match=r"/dev/zero: is a device; name a file, or - for st"):
            read_it("/dev/zero")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_dash_reads_standard_input(monkeypatch: pytest.MonkeyPatch, zipped: bool) -> None:
    content = f"{KOREAN}\nnonsense\n".encode()
    stdin = io.TextIOWrapper(io.BytesIO(gzip.compress(content) if zipped else content), "ascii")
    monkeypatch.setattr(sys, "stdin", stdin)
    found, errors = read("-")
    assert [(c.path, c.line, c.messages[0].content) for c in found] == [("-", 1, "안녕?")]
    assert [str(error).split(";")[0] for error in errors] == [
        "<stdin>:2: this is not JSON at column 1"
    ]


def test_standard_input_works_as_a_pipe_and_a_closed_one_is_an_error() -> None:
    code = (
        "from minimind.data.reader import read_conversations\n"
        "for c in read_conversations('-'): print(ascii(c.messages[0].content))"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(Path(reader.__file__).parents[2])}
    piped = subprocess.run(
        command, env=environment, input=KOREAN.encode(), capture_output=True, check=True
    )
    assert piped.stdout.decode().strip() == ascii("안녕?")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&-', *command],
        env=environment,
        capture_output=True,
        check=False,
    )
    assert b"<stdin>: can't be read (standard input is closed)" in closed.stderr


def test_a_row_nested_too_deeply_is_an_error_and_the_next_row_is_read(tmp_path: Path) -> None:
    deep = '{"a": ' + "[" * 200_000 + "]" * 200_000 + "}"
    found, errors = read(write(tmp_path, f"{deep}\n{KOREAN}"))
    assert [conversation.line for conversation in found] == [2]
    with pytest.raises(DataError, match=r":1: the JSON is nested too deeply to read; flatten it"):
        raise errors[0]
    _, errors = read(write(tmp_path, f"[{deep}, {KOREAN}]", "deep.json"))
    assert [error.kind for error in errors] == ["too_deep"]


def test_a_number_of_any_length_is_fine_where_no_number_is_needed(tmp_path: Path) -> None:
    row = ENGLISH[:-1] + f', "id": {"9" * 10_000}, "score": 1e999999, "low": -{"9" * 500}}}'
    found, errors = read(write(tmp_path, row))
    assert (len(found), errors) == (1, [])


def test_a_line_that_is_too_long_is_an_error_and_the_next_row_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_LINE", 200)
    for mark in ("", "\ufeff"):
        long = json.dumps({"prompt": "a" * 500, "completion": "b"})
        fits = json.dumps({"prompt": "a" * 166, "completion": "b"})
        assert len(fits) == 199  # and its line feed
        content = f"{mark}{fits}\n{long}\n{KOREAN}\n{fits}x\n{fits}"
        found, errors = read(write(tmp_path, content))
        assert [conversation.line for conversation in found] == [1, 3, 5]
        assert [(error.kind, error.line) for error in errors] == [
            ("long_line", 2),
            ("long_line", 4),
        ]
    with pytest.raises(DataError, match=r":1: the line has more than 200 bytes; split the row, or"):
        list(read_conversations(write(tmp_path, long)))
    array = f"[{long}, {KOREAN}]"
    assert len(read(write(tmp_path, array))[0]) == 2
    spaces = " " * 300  # what stands after them isn't lost in silence
    assert [error.kind for error in read(write(tmp_path, spaces + KOREAN))[1]] == ["long_line"]


@pytest.mark.parametrize("zipped", [False, True])
def test_memory_does_not_grow_with_a_line_that_is_too_long(
    zipped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "MAX_LINE", 2**20)

    def peak(size: int) -> int:
        content = b'{"a": "' + b"a" * size + f"\n{KOREAN}".encode()
        path = write(tmp_path, gzip.compress(content, 1) if zipped else content)
        del content
        tracemalloc.start()
        try:
            found = read(path)
            assert ([c.line for c in found[0]], [e.kind for e in found[1]]) == ([2], ["long_line"])
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(40 * 2**20) < 1.1 * peak(4 * 2**20) < 8 * 2**20


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    row = json.dumps({"prompt": "길게", "completion": "긴 글 " * 5_000}).encode() + b"\n"

    def peak(rows: int) -> int:
        path = write(tmp_path, gzip.compress(row * rows, 1))
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_conversations(path)) == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)  # what is allocated once
    assert peak(200) - peak(10) < 0.05 * 190 * len(row)


def test_the_options_reach_every_row(tmp_path: Path) -> None:
    path = write(tmp_path, f'{{"question": "1+1?", "answer": "2"}}\n{KOREAN}\n')
    found = list(
        read_conversations(path, prompt_key="question", answer_key="answer", system="간단히.")
    )
    assert [conversation.shape for conversation in found] == ["question/answer", "messages"]
    assert [conversation.messages[0].content for conversation in found] == ["간단히.", "간단히."]
    with pytest.raises(ValueError, match=r"prompt_key and answer_key: one is missing; give both"):
        list(read_conversations(path, answer_key="answer"))


def test_a_row_that_is_spread_over_lines_is_an_error_and_takes_no_other_row_with_it(
    tmp_path: Path,
) -> None:
    spread = json.dumps(json.loads(KOREAN), indent=2, ensure_ascii=False)
    found, errors = read(write(tmp_path, f"{spread}\n{ENGLISH}\n{spread}\n{KOREAN}"))
    height = spread.count("\n") + 1
    assert [conversation.line for conversation in found] == [height + 1, 2 * height + 2]
    with pytest.raises(
        DataError, match=r":1: the JSON breaks off .*; write each row on one line, "
    ):
        raise errors[0]


def test_nothing_is_read_after_broken_json_in_an_array_and_the_error_says_so(
    tmp_path: Path,
) -> None:
    for broken in ("{'a': 1}", '{"a" 1}', '{"a'):
        found, errors = read(write(tmp_path, f"[{ENGLISH},\n{{}},\n{broken},\n{KOREAN}]"))
        assert len(found) == 1
        assert [error.line for error in errors] == [2, 3]
        assert str(errors[1]).split("\n")[0].endswith(" (nothing after it is read)")


# Rows from Python


class Frame:
    """A data set that yields rows with arrays, as pandas and Parquet have them."""

    def __init__(self, rows: list[dict[str, object]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Mapping[str, object]:
        return MappingProxyType(self.rows[index])


def array_of(*items: object) -> np.ndarray:
    found = np.empty(len(items), object)
    found[:] = items
    return found


TURNS = [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네."}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"messages": tuple(TURNS)},
        {"messages": array_of(*map(MappingProxyType, TURNS)), "system": None},
        {"messages": [Message("user", "안녕?"), Message("assistant", "네.")]},
        {"conversations": [{"from": "human", "value": "안녕?"}, TURNS[1]], "messages": math.nan},
        {"prompt": "안녕?", "completion": array_of(TURNS[1]), "system": math.nan},
        {"instruction": "안녕?", "output": "네.", "history": np.array([]), "input": math.nan},
        {
            "messages": [
                {"role": "user", "content": array_of({"type": "text", "text": "안녕?"})},
                {**TURNS[1], "weight": np.float32(1)},
            ]
        },
    ],
)
def test_rows_from_python_are_read_as_those_of_files(row: dict[str, object]) -> None:
    expected = (Message("user", "안녕?"), Message("assistant", "네."))
    sources = ([row], (row,), iter([row]), Frame([row]), (dict(r) for r in [row]))
    for source in sources:
        (conversation,) = read_conversations(source)  # type: ignore[arg-type]
        assert conversation.messages == expected
        assert (conversation.path, conversation.line) == ("", 1)


def test_an_error_in_a_row_from_python_names_its_number() -> None:
    rows: list[dict[str, object]] = [{"messages": TURNS}, {"text": "x"}, {"messages": TURNS}]
    errors: list[DataError] = []
    found = list(read_conversations(rows, on_error=errors.append))
    assert [conversation.line for conversation in found] == [1, 3]
    with pytest.raises(
        DataError, match=r'^row 2: the row\'s shape is unknown: its keys are "text"'
    ):
        raise errors[0]
    with pytest.raises(DataError, match=r"^row 2: the row is 5; a row is a JSON object"):
        list(read_conversations([{"messages": TURNS}, 5]))  # type: ignore[list-item]
    history = array_of(array_of("a", "b"), array_of("c"))
    row = {"instruction": "d", "output": "e", "history": history}
    with pytest.raises(DataError, match=r"^row 1: history pair 2 is a list of 1; write"):
        list(read_conversations([row]))


def test_rows_from_python_are_read_one_at_a_time() -> None:
    def endless() -> Iterator[dict[str, object]]:
        while True:
            yield {"messages": TURNS}

    rows = read_conversations(endless())
    assert [next(rows).line for _ in range(3)] == [1, 2, 3]


def test_what_is_neither_paths_nor_rows_is_told_what_is_wanted() -> None:
    class Columns:
        """A frame yields its columns' names, which are no paths."""

        def __iter__(self) -> Iterator[str]:
            return iter(["messages"])

        iterrows = None

    rows = [{"messages": TURNS}]
    for wrong in (5, None, b"rows.jsonl", [5], {"messages": TURNS}, {"train": rows}, Columns()):
        with pytest.raises(
            TypeError, match=r"neither paths nor rows, but .*; give a file's path, a"
        ):
            read_conversations(wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="int"):
        read_conversations(["a.jsonl", 5])  # type: ignore[list-item]
    for nothing in ([], iter([])):
        with pytest.raises(DataError, match=r"^data: there is nothing to read; name a \.jsonl or"):
            read_conversations(nothing)


class Once:
    """An iterator that says how many items are left."""

    def __init__(self, *items: object) -> None:
        self._items = list(items)

    def __iter__(self) -> Once:
        return self

    def __len__(self) -> int:
        return len(self._items)

    def __next__(self) -> object:
        if not self._items:
            raise StopIteration
        return self._items.pop(0)


def test_a_single_row_of_an_iterator_with_a_length_is_read() -> None:
    (conversation,) = read_conversations(Once({"prompt": "a", "completion": "b"}))
    assert conversation.messages[1].content == "b"


def test_a_list_of_nothing_is_no_rows() -> None:
    with pytest.raises(TypeError, match="source: neither paths nor rows, but NoneType"):
        read_conversations([None])
    with pytest.raises(DataError, match="there is nothing to read"):
        read_conversations([])


def test_a_fault_whose_end_is_known_ends_no_array(tmp_path: Path) -> None:
    good = '{"prompt": "a", "completion": "b"}'
    rows = [good, good[:-1] + ', "x": NaN}', good, '{"prompt": "a", "prompt": "c"}', good]
    path = tmp_path / "rows.json"
    path.write_text(f"[{', '.join(rows)}]")
    errors: list[DataError] = []
    assert len(list(read_conversations(path, on_error=errors.append))) == 3
    assert [error.kind for error in errors] == ["not_finite", "duplicate_key"]
    assert [error.row for error in errors] == [rows[1], rows[3]]
    assert not any(error.rest_unread for error in errors)


def test_an_open_file_is_refused() -> None:
    with pytest.raises(TypeError, match="source: neither paths nor rows, but StringIO"):
        read_conversations(io.StringIO('{"prompt": "a", "completion": "b"}'))
