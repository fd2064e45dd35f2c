"""Each metric on answers whose worth is plain to see."""

from __future__ import annotations

from decimal import Decimal

import pytest

from minimind.evaluate.metrics import (
    Case,
    chrf,
    contains,
    exact,
    language,
    last_number,
    numeric,
    regex,
    repetition,
)


def case(answer: str, expected: str | None = None, question: str = "?") -> Case:
    return Case(question, answer, expected)


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("서울", "서울", 1),
        (" 서울 \n", "서울", 1),
        ("\u1109\u1165\u110b\u116e\u11af", "서울", 1),  # its letters one by one
        ("서울이에요", "서울", 0),
        ("Seoul", "seoul", 0),
        ("", "", 1),
    ],
)
def test_exact_forgives_white_space_and_unicode_forms_only(answer, expected, right) -> None:
    assert exact(case(answer, expected)) == right


def test_contains_finds_the_answer_in_a_sentence_whatever_its_case() -> None:
    assert contains(case("The capital is  SEOUL.", "seoul")) == 1
    assert contains(case("수도는 서울이에요.", "서울")) == 1
    assert contains(case("부산이에요.", "서울")) == 0


def test_regex_is_the_rows_pattern_over_lines_and_cases() -> None:
    assert regex(Case("?", "First\nSEOUL", None, "first.*seoul")) == 1
    assert regex(Case("?", "Busan", None, "seoul")) == 0
    assert regex(Case("?", "Busan")) is None


@pytest.mark.parametrize(
    ("answer", "expected", "right"),
    [
        ("So he pays $1,234.50 in all.", "60 + ... = 1234.5\n#### 1234.50", 1),
        ("12 apples, so 7", "#### 7", 1),
        ("7 of 12", "#### 7", 0),
        ("모두 1,000원이에요.", "1000", 1),
        ("-3", "#### -3", 1),
        ("none", "#### 3", 0),
    ],
)
def test_numeric_compares_last_numbers_as_numbers(answer, expected, right) -> None:
    assert numeric(case(answer, expected)) == right


def test_without_an_expected_answer_there_is_nothing_to_compare() -> None:
    for metric in (exact, contains, numeric, chrf):
        assert metric(case("anything")) is None
    assert numeric(case("3", "no number here")) is None


def test_last_number_is_the_last_one() -> None:
    assert last_number("from 1 to 2.50") == Decimal("2.5")
    assert last_number("nothing") is None


def test_repetition_is_the_share_of_runs_said_before() -> None:
    assert repetition(case("a b c d e f g")) == 0
    assert repetition(case("short")) == 0
    assert repetition(case("a b c d a b c d")) == pytest.approx(1 / 5)  # abcd twice, of five runs
    assert repetition(case("네 " * 40)) > 0.9


def test_language_is_kept_when_the_main_script_is() -> None:
    assert language(case("저는 Mini예요.", question="이름이 뭐예요?")) == 1
    assert language(case("I am Mini.", question="이름이 뭐예요?")) == 0
    assert language(case("42", question="몇이에요?")) is None


def test_chrf_is_sacrebleus() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    expected = sacrebleu.sentence_chrf("the cat sat", ["the cat sits"]).score / 100
    assert chrf(case("the cat sat", "the cat sits")) == pytest.approx(expected)
    assert 0.3 < expected < 1


def test_without_sacrebleu_chrf_says_how_to_get_it(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sacrebleu", None)
    with pytest.raises(ValueError, match=r"chrf: sacrebleu isn't installed; pip install"):
        chrf(case("a", "b"))
