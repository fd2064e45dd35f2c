"""Questions are asked of the small world's facts, but not those that others will ask."""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minimind.base.recipe.facts import read_world
from minimind.base.recipe.grammar import read_sections
from minimind.base.recipe.questions import SIGNS, Asker, Options, command, main
from minimind.base.recipe.statements import FOLDER

ROOT = Path(__file__).resolve().parents[2]
FACTS = ROOT / "tests" / "data" / "facts.jsonl"
APART = (
    ROOT / "benchmarks" / "data" / "held_out.jsonl",
    ROOT / "tests" / "data" / "conversations.jsonl",
)
LANGUAGES = ("ko", "en")


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def said(
    language: str, relation: str, apart: list[dict[str, Any]], seed: int = 1
) -> list[list[str]]:
    """What an asker's conversations about one relation say, without roles."""
    asker = Asker(read_world(), language, apart, Random(seed))
    asker.templates = {relation: asker.templates[relation]}
    return [[m["content"] for m in messages] for messages in asker.conversations(999)]


def test_the_sample_is_what_the_program_writes(tmp_path: Path) -> None:
    out = tmp_path / "facts.jsonl"
    main(Options(out=out, apart=APART))
    assert out.read_bytes() == FACTS.read_bytes()


def test_both_languages_ask_for_the_same_relations_with_an_answer_to_each() -> None:
    korean, english = (read_sections(FOLDER / f"questions.{name}.txt") for name in LANGUAGES)
    assert set(korean) == set(english)
    known = {fact.relation for fact in read_world().facts} | set(SIGNS)
    for relation in set(korean) - {""}:
        assert relation in known
        for lines in (korean[relation], english[relation]):
            assert [line.startswith("= ") for line in lines] == [False] * (len(lines) - 1) + [True]
            assert all(line[-1] in ".?!" for line in lines), lines
            assert len(set(lines)) == len(lines)


@pytest.mark.parametrize(
    ("language", "relation", "intent", "pattern", "lost"),
    [
        ("en", "capital", "capital Peru", r"\bLima\b", "Peru is Lima"),
        ("ko", "capital", "capital Peru", "리마", "페루의 수도는 리마"),
        ("ko", "opposite", "opposite big", "작다", "크다의 반대말은 작다"),
        ("en", "add", "sum 2 5", r"is 7\b", "2 plus 5 is 7"),
    ],
)
def test_a_fact_that_others_ask_for_is_kept_back(
    language: str, relation: str, intent: str, pattern: str, lost: str
) -> None:
    row = asked("?", kind="fact", language=language, intent=intent, pattern=pattern)
    everything, less = (
        [text for texts in said(language, relation, apart) for text in texts]
        for apart in ([], [row])
    )
    assert any(lost in text for text in everything)
    assert not any(lost in text for text in less)
    # That fact alone, or the sum both ways round.
    assert len(everything) // 2 - len(less) // 2 in (1, 2)


def test_a_prompt_that_others_ask_is_worded_in_another_way() -> None:
    held_out = "Tell me the color of a banana."
    assert any(held_out in texts for seed in range(40) for texts in said("en", "color", [], seed))
    row = asked(held_out, pattern="yellow")  # of no kind, so the fact isn't kept back
    others = [texts for seed in range(40) for texts in said("en", "color", [row], seed)]
    assert not any(held_out in texts for texts in others)
    assert sum("A banana is yellow." in texts for texts in others) == 40


def test_both_orders_are_asked_of_two_things_and_the_answer_is_the_same() -> None:
    rows = [texts for seed in range(60) for texts in said("en", "weight", [], seed)]
    answer = "A car is heavier than a book."
    assert {row[row.index(answer) - 1] for row in rows if answer in row} == {
        "Which is heavier, a car or a book?",
        "Which is heavier, a book or a car?",
        "Is a car heavier than a book?",
        "Is a book heavier than a car?",
    }


def test_nothing_is_asked_whose_answer_says_nothing() -> None:
    answers = [texts[-1] for texts in said("en", "baby", [])]
    assert "A baby chicken is called a chick." in answers
    assert not any("elephant" in answer for answer in answers)
    kinds = [texts[-1] for texts in said("en", "kind", [])]
    assert "A rose is a flower." in kinds
    assert not any("is a job" in answer or "is a place" in answer for answer in kinds)


def test_a_word_with_two_meanings_is_asked_for_once() -> None:
    rows = said("ko", "translate", [])
    assert sum(text.startswith("배는 영어로") for texts in rows for text in texts) == 1


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ("{bad", "a.jsonl:1: "),
        ('{"text": "x"}', "a.jsonl:1: isn't a row of messages; give roles and contents"),
        ("[1, 2]", "a.jsonl:1: isn't a row of messages"),
        ('{"messages": [{"role": "user", "content": null}]}', "a.jsonl:1: isn't a row of messages"),
        (
            '{"messages": [], "pattern": "x", "kind": "fact", "language": "en", "intent": "a b"}',
            "intent a b: facts.txt has no such fact; name relation and subject",
        ),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, fact: str) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    path.write_text(row + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(fact)):
        main(Options(out=out, apart=(path,)))
    assert not out.exists()


def test_wrong_options_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"--most is 0; use 1 or more"):
        Options(out=tmp_path / "a", most=0)
    with pytest.raises(ValueError, match=r"is one of --apart; name another file"):
        Options(out=tmp_path / "a", apart=(tmp_path / "." / "a",))
    monkeypatch.setattr("sys.argv", ["questions", "--out", "a", "--apart", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"none: "):
        command()


def test_a_relation_is_asked_for_no_more_often_than_wanted() -> None:
    asker = Asker(read_world(), "en", [], Random(1))
    rows = list(asker.conversations(1))
    assert sum(m["role"] == "user" for row in rows for m in row) == len(asker.templates) - 1
