"""What was read of real sets' rejections is on record, and few of them were wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import clean_throughput, cleaning_verdicts
from benchmarks.cleaning_verdicts import SAMPLE, Rejection, false_positives, read_verdicts
from minimind.clean.cleaning import DATASET_RULES
from minimind.clean.rules import RULES

VERDICTS = read_verdicts()


def test_each_verdict_has_its_form_and_a_short_reason() -> None:
    lines = cleaning_verdicts.VERDICTS.read_text(encoding="utf-8").splitlines()
    assert len(lines) == len(VERDICTS)  # none stands twice
    for row in map(json.loads, lines):
        assert list(row) == ["file", "line", "rule", "verdict", "why"]
        assert row["file"] in SAMPLE
        assert row["line"] > 0
        assert row["rule"] in (*RULES, *DATASET_RULES)
        assert row["verdict"] in ("right", "wrong")
        assert 10 < len(row["why"]) < 110


def test_at_least_2000_rows_were_sampled() -> None:
    assert sum(SAMPLE.values()) >= 2000


@pytest.mark.parametrize("rule", [*RULES, *DATASET_RULES])
def test_of_each_set_a_rule_rejects_at_most_one_percent_wrongly(rule) -> None:
    assert max(false_positives(VERDICTS, VERDICTS, rule)) <= 0.01


def test_rates_are_wrong_rejections_over_rows(monkeypatch) -> None:
    monkeypatch.setattr(cleaning_verdicts, "SAMPLE", {"a": 30, "b": 10})
    found = [Rejection("a", 1, "echo"), Rejection("b", 1, "echo"), Rejection("b", 2, "echo")]
    verdicts = dict(zip(found, ["right", "wrong"], strict=False))
    assert false_positives(found, verdicts, "echo") == (1 / 40, 1 / 10)
    assert "| echo | 3 | 1 | 2.50% | 10.00% | 1 |" in cleaning_verdicts.table(found, verdicts)


def test_rejections_are_those_of_the_sampled_rows(tmp_path, monkeypatch) -> None:
    rows = [{"question": f"Why {n}?", "answer": "..." if n < 6 else f"So {n}."} for n in range(12)]
    (tmp_path / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(cleaning_verdicts, "SAMPLE", {"set.jsonl": 8})
    chosen = cleaning_verdicts.sample(tmp_path)
    assert len(chosen) == 8
    found = cleaning_verdicts.rejections(tmp_path)
    expected = {Rejection("set.jsonl", n, "empty_answer") for n in range(1, 7)}
    assert set(found) == {entry for entry in expected if (entry.file, entry.line) in chosen}
    assert all(evidence == "the answer is '...'" for evidence, _ in found.values())


def test_rows_to_clean_are_seeded_and_a_hundredth_are_copies(tmp_path: Path) -> None:
    path = clean_throughput.write_rows(tmp_path / "a.jsonl", 300)
    assert clean_throughput.write_rows(tmp_path / "b.jsonl", 300).read_bytes() == path.read_bytes()
    assert len(set(path.read_text(encoding="utf-8").splitlines())) == 297
    measures = clean_throughput.clean("and duplicates", path)
    assert measures["rejected"] == 3
    assert measures["rows_per_second"] > 0
