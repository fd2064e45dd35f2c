"""Questions are asked of the small world's facts, but not those that others will ask."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

from minimind.base.recipe.facts import read_world
from minimind.base.recipe.grammar import read_sections
from minimind.base.recipe.questions import SIGNS, Asker, Options, main
from minimind.base.recipe.statements import FOLDER

ROOT = Path(__file__).resolve().parent.parent
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


def test_a_relation_is_asked_for_no_more_often_than_wanted() -> None:
    asker = Asker(read_world(), "en", [], Random(1))
    rows = list(asker.conversations(1))
    assert sum(m["role"] == "user" for row in rows for m in row) == len(asker.templates) - 1
