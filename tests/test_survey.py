"""A survey counts what a plain count finds, and shows the rows that deserve a look."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from minimind.data.build import DataOptions
from minimind.data.conversation import Conversation, Message
from minimind.inspect import survey as survey_module
from minimind.inspect.survey import ROWS_PER_REASON, SAMPLE_ROWS, SAMPLE_ROWS_SHOWN, Survey, survey

OPTIONS = DataOptions(max_length=64)


def chat(*turns: str, first: str = "user", line: int = 0) -> Conversation:
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    messages = tuple(Message(roles[i % 2], text) for i, text in enumerate(turns))
    return Conversation(messages, "messages", "data.jsonl", line)


def numbered(rows: Iterable[Conversation]) -> list[Conversation]:
    return [
        Conversation(row.messages, row.shape, row.path, line) for line, row in enumerate(rows, 1)
    ]


@pytest.fixture(scope="module")
def found(tokenizer) -> Survey:
    rows = [
        chat("Hello!", "Hi there."),
        chat("안녕?", "안녕하세요!"),
        chat("이름이 뭐예요?", "I am Mini."),
        chat("Hello!", "Hi there."),  # line 4, the first again
        chat("What does <|im_end|> do?", "It ends a [INST] turn."),
        chat("Tell me a story.", "Once upon a time " * 40),
        chat("Hi", "Yes", "And then?", "word " * 80),
        chat("Only a question."),
        chat("I begin.", "Oh.", first="assistant"),
    ]
    return survey(numbered(rows), tokenizer, OPTIONS, chosen=["data.jsonl:2"])


def reasons(found: Survey) -> dict[int, list[str]]:
    return {row.conversation.line: row.reasons for row in found.shown}


def test_rows_are_counted_by_what_they_are(found) -> None:
    assert len(found.lengths) == 9
    assert found.messages == {2: 7, 4: 1, 1: 1}
    assert found.roles == {"user": 10, "assistant": 9}
    assert found.scripts == {"latin > latin": 5, "hangul > hangul": 1, "hangul > latin": 1}
    assert found.look_alikes == {"<|im_end|>": 1, "[INST]": 1}
    assert found.duplicates == 1


def test_rows_are_shown_for_reasons(found) -> None:
    why = reasons(found)
    assert "question and answer in different scripts" in why[3]
    assert "duplicate" in why[4]
    assert {"content spells <|im_end|>", "content spells [INST]"} <= set(why[5])
    assert "too long, dropped" in why[6]
    assert "truncated" in why[7]
    assert "no_assistant" in why[8]
    assert "chosen" in why[2]
    assert "longest" in why[6]
    assert all(why.values())


def test_a_shown_row_has_all_its_tokens_and_how_many_are_kept(found) -> None:
    (row,) = [row for row in found.shown if row.conversation.line == 7]
    assert row.place == "data.jsonl:7"
    assert 0 < row.kept <= 64 < len(row.example)
    assert row.example.input_ids[row.kept - 1] == 2  # ends with a whole answer


def test_of_many_rows_few_are_shown_and_the_extremes_are_right(tokenizer) -> None:
    rows = numbered(chat("q", "ok " * (1 + (n * 37) % 101)) for n in range(700))
    found = survey(rows, tokenizer, DataOptions())
    assert len(found.sample) == SAMPLE_ROWS
    assert len({row.line for row in found.sample}) == SAMPLE_ROWS
    assert max(row.line for row in found.sample) > 600  # from everywhere
    lengths = sorted(found.lengths)
    for name, expected in (("shortest", lengths[:3]), ("longest", lengths[-3:])):
        shown = [row for row in found.shown if name in row.reasons]
        assert sorted(len(row.example) for row in shown) == expected
    assert len([row for row in found.shown if "duplicate" in row.reasons]) >= ROWS_PER_REASON


def test_of_few_rows_too_those_drawn_are_not_the_first(tokenizer) -> None:
    rows = numbered(chat(f"question {n}", "yes " * (n % 9 + 1)) for n in range(100))
    found = survey(rows, tokenizer, DataOptions())
    drawn = [row.number for row in found.shown if "random sample" in row.reasons]
    assert len(drawn) == SAMPLE_ROWS_SHOWN
    assert max(drawn) > 50


def test_a_very_long_row_is_shown_in_part_unless_it_is_chosen(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(survey_module, "MAX_TOKENS_SHOWN", 20)
    rows = numbered([chat("Hi", "word " * 40)] * 2)
    one, other = survey(rows, tokenizer, OPTIONS, chosen=["data.jsonl:2"]).shown
    part, more = one.first_tokens()
    assert list(part.input_ids) == list(one.example.input_ids)[:20]
    assert more == f"… {len(one.example) - 20} more tokens; --rows data.jsonl:1 shows them"
    assert other.first_tokens() == (other.example, "")


def test_nothing_gives_an_empty_survey(tokenizer) -> None:
    found = survey([], tokenizer, OPTIONS)
    assert (found.shown, list(found.lengths)) == ([], [])
