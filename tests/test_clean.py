"""The command keeps good rows byte for byte, lists the others, and loses none."""

from __future__ import annotations

import errno
import gzip
import importlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimind.clean import __main__ as clean
from minimind.clean.rules import RULES, Thresholds, check_conversation
from minimind.data.reader import read_conversations
from tests.support import planted

GOOD = [
    '{"messages":[{"role":"user","content":"안녕?"},{"role":"assistant","content":"안녕하세요!"}]}\n',
    '{ "instruction" : "1 + 1 = ?", "output": "2", "other": [1,  2] }\r\n',
    '  {"prompt": "\\uc548\\ub155", "completion": "Hello, 안녕"}\n',
]
BAD = [
    '{"prompt": "Hello?", "completion": "..."}\n',
    '{"prompt": "Broken", "completion": \n',
    '{"messages": [{"role": "bot", "content": "Hi"}]}\n',
    '{"instruction": "1 + 1 = ?", "output": "2"}\n',  # a good one's words again
]


def main(*arguments: object) -> int:
    try:
        return clean.main([str(argument) for argument in arguments])
    except SystemExit as error:  # how tyro ends
        return int(error.code or 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [GOOD[0], BAD[0], GOOD[1], BAD[1], GOOD[2], BAD[2], BAD[3]]
    path.write_bytes("".join(lines).encode())
    return path


def rejected(folder: Path) -> list[dict]:
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_good_rows_are_kept_as_their_very_bytes_and_the_others_listed(
    data, tmp_path, capsys
) -> None:
    assert main(data, "--out", tmp_path / "clean.jsonl") == 0
    assert (tmp_path / "clean.jsonl").read_bytes() == "".join(GOOD).encode()
    entries = rejected(tmp_path)
    assert [(entry["line"], entry["rule"]) for entry in entries] == [
        (2, "empty_answer"),
        (4, "unusable"),
        (6, "unusable"),
        (7, "duplicate"),
    ]
    assert {entry["file"] for entry in entries} == {str(data)}
    assert entries[0]["evidence"] == "the answer is '...'"
    assert entries[3]["evidence"] == f"says the same as {data}:3"
    assert [entry["row"] + "\n" for entry in entries] == BAD
    printed = capsys.readouterr().out
    assert "7 rows: 3 kept, 4 rejected\n    unusable: 2" in printed
    assert "distinct-1: " in printed


def test_keys_that_are_not_read_are_told_and_kept(tmp_path, capsys) -> None:
    turns = [{"role": "developer", "content": "S"}, {"role": "user", "content": "2 + 2는 뭐예요?"}]
    turns.append({"role": "assistant", "content": "4예요.", "mood": "glad"})
    path = tmp_path / "data.jsonl"
    rows = [{"messages": turns, "id": 1}, turns, {"messages": turns, "images": ["a.jpg"]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    common = (path, "--out", tmp_path / "out.jsonl", "--overwrite", "--skip", *clean.DATASET_RULES)
    assert main(*common) == 0
    lines = ["not read: id (1 row), mood (2 messages)", "read: developer as system (2 rows)"]
    assert "\n".join(lines) in capsys.readouterr().out
    kept = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    assert kept == path.read_text(encoding="utf-8").splitlines(keepends=True)[:2]
    assert rejected(tmp_path)[0]["evidence"].startswith('the row has "images", which the model')
    assert main(*common, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["unread_of_rows"] == {"id": 1}
    assert report["unread_of_messages"] == report["unread_texts"] == {"mood": 2}
    assert report["read_as"] == {"developer as system": 2}
    assert main(*common, "--ignore-keys", "id", "mood", "images") == 0
    printed = capsys.readouterr().out
    assert "3 rows: 3 kept" in printed
    assert "not read" not in printed


def test_without_rules_the_file_comes_out_byte_for_byte(tmp_path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes("".join(GOOD + BAD[:1] + GOOD[:1]).encode())
    assert main(path, "--out", tmp_path / "out.jsonl", "--rules") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == path.read_bytes()
    assert rejected(tmp_path) == []


def test_the_projects_own_sample_passes_every_rule(tmp_path) -> None:
    pytest.importorskip("datasketch")
    files = (planted.SAMPLE, planted.SAMPLE.with_name("facts.jsonl"))  # what README trains on
    assert main(*files, "--out", tmp_path / "out.jsonl") == 0
    assert rejected(tmp_path) == []


def test_several_files_an_array_gzip_and_a_last_line_without_end_become_one_file(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD[0].rstrip("\n"), encoding="utf-8")
    array = [{"prompt": "넷?", "completion": "네 번째예요."}, {"prompt": "x?", "completion": "!"}]
    (tmp_path / "b.json").write_text(json.dumps(array, indent=1), encoding="utf-8")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(GOOD[2].encode()))
    files = [tmp_path / name for name in ("a.jsonl", "b.json", "c.jsonl.gz")]
    assert main(*files, "--out", tmp_path / "out.jsonl") == 0
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    third = '{ "prompt": "\\ub137?", "completion": "\\ub124 \\ubc88\\uc9f8\\uc608\\uc694." }\n'
    assert text == GOOD[0] + third + GOOD[2]  # an array's row as it stands there, on one line
    assert [entry["rule"] for entry in rejected(tmp_path)] == ["empty_answer"]


def test_what_is_kept_and_what_is_rejected_is_all_there_was(tmp_path) -> None:
    chance, pairs = random.Random(1), list(planted.pairs())
    rows = planted.sound_rows()[:300]
    for plant in planted.PLANTERS.values():
        rows += [plant(chance, chance.choice(pairs)) for _ in range(10)]
    chance.shuffle(rows)
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"messages": row}, ensure_ascii=chance.random() < 0.5) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    assert main(path, "--out", tmp_path / "out.jsonl", "--json") == 0
    kept = (tmp_path / "out.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    out = {entry["line"]: entry["row"] for entry in rejected(tmp_path)}
    remaining = iter(kept)
    assert [out.get(n) or next(remaining) for n in range(1, len(lines) + 1)] == lines
    assert next(remaining, None) is None


def test_the_report_counts_rows_by_rule_and_python_gives_the_same_verdicts(
    tmp_path, capsys
) -> None:
    chance, pairs = random.Random(2), list(planted.pairs())
    rows = [plant(chance, pairs[at]) for at, plant in enumerate(planted.PLANTERS.values())]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    options = ["--json", "--max-characters", planted.MAX_CHARACTERS]
    assert main(path, "--out", tmp_path / "out.jsonl", *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["rows"] == len(rows)
    assert report["kept"] == 0
    assert set(report["rejected"]) == set(RULES)
    thresholds = Thresholds(max_characters=planted.MAX_CHARACTERS)
    for conversation, entry in zip(read_conversations(path), rejected(tmp_path), strict=True):
        found = check_conversation(conversation, thresholds=thresholds)
        verdicts = [verdict._asdict() for verdict in found]
        assert entry["verdicts"] == verdicts
        assert (entry["rule"], entry["evidence"]) == (
            verdicts[0]["rule"],
            verdicts[0]["evidence"],
        )


def test_rules_can_be_skipped_chosen_and_added(data, tmp_path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(
        "def greets(conversation, thresholds):\n"
        "    text = conversation.messages[-1].content\n"
        "    return f'says {text!r}' if '안녕' in text else None\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    options = ["--skip", "empty_answer", "duplicate", "near_duplicate", "--rule", "mine:greets"]
    assert main(data, "--out", "out.jsonl", *options) == 0
    found = [(entry["line"], entry["rule"]) for entry in rejected(tmp_path)]
    assert found == [(1, "mine:greets"), (4, "unusable"), (5, "mine:greets"), (6, "unusable")]
    assert main(data, "--out", "out.jsonl", "--rules", "echo", "--overwrite") == 0
    assert [entry["rule"] for entry in rejected(tmp_path)] == ["unusable", "unusable"]


def test_rules_of_ones_own_may_be_called_like_others(data, tmp_path, monkeypatch) -> None:
    for name in ("one", "two"):
        source = f"def echo(conversation, thresholds):\n    return 'rule {name}'\n"
        (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert main(data, "--out", "out.jsonl", "--rule", "one:echo", "--rule", "two:echo") == 0
    first = rejected(tmp_path)[0]["verdicts"]
    assert first == [
        {"rule": "one:echo", "evidence": "rule one"},
        {"rule": "two:echo", "evidence": "rule two"},
    ]


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("def f(c, t): return 1 / 0", 1, "data.jsonl:1: rule bad:f fails with ZeroDivisionError"),
        ("def f(c): return None", 1, "data.jsonl:1: rule bad:f fails with TypeError: f() takes"),
        ("def f(c, t): return True", 1, "data.jsonl:1: rule bad:f returns True; return evidence"),
        ("def f(c, t): return ''", 1, "data.jsonl:1: rule bad:f returns ''; return evidence"),
        ("def f(c, t) return", 2, "--rule bad:f: can't be imported (expected ':'"),
        ("1 / 0", 2, "--rule bad:f: can't be imported (division by zero); check its name"),
    ],
)
def test_a_rule_that_breaks_is_named(
    data, tmp_path, monkeypatch, capsys, source, code, message
) -> None:
    (tmp_path / "bad.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "bad", raising=False)
    importlib.invalidate_caches()
    assert main("data.jsonl", "--out", "out.jsonl", "--rule", "bad:f") == code
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_a_file_named_twice_is_read_twice(tmp_path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(GOOD))
    assert main(path, path, "--out", tmp_path / "out.jsonl") == 0
    assert (tmp_path / "out.jsonl").read_bytes() == "".join(GOOD).encode()
    found = [(entry["line"], entry["rule"]) for entry in rejected(tmp_path)]
    assert found == [(1, "duplicate"), (2, "duplicate"), (3, "duplicate")]


def test_rejected_rows_of_an_array_are_listed_whole(tmp_path) -> None:
    row = {"prompt": "Why? " * 200, "completion": "...", "number": 1}
    text = json.dumps([row], indent=2).replace('"number": 1', '"number": 1.00')
    (tmp_path / "data.json").write_text(text)
    assert main(tmp_path / "data.json", "--out", tmp_path / "out.jsonl") == 0
    (entry,) = rejected(tmp_path)
    assert json.loads(entry["row"]) == row
    assert entry["row"].endswith('"number": 1.00 }')


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.gz", gzip.compress("".join(GOOD).encode())[:-9], "breaks off after line"),
        ("array.json", b'[{"prompt": "a", "completion": "b"}, {"prompt": ', "nothing after it"),
        ("cp949.json", b'[{"prompt": "a", "completion": "\xb0\xa1"}]', "byte 0xb0 at column 33"),
        ("data.parquet", b"PAR1 and so on", "is a Parquet file"),
        ("empty.jsonl", b"", "has no rows"),
    ],
)
def test_a_file_that_can_not_be_read_to_its_end_is_not_cleaned_in_part(
    tmp_path, capsys, name, content, message
) -> None:
    (tmp_path / name).write_bytes(content)
    assert main(tmp_path / name, "--out", tmp_path / "out.jsonl") == 3
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("change", [lambda text: text * 2, lambda text: "", str.upper])
def test_a_file_that_changes_meanwhile_is_not_cleaned(
    data, tmp_path, monkeypatch, capsys, change
) -> None:
    def changes(_: object) -> object:
        data.write_text(change(data.read_text(encoding="utf-8")), encoding="utf-8")
        return np.full(7, -1)

    monkeypatch.setattr("minimind.clean.cleaning.DuplicateFinder.duplicates", changes)
    assert main(data, "--out", tmp_path / "out.jsonl") == 3
    assert "changed while it was cleaned; clean it when nothing" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


def test_a_link_stays_one_and_each_file_is_made_where_it_will_stay(data, tmp_path, monkeypatch):
    real, elsewhere = tmp_path / "real", tmp_path / "elsewhere"
    for folder in (real, elsewhere):
        folder.mkdir()
    link = tmp_path / "out.jsonl"
    link.symlink_to(real / "kept.jsonl")
    moved = []

    def replace(source: Path, target: Path) -> None:
        moved.append((source.parent.parent, target.parent))
        source.rename(target)

    monkeypatch.setattr("minimind.clean.cleaning.os.replace", replace)
    assert main(data, "--out", link, "--rejected", elsewhere / "bad.jsonl") == 0
    assert moved == [(elsewhere, elsewhere), (real, real)]  # perhaps other file systems
    assert link.is_symlink()
    assert link.read_bytes() == "".join(GOOD).encode()
    assert [path.name for path in real.iterdir()] == ["kept.jsonl"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (lambda: OSError(errno.ENOSPC, "No space left"), 1, "can't be written (No space left)"),
        (KeyboardInterrupt, 130, "out.jsonl is unchanged"),
    ],
)
def test_a_run_that_breaks_off_leaves_what_was_there(
    data, tmp_path, monkeypatch, capsys, error, code, message
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("precious")

    def breaks(*_: object) -> None:
        raise error()

    monkeypatch.setattr("minimind.clean.cleaning.os.replace", breaks)
    assert main(data, "--out", out, "--overwrite") == code
    assert message in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "data.jsonl"}


def test_if_only_the_second_file_can_not_be_replaced_the_error_says_so(
    data, tmp_path, monkeypatch, capsys
) -> None:
    out, listed = tmp_path / "out.jsonl", tmp_path / "bad.jsonl"
    out.write_text("precious")

    def replace(source: Path, target: Path) -> None:
        if target == out:
            raise OSError(errno.EIO, "Input/output error")
        source.rename(target)

    monkeypatch.setattr("minimind.clean.cleaning.os.replace", replace)
    assert main(data, "--out", out, "--rejected", listed, "--overwrite") == 1
    assert f"it is unchanged, and {listed} is unchanged or complete" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert len(listed.read_text(encoding="utf-8").splitlines()) == 4


def test_old_working_folders_of_killed_runs_are_removed_and_nothing_else(data, tmp_path) -> None:
    names = [".minimind-clean-old", ".minimind-clean-new", "building-mine", ".cleaning-mine"]
    for name in names:
        (tmp_path / name).mkdir()
        if not name.endswith("new"):
            os.utime(tmp_path / name, (0, 0))
    assert main(data, "--out", tmp_path / "out.jsonl") == 0
    assert [name for name in names if (tmp_path / name).exists()] == names[1:]


def test_without_datasketch_near_duplicates_are_told_not_to_be_checked(
    data, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    assert main(data, "--out", tmp_path / "out.jsonl") == 0
    assert "not checked: near_duplicate (needs datasketch" in capsys.readouterr().out


def test_rows_come_from_standard_input_too(data, tmp_path, monkeypatch) -> None:
    with data.open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main("-", "--out", tmp_path / "out.jsonl") == 0
    assert {entry["file"] for entry in rejected(tmp_path)} == {"-"}
    assert (tmp_path / "out.jsonl").read_bytes() == "".join(GOOD).encode()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("data.jsonl",), 2, "out"),
        (("--out", "x.jsonl"), 2, "no data file; name one"),
        (("absent.jsonl", "--out", "x.jsonl"), 3, "absent.jsonl: there is no such file"),
        (("data.jsonl", "--out", "data.jsonl"), 2, "data.jsonl: is the data itself"),
        (("data.jsonl", "--out", "old.jsonl"), 2, "old.jsonl: exists; --overwrite replaces it"),
        (("data.jsonl", "--out", "."), 2, ".: is no file; name one"),
        (("data.jsonl", "--out", "-"), 2, "-: is no file; name one"),
        (("data.jsonl", "--out", "/dev/null", "--overwrite"), 2, "/dev/null: is no file; name one"),
        (("data.jsonl", "--out", "data.jsonl/x/y"), 2, "data.jsonl is no folder; name another"),
        (("data.jsonl", "--out", "rejected.jsonl"), 2, "rejected.jsonl: is named twice"),
        (("data.jsonl", "--out", "x", "--skip", "y"), 2, "--skip has y; use some of role_order"),
        (("data.jsonl", "--out", "x", "--rule", "y"), 2, "--rule y: write it as module:function"),
        (("data.jsonl", "--out", "x", "--rule", "no:y"), 2, "--rule no:y: can't be imported"),
        (("data.jsonl", "--out", "x", "--rule", "sys:path"), 2, "--rule sys:path: is no function"),
        (("data.jsonl", "--out", "x", "--prompt-key", "q"), 2, "--prompt-key and --answer-key"),
        (
            ("data.jsonl", "--out", "x", "--similarity", "0"),
            2,
            "similarity is 0.0; use more than 0",
        ),
        (("data.jsonl", "--out", "x", "--echo", "-1"), 2, "echo is -1; use 0 or more"),
    ],
)
def test_what_can_not_be_is_refused(data, capsys, monkeypatch, arguments, code, message) -> None:
    monkeypatch.chdir(data.parent)
    Path("old.jsonl").write_text("old")
    assert main(*arguments) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())
    assert Path("old.jsonl").read_text() == "old"


def test_the_command_runs_as_a_module(data, tmp_path) -> None:
    command = [sys.executable, "-m", "minimind.clean", data, "--out", tmp_path / "out.jsonl"]
    done = subprocess.run(command, capture_output=True, check=True, cwd=Path(__file__).parents[1])
    assert b"7 rows: 3 kept" in done.stdout
