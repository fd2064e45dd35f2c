"""Conversations become the segments that ChatML says, and its Jinja form says the same."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minimind.data.chatml import CHAT_TEMPLATE, Segment, render, render_prompt
from minimind.data.conversation import Conversation, Message, parse_messages
from tests.support.strategies import conversations, messages

OPEN, CLOSE, NEWLINE = (
    Segment("<|im_start|>", control=True),
    Segment("<|im_end|>", control=True),
    Segment("\n"),
)

TEMPLATE = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
    CHAT_TEMPLATE  # as transformers compiles it
)


def joined(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def through_jinja(turns: tuple[Message, ...], add_generation_prompt: bool = False) -> str:
    dicts = [{"role": turn.role, "content": turn.content} for turn in turns]
    return TEMPLATE.render(messages=dicts, add_generation_prompt=add_generation_prompt)


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
        *(OPEN, Segment("tool\n"), Segment(""), CLOSE, NEWLINE),
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


def test_no_message_renders_as_nothing_and_prompts_the_assistant() -> None:
    assert render([]) == []
    assert joined(render_prompt([])) == "<|im_start|>assistant\n"
    assert through_jinja(()) == ""  # no system prompt of its own
    assert through_jinja((), add_generation_prompt=True) == "<|im_start|>assistant\n"
