"""Conversations become the segments that ChatML says, and its Jinja form says the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from minimind.data.chatml import Segment, render, render_prompt
from minimind.data.conversation import Conversation, Message, parse_messages
from minimind.data.template import CHAT_TEMPLATE
from tests.support.strategies import conversations, messages

OPEN, CLOSE, NEWLINE = (
    Segment("<|im_start|>", control=True),
    Segment("<|im_end|>", control=True),
    Segment("\n"),
)


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def through_jinja(turns: tuple[Message, ...], add_generation_prompt: bool = False) -> str:
    return through_transformers(turns, add_generation_prompt)[0]


def through_transformers(
    turns: tuple[Message, ...], add_generation_prompt: bool = False
) -> tuple[str, list[str]]:
    """The text that the saved template makes, and what of it is trained."""
    dicts = [{"role": turn.role, "content": turn.content, "weight": turn.weight} for turn in turns]
    (text,), (spans,) = render_jinja_template(
        [dicts],
        chat_template=CHAT_TEMPLATE,
        return_assistant_tokens_mask=True,
        add_generation_prompt=add_generation_prompt,
    )
    return text, [text[start:end] for start, end in spans]


def test_one_exchange_becomes_ten_segments_of_which_two_are_trained() -> None:
    assert render([Message("user", "1 + 1 = ?"), Message("assistant", "2.")]) == [
        OPEN,
        Segment("user\n"),
        Segment("1 + 1 = ?"),
        CLOSE,
        NEWLINE,
        OPEN,
        Segment("assistant\n"),
        Segment("2.", weight=1.0),
        Segment("<|im_end|>", control=True, weight=1.0),
        NEWLINE,
    ]


def test_every_role_has_the_same_form_and_only_the_assistant_is_trained() -> None:
    turns = parse_messages(
        [
            {"role": "system", "content": "짧게 답해."},
            {"role": "user", "content": "서울 날씨?"},
            {"role": "assistant", "content": "찾아볼게요.", "weight": 0.5},
            {"role": "tool", "content": ""},
            {"role": "assistant", "content": "맑아요."},
        ]
    )
    assert render(turns) == [
        *(OPEN, Segment("system\n"), Segment("짧게 답해."), CLOSE, NEWLINE),
        *(OPEN, Segment("user\n"), Segment("서울 날씨?"), CLOSE, NEWLINE),
        *(OPEN, Segment("assistant\n"), Segment("찾아볼게요.", weight=0.5)),
        *(Segment("<|im_end|>", control=True, weight=0.5), NEWLINE),
        *(OPEN, Segment("user\n"), Segment("<tool_response>", control=True), Segment("\n\n")),
        *(Segment("</tool_response>", control=True), CLOSE, NEWLINE),
        *(OPEN, Segment("assistant\n"), Segment("맑아요.", weight=1.0)),
        *(Segment("<|im_end|>", control=True, weight=1.0), NEWLINE),
    ]


def test_train_on_last_trains_the_last_assistant_turn_only() -> None:
    turns = [
        Message("assistant", "Hello!"),
        Message("user", "안녕"),
        Message("assistant", "안녕!", weight=2.0),
        Message("user", "?"),
    ]
    trained = [segment for segment in render(turns, "last") if segment.weight]
    assert trained == [
        Segment("안녕!", weight=2.0),
        Segment("<|im_end|>", control=True, weight=2.0),
    ]


def test_train_on_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match='train_on is "first"; use all or last'):
        render([Message("user", "Hi")], "first")  # type: ignore[arg-type]


@given(messages("assistant"))
def test_weight_zero_and_other_roles_leave_nothing_to_train(message: Message) -> None:
    for untrained in (
        Message("assistant", message.content, weight=0.0),
        Message("user", message.content, weight=message.weight),
    ):
        assert all(segment.weight == 0 for segment in render([untrained]))


@given(conversations())
def test_a_trained_segment_is_an_assistants_content_or_its_end(conversation: Conversation) -> None:
    expected = [
        (text, message.weight)
        for message in conversation.messages
        if message.role == "assistant" and message.weight
        for text in (message.content, "<|im_end|>")
    ]
    segments = render(conversation.messages)
    assert [(segment.text, segment.weight) for segment in segments if segment.weight] == expected


@given(conversations())
def test_a_prompt_is_a_prefix_of_its_training_row_segment_by_segment(
    conversation: Conversation,
) -> None:
    whole = render(conversation.messages)
    for index, message in enumerate(conversation.messages):
        if message.role == "assistant":
            prompt = render_prompt(conversation.messages[:index])
            assert prompt == whole[: len(prompt)]
            assert whole[len(prompt)][:2] == (message.content, False)


@given(conversations(), st.booleans())
def test_the_jinja_template_says_the_same_as_the_renderer(
    conversation: Conversation, ask: bool
) -> None:
    turns = conversation.messages
    segments = render_prompt(turns) if ask else render(turns)
    assert through_jinja(turns, add_generation_prompt=ask) == joined(segments)


@given(conversations())
def test_the_jinja_template_marks_what_the_renderer_trains(conversation: Conversation) -> None:
    trained = [s.text for s in render(conversation.messages) if s.weight]
    _, marked = through_transformers(conversation.messages)
    pairs = zip(trained[::2], trained[1::2], strict=True)
    assert marked == [content + end for content, end in pairs]


def test_a_message_without_a_weight_is_marked_and_one_of_weight_zero_is_not() -> None:
    turns = [{"role": "assistant", "content": f"a{i}"} for i in range(4)]
    turns[1]["weight"], turns[2]["weight"] = 0, None
    (text,), (spans,) = render_jinja_template(
        [turns], chat_template=CHAT_TEMPLATE, return_assistant_tokens_mask=True
    )
    assert [text[a:b] for a, b in spans] == [f"a{i}<|im_end|>" for i in (0, 2, 3)]


def test_no_message_renders_as_nothing_and_prompts_the_assistant() -> None:
    assert render([]) == []
    assert joined(render_prompt([])) == "<|im_start|>assistant\n"
    assert through_jinja(()) == ""  # no system prompt of its own
    assert through_jinja((), add_generation_prompt=True) == "<|im_start|>assistant\n"
