"""Turn conversations into ChatML segments.

One turn becomes five segments, and only the marked ones are trained:

    <|im_start|>   user\\n        1 + 1 = ?   <|im_end|>   \\n
    <|im_start|>   assistant\\n   2.          <|im_end|>   \\n
     control        text          text         control      text
                                  ^ trained    ^ trained

Reasoning and calls are trained, too, with the tags that end or surround them, but for <think>:

    <|im_start|>   assistant\\n   <think>   \\n   Add.\\n   </think>   \\n\\n2.   <|im_end|>   \\n
                                                ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^ trained

The renderer is the only place that decides what is trained. Everything after it copies the mark;
nothing searches token ids for it. docs/mask.md shows all that it makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from minimind.data.calls import dumps, lists_tools
from minimind.data.conversation import Message
from minimind.data.template import TOOLS_BEGIN, TOOLS_END
from minimind.tokenizer.vocabulary import (
    CALL,
    END,
    END_CALL,
    END_RESULT,
    END_THINK,
    RESULT,
    START,
    THINK,
)

TrainOn = Literal["all", "last"]
_TRAIN_ON = get_args(TrainOn)


class Segment(NamedTuple):
    """A piece of a rendered conversation, tokenized on its own."""

    text: str  # a control token's name if it is one
    control: bool = False
    weight: float = 0.0  # how much its tokens count in the loss; 0 means context only


_THINKING = (Segment(THINK, control=True), Segment("\n"))
_NOT_THINKING = (
    Segment(THINK, control=True),
    Segment("\n\n"),
    Segment(END_THINK, control=True),
    Segment("\n\n"),
)
_CLOSED = (Segment(END, control=True), Segment("\n"))


def render(
    messages: Iterable[Message],
    train_on: TrainOn = "all",
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    framed: bool = False,
) -> list[Segment]:
    """Render a whole conversation for training.

    The assistant's reasoning, content and calls and the `<|im_end|>` that closes them have the
    message's weight; everything else has weight 0. With `train_on="last"` only the last assistant
    message is trained. What was said after reasoning that isn't shown isn't trained.

    Args:
        messages: reasoning before the last user's message isn't shown, whatever it is.
        train_on: all of the assistant's messages, or the last one.
        tools: what the system turn offers.
        framed: each of the assistant's turns has a block of reasoning, if an empty one.

    Raises:
        ValueError: `train_on` is neither "all" nor "last", or there is reasoning and no frame.
    """
    if train_on not in _TRAIN_ON:
        raise ValueError(f'train_on is "{train_on}"; use {" or ".join(_TRAIN_ON)}')
    messages = tuple(messages)
    last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
    last_user = max((i for i, m in enumerate(messages) if m.role == "user"), default=-1)
    segments: list[Segment] = []
    if tools and not (messages and messages[0].role == "system"):
        segments += (*_header("system"), *_tools("", tools), *_CLOSED)
    for index, message in enumerate(messages):
        if message.role == "tool":
            before, after = (
                0 <= at < len(messages) and messages[at].role == "tool"
                for at in (index - 1, index + 1)
            )
            segments += [Segment("\n")] if before else _header("user")
            segments += (
                Segment(RESULT, control=True),
                Segment(f"\n{message.content}\n"),
                Segment(END_RESULT, control=True),
            )
            segments += () if after else _CLOSED
            continue
        segments += _header(message.role)
        if message.role == "assistant":
            trained = train_on == "all" or index == last
            if message.reasoning and not framed:
                raise ValueError("messages: have reasoning; render them framed")
            weight = message.weight if trained else 0.0
            segments += _answer(message, weight, framed, shown=index > last_user)
            continue
        if tools and index == 0 and message.role == "system" and not lists_tools(message.content):
            segments += _tools(f"{message.content}\n\n", tools)
        else:
            segments.append(Segment(message.content))
        segments += _CLOSED
    return segments


def render_prompt(
    messages: Iterable[Message],
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    framed: bool = False,
    thinking: bool = False,
) -> list[Segment]:
    """Render the messages and open the assistant's turn: what a model is given to answer.

    For any conversation this is a prefix, segment by segment, of `render` at each trained turn,
    with `thinking` where the turn has reasoning.
    """
    block = (_THINKING if thinking else _NOT_THINKING) if framed else ()
    return [*render(messages, tools=tools, framed=framed), *_header("assistant"), *block]


def _header(role: str) -> tuple[Segment, Segment]:
    return Segment(START, control=True), Segment(f"{role}\n")


def _tools(text: str, tools: Sequence[Mapping[str, Any]]) -> Iterator[Segment]:
    """The tools after a system message's text. Around them stand the template's own tags."""
    offered = "\n".join(map(dumps, tools))
    yield Segment(f"{text}{TOOLS_BEGIN}{offered}{TOOLS_END[0]}")
    yield Segment(CALL, control=True)
    yield Segment(END_CALL, control=True)
    yield Segment(TOOLS_END[1])
    yield Segment(CALL, control=True)
    yield Segment(TOOLS_END[2])
    yield Segment(END_CALL, control=True)


def _answer(message: Message, weight: float, framed: bool, shown: bool) -> Iterator[Segment]:
    """An assistant's turn after its header. Text between two tags is one segment, as elsewhere."""
    text = message.content
    if framed:
        text = text.lstrip("\n")
    if text and message.calls:
        text += "\n"
    reasoning = message.reasoning.strip("\n")
    if reasoning and not shown:
        weight = 0.0  # it was said after this reasoning
    if framed and reasoning and shown:
        yield from _THINKING
        yield Segment(f"{reasoning}\n", weight=weight)
        yield Segment(END_THINK, control=True, weight=weight)
        text = f"\n\n{text}"
    elif framed:
        yield from _NOT_THINKING
    if text or not message.calls:
        yield Segment(text, weight=weight)
    for number, call in enumerate(message.calls):
        if number:
            yield Segment("\n", weight=weight)
        yield Segment(CALL, control=True, weight=weight)
        yield Segment(f"\n{call.text}\n", weight=weight)
        yield Segment(END_CALL, control=True, weight=weight)
    yield Segment(END, control=True, weight=weight)
    yield Segment("\n")
