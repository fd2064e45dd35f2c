"""The data benchmarks run on tiny sizes, and their arithmetic is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import scaling, tokenize_throughput
from minimind.data.reader import read_conversations


def test_contestants_encode_the_same_rows(tmp_path: Path) -> None:
    files = tokenize_throughput.workloads([], 40, tmp_path)
    assert {name: len(list(read_conversations(path))) for name, path in files.items()} == {
        "short rows": 40,
        "docstrings": 4,
    }
    file = files["short rows"]
    ratios = {}
    for name in ("build", "encode", "raw"):
        measures = tokenize_throughput.contestant(name, file)()
        ratios[name] = measures["tokens_per_second"] / measures["rows_per_second"]
    assert ratios["build"] == pytest.approx(ratios["encode"])
    assert ratios["build"] == pytest.approx(ratios["raw"], rel=0.02)


def test_the_table_shows_medians_and_shares_of_the_bare_tokenizer() -> None:
    rounds = {"build": (40.0, 50.0, 60.0), "raw": (100.0, 100.0, 100.0)}
    measured = {
        name: [{"rows_per_second": value, "tokens_per_second": 10 * value} for value in values]
        for name, values in rounds.items()
    }
    table = tokenize_throughput.table({"case": measured})
    assert "| case | build | 50 (40–60) | 500 (400–600) | 0.50 (0.40–0.60)× |" in table


def test_rows_of_a_size_are_seeded_and_no_two_are_the_same(tmp_path: Path) -> None:
    path = scaling.write_rows(tmp_path / "a.jsonl", 50)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(set(lines)) == len(list(read_conversations(path))) == 50
    assert scaling.write_rows(tmp_path / "b.jsonl", 50).read_bytes() == path.read_bytes()


def test_a_size_is_measured_and_its_growth_fitted(tmp_path: Path) -> None:
    measures = scaling.size(scaling.write_rows(tmp_path / "a.jsonl", 60))
    assert measures["tokens"] > 60 * 20
    assert 1.5 < measures["disk_per_token_byte"] < 3
    sizes = [{"rows": rows, "build": 3e-5 * rows**1.5} for rows in (1e3, 1e4, 1e5)]
    assert scaling.exponent(sizes, "build") == pytest.approx(1.5)


def test_a_synthetic_table_is_opened_and_planned(tmp_path: Path) -> None:
    scaling.write_large_table(tmp_path / "planned", 1000)
    assert scaling.plan(tmp_path / "planned")["to the step s"] > 0
    head = json.loads((tmp_path / "planned" / "report.json").read_text())["head"]
    assert head["dtype"] == "uint16"
