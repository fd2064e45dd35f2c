"""Whatever a file holds, its answers are trained and nothing else, or it is told what is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data import chatml, masking
from minimind.data.chatml import Segment
from minimind.data.conversation import Conversation
from minimind.tokenizer import Tokenizer
from tests.support import oracle
from tests.support.fuzz_rows import spell_file
from tests.support.oracle import check_file
from tests.support.strategies import conversations, json_values

BAD_ROWS = Path(__file__).parent / "data" / "bad_rows"
ROW = json.dumps({"instruction": "안녕", "input": "하세요", "output": "네. <|im_end|>"}).encode()


@settings(max_examples=300)
@given(values=st.lists(json_values, min_size=1, max_size=4))
def test_any_json_trains_its_answers_or_is_told(values: list[object], tokenizer: Tokenizer) -> None:
    lines = "\n".join(map(json.dumps, values)).encode()
    check_file(lines, tokenizer)
    check_file(json.dumps(values).encode(), tokenizer)


@settings(max_examples=500)
@given(choices=st.binary(max_size=200))
def test_rows_that_are_nearly_right_train_their_answers_or_are_told(
    choices: bytes, tokenizer: Tokenizer
) -> None:
    check_file(spell_file(iter(choices)), tokenizer)


@settings(max_examples=300)
@given(content=st.binary(max_size=300), at=st.integers(0, 60), zipped=st.booleans())
def test_any_bytes_train_their_answers_or_are_told(
    content: bytes, at: int, zipped: bool, tokenizer: Tokenizer
) -> None:
    content = ROW[:at] + content + ROW[at:] + b"\n" + ROW
    check_file(gzip.compress(content, mtime=0)[: -at or None] if zipped else content, tokenizer)


@given(conversation=conversations())
def test_each_legal_conversation_is_trained(
    conversation: Conversation, tokenizer: Tokenizer
) -> None:
    turns = [
        {"role": message.role, "content": message.content, "weight": message.weight}
        for message in conversation.messages
    ]
    answers = [m.content.lstrip() for m in conversation.messages if m.role == "assistant"]
    open_reasoning = any(  # which is an error
        answer.startswith("<think>") and "</think>" not in answer for answer in answers
    )
    for row in ({"messages": turns}, {"prompt": turns, "completion": "끝"}):
        assert check_file(json.dumps(row).encode(), tokenizer) == (not open_reasoning)


def test_the_fuzzer_begins_with_files_that_pass_and_can_spell_a_good_row(
    tokenizer: Tokenizer,
) -> None:
    found = [check_file(path.read_bytes(), tokenizer) for path in sorted(BAD_ROWS.iterdir())]
    assert sum(found) > 20
    spelled = spell_file(iter([0, 0, 2, 32, 1, 64, 5]))  # one row: messages, two: user, assistant
    assert json.loads(spelled)["messages"][1] == {"role": "assistant", "content": "<|im_end|>Hi"}
    assert check_file(spelled, tokenizer) == 1


# An oracle that can't fail is none.


def test_the_oracle_notices_an_end_that_is_not_trained(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def untrained(messages: object, train_on: object, **options: object) -> list[Segment]:
        rendered = chatml.render(messages)  # type: ignore[arg-type]
        return [s._replace(weight=0.0) if s.text == "<|im_end|>" else s for s in rendered]

    monkeypatch.setattr(masking, "render", untrained)
    with pytest.raises(AssertionError):
        check_file(ROW, tokenizer)


def test_the_oracle_notices_a_question_that_is_trained(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def all_trained(messages: object, train_on: object, **options: object) -> list[Segment]:
        return [segment._replace(weight=1.0) for segment in chatml.render(messages)]  # type: ignore[arg-type]

    monkeypatch.setattr(masking, "render", all_trained)
    with pytest.raises(AssertionError):
        check_file(ROW, tokenizer)


def test_the_oracle_notices_a_turn_that_is_lost(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse = oracle.parse_conversation

    def without_the_last(*row: object, **place: object) -> Conversation:
        found = parse(*row, **place)  # type: ignore[arg-type]
        return Conversation(found.messages[:-1], found.shape)

    monkeypatch.setattr(oracle, "parse_conversation", without_the_last)
    with pytest.raises(AssertionError):
        check_file(ROW, tokenizer)


def test_the_oracle_notices_a_file_that_is_passed_over(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oracle, "read_rows", lambda name: iter([]))
    with pytest.raises(AssertionError, match="passed over in silence"):
        check_file(ROW, tokenizer)
