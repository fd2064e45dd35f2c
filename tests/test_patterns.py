"""A pattern from a file can neither hang a command nor end it with Python's own error."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from minimind.data.errors import DataError
from minimind.evaluate import patterns
from minimind.evaluate.metrics import Case, regex
from minimind.evaluate.patterns import found_in, why_no_pattern
from minimind.evaluate.questions import read_questions

FOREVER = ["(a+)+b", "(a|a)*b", "(a|aa)+$b", "(.*)*(.*)*x$b"]


@pytest.mark.parametrize("pattern", FOREVER)
def test_a_pattern_that_takes_forever_counts_as_no_match_and_is_told(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patterns, "SECONDS", 0.5)
    started = time.monotonic()
    with pytest.warns(UserWarning, match=r"the pattern .* took more than .* s on an answer, which"):
        assert regex(Case("?", "a" * 4000 + "c", None, pattern)) == 0.0
    assert time.monotonic() - started < 20
    monkeypatch.undo()
    assert regex(Case("?", "서울입니다", None, "서울|SEOUL")) == 1.0  # and the next one is searched


@pytest.mark.parametrize(
    ("text", "pattern", "found"),
    [
        ("It is\nSeoul.", "is.seoul", True),
        ("부산", "서울|Seoul", False),
        ("", "", True),
        ("\u2028\ud800'\"\\", "\ud800", True),
        ("a" * 10**6, "a$", True),
    ],
)
def test_what_is_found_is_what_re_finds(text: str, pattern: str, found: bool) -> None:
    assert found_in(text, pattern) is found


def test_a_process_that_was_ended_is_started_again() -> None:
    assert found_in("a", "a")
    patterns._running().kill()
    patterns._running().wait()
    with pytest.raises(TimeoutError):
        found_in("a", "a")
    assert found_in("a", "a")


WRONG = ["(", 3, ["a"], None.__class__, "a{99999999999999999999}", "(" * 9999 + ")" * 9999, "(?L)a"]


@pytest.mark.parametrize("pattern", WRONG, ids=range(len(WRONG)))
def test_what_is_no_pattern_is_told_in_one_line_with_its_place(
    pattern: object, tmp_path: Path
) -> None:
    assert why_no_pattern(pattern)
    path = tmp_path / "a.jsonl"
    row = {"prompt": "a", "pattern": pattern if isinstance(pattern, (str, list)) else 3}
    path.write_text(json.dumps({"prompt": "a"}) + "\n" + json.dumps(row), encoding="utf-8")
    with pytest.raises(DataError, match=r'a\.jsonl:2: "pattern" is no regular expression \('):
        list(read_questions([str(path)]))
