"""Rows that say the same are found, and others are not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from minimind.clean import diversity
from minimind.clean.diversity import Diversity
from minimind.data.conversation import Conversation, Message
from minimind.text import near_duplicates
from minimind.text.near_duplicates import DuplicateFinder
from tests.support import planted


def chat(question: str, answer: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", answer)))


def find(tmp_path: Path, rows: list[Conversation | None], near: bool = True) -> DuplicateFinder:
    finder = DuplicateFinder(tmp_path, near)
    with finder:
        for row in rows:
            finder.add(row)
        finder.first = finder.duplicates().tolist()
        if near:
            finder.near = finder.near_duplicates(0.85).tolist()
    return finder


def test_the_same_words_are_duplicates_whatever_their_case_and_spaces(tmp_path) -> None:
    rows = [
        chat("Hello!", "Hi there."),
        chat("Bye", "Bye."),
        chat(" hello! ", "Hi  there."),
        None,
        None,
        chat("Hello!", "Hi there."),
        chat("Hello!", "Hi."),
    ]
    assert find(tmp_path, rows, near=False).first == [-1, -1, 0, -1, -1, 0, -1]


def test_plain_texts_are_compared_like_rows(tmp_path) -> None:
    texts = ["A cat sat here.", "Other words.", "a  CAT sat\nhere.", "고양이", "고양이"]
    finder = DuplicateFinder(tmp_path, near=False)
    with finder:
        for text in texts:
            finder.add_text(text)
        assert finder.duplicates().tolist() == [-1, -1, 0, -1, 3]


def test_nothing_has_no_duplicates(tmp_path) -> None:
    pytest.importorskip("datasketch")
    finder = find(tmp_path, [])
    assert (finder.first, finder.near) == ([], [])


def test_recall_and_precision_on_planted_near_duplicates_are_at_least_99_percent(tmp_path) -> None:
    pytest.importorskip("datasketch")
    chance = random.Random(0)
    # Stories are told twice; of shorter rows the edits below change more than 15%.
    by_answer = {a: q for q, a in planted.pairs() if len(q + a) > 65}
    sound = [chat(q + " " + a, a + " " + q) for a, q in by_answer.items()]
    changed = []
    for row in sound:
        question, answer = (message.content for message in row.messages)
        at = chance.randrange(len(answer))
        near = [
            chat(question, answer[:at] + chance.choice(".,!") + answer[at:]),
            chat(question + "!", answer.rstrip(".!?")),
            chat(question.replace(" ", "  "), answer + " :)"),
        ]
        changed.append((sound.index(row), chance.choice(near)))
    finder = find(tmp_path, [*sound, *(row for _, row in changed)])
    first = [
        same if same >= 0 else near for same, near in zip(finder.first, finder.near, strict=True)
    ]
    hits = sum(
        found == origin for found, (origin, _) in zip(first[len(sound) :], changed, strict=True)
    )
    assert hits / len(changed) >= 0.99
    assert len(changed) > 50
    wrong = sum(found >= 0 for found in first[: len(sound)])
    assert wrong / (wrong + hits) <= 0.01


def test_rows_that_differ_in_a_number_are_no_near_duplicates(tmp_path) -> None:
    pytest.importorskip("datasketch")
    text = "A train goes {} kilometres in three hours. How many kilometres does it go in one hour?"
    rows = [chat(text.format(n), "Divide the kilometres by the hours.") for n in (90, 120, 90)]
    rows[2] = chat(text.format(90) + "!", "Divide the kilometres by the hours.")
    assert find(tmp_path, rows).near == [-1, -1, 0]


def test_short_rows_are_compared_by_what_is_said_not_by_who_says_it(tmp_path) -> None:
    pytest.importorskip("datasketch")
    rows = [chat("안녕하세요", "안녕하세요."), chat("안녕하세요", "안녕"), chat("뭐 해?", "응")]
    assert find(tmp_path, [*rows, chat("뭐 해?", "네")]).near == [-1, -1, -1, -1]


def test_a_row_longer_than_is_compared_has_equals_only(tmp_path, monkeypatch) -> None:
    pytest.importorskip("datasketch")
    monkeypatch.setattr(near_duplicates, "LONGEST", 100)
    rows = [chat("Tell me a tale.", "Once there was a fox. " * 4 + end) for end in "aba"]
    finder = find(tmp_path, rows)
    assert (finder.first, finder.near) == ([-1, -1, 0], [-1, -1, -1])


def test_of_a_chain_only_what_is_near_a_kept_row_goes(tmp_path) -> None:
    pytest.importorskip("datasketch")
    words = [f"word{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(60)]
    rows = [chat("?", " ".join(words[start : start + 50])) for start in (0, 4, 8)]
    assert find(tmp_path, rows).near == [-1, 0, -1]  # the third is near the second only


def test_diversity_is_counted_over_answers() -> None:
    counts = Diversity()
    for answer in ("a b a b", "a b c"):
        counts.add(chat("what?", answer))
    figures = counts.figures()
    assert figures["distinct-1"] == 3 / 7  # a b c
    assert figures["distinct-2"] == 3 / 5  # ab ba bc
    assert figures["openings"] == {"a b": 1.0}
    assert figures["answer characters, median"] == 6
    assert Diversity().figures() == {}


def test_more_different_things_than_are_remembered_are_counted_to_one_percent(monkeypatch) -> None:
    monkeypatch.setattr(diversity, "MAX_HASHES", 2**15)
    distinct = diversity.DistinctCounter()
    for start in range(0, 300_000, 1000):
        distinct.update(hash((number,)) for number in range(start, start + 1000))
        distinct.update(hash((number,)) for number in range(start, start + 1000))
    assert len(distinct.hashes) <= 2**15
    assert distinct.count() == pytest.approx(300_000, rel=0.01)
