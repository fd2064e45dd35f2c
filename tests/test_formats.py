"""A file of another format is named, with a line that converts it: those lines are run here."""

from __future__ import annotations

import ast
import gzip
import io
import json
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from minimind.data.errors import DataError
from minimind.data.plain_text import read_documents
from minimind.data.reader import read_conversations

ROWS = [
    {"prompt": "2 + 2?", "completion": "4"},
    {"prompt": 'null, "NA"\n과 007?', "completion": "NA"},
    *({"prompt": f"{n}번", "completion": "1990-01-01"} for n in range(12)),
]


def told(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_conversations(path))
    return caught.value


def converted(error: DataError, folder: Path) -> list[object]:
    """Run the line that the error gives, and read what it writes."""
    command = shlex.split(error.remedy.split(": ", 1)[1])
    assert command[0] == "python"
    before = set(folder.iterdir())
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=folder)
    (made,) = set(folder.iterdir()) - before
    return [json.loads(line) for line in made.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", ["표 하나.json", "it's.json", "frame.jsonl"])
@pytest.mark.parametrize("orient", ["columns", "index", "split"])
def test_a_frame_in_one_object_is_named_and_its_line_converts_it(
    tmp_path: Path, name: str, orient: str
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas isn't installed: its lines aren't run")
    path = tmp_path / name
    pandas.DataFrame(ROWS).to_json(path, orient=orient)
    error = told(path)
    assert error.kind == "whole_frame"
    assert f'the row is a whole table (what pandas calls orient="{orient}")' in str(error)
    assert sorted(map(str, converted(error, tmp_path))) == sorted(map(str, ROWS))


def test_columns_of_lists_are_named(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    for columns in (
        {"prompt": ["a", "b"], "completion": ["c", "d"]},
        {"messages": [turns, turns]},
        {"messages": [turns], "id": [1]},
    ):
        path = tmp_path / "frame.json"
        path.write_text(json.dumps(columns))
        assert told(path).kind == "whole_frame"
    for row in ({"messages": "x"}, {"prompt": ["a"], "completion": "b"}, {"messages": ["x"]}):
        path.write_text(json.dumps(row))
        assert told(path).kind != "whole_frame"


@pytest.mark.parametrize(("separator", "name"), [(",", "CSV"), ("\t", "TSV"), (";", "CSV with")])
@pytest.mark.parametrize("index", [False, True])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_table_is_named_and_its_line_converts_it_without_a_change_of_text(
    tmp_path: Path, separator: str, name: str, index: bool, zipped: bool
) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas isn't installed: its lines aren't run")
    path = tmp_path / ("table.csv.gz" if zipped else "table.csv")
    pandas.DataFrame(ROWS).to_csv(path, sep=separator, index=index)
    error = told(path)
    assert (error.kind, error.rest_unread) == ("foreign_file", True)
    assert error.fact.startswith(f"is {name}")
    found = converted(error, tmp_path)
    keys = ("prompt", "completion")
    assert [{key: row[key] for key in keys} for row in found] == ROWS  # type: ignore[index]


def test_a_table_is_known_by_its_head_alone_and_rows_are_no_table(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for head in ("질문,답", "Q,A,label", '"Q","A"', "id\tquestion\tanswer (short)"):
        path.write_text(head, encoding="utf-8")
        assert told(path).kind == "foreign_file"
    row = json.dumps(ROWS[0])
    for other in (f"a, b\n{row}", "1,2\n3,4", "version https://x.y\na, b", "a,,b", "Hi, you {,"):
        path.write_text(other, encoding="utf-8")
        assert told(path).kind in ("bad_json", "extra_text")


def test_parquet_is_named_and_its_line_converts_it(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="pyarrow isn't installed: its line isn't run")
    pandas = pytest.importorskip("pandas", reason="pandas isn't installed: its lines aren't run")
    path = tmp_path / "train.parquet"
    pandas.DataFrame(ROWS).to_parquet(path)
    error = told(path)
    assert error.fact == "is a Parquet file"
    assert converted(error, tmp_path) == ROWS


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_named_with_the_line_that_unpacks_it(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "rows.tar"
    data = json.dumps(ROWS[0]).encode()
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo("inside.jsonl")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    error = told(path)
    assert error.fact == "is a tar archive"
    command = shlex.split(error.remedy.split(": ", 1)[1])
    subprocess.run(command, check=True, cwd=tmp_path)
    assert (tmp_path / "inside.jsonl").read_bytes() == data


def test_a_name_that_could_disturb_a_terminal_is_escaped_as_python_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "a\u202eb\x1b.csv"
    path.write_text("prompt,completion\na,b\n")
    error = told(path)
    assert str(error).isprintable()
    (told_name,) = [part for part in shlex.split(error.remedy) if "read_csv" in part]
    assert ast.literal_eval(told_name.split("(")[1].split(", sep")[0]) == str(path)


def test_texts_are_told_of_text(tmp_path: Path) -> None:
    path = tmp_path / "story.txt"
    path.write_bytes(gzip.compress(b"PAR1 and more"))
    with pytest.raises(DataError, match=r"is a Parquet file; write it as text in UTF-8, plain or"):
        list(read_documents(path))
