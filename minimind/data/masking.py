"""Turn segments into token ids and the mask of what is trained.

    <|im_start|>  user\\n      1 + 1 = ?                   <|im_end|>  \\n
         1        708 315 230  48 6069 252 48 5272 7461       2      230    input_ids
         0          0   0   0   0    0   0  0    0    0       0        0    loss_mask

    <|im_start|>  assistant\\n       2.                     <|im_end|>  \\n
         1        1168 1007 703 230  49 45                    2      230    input_ids
         0           0    0   0   0   1  1                    1        0    loss_mask

Every segment is tokenized on its own: what a user types can't merge with the template around it,
and the prompt at inference is, id for id, a prefix of the training row. With a tokenizer that joins
a newline to the text after it, ids may differ from those of the whole rendered string if a message
begins with white space; that is on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np

from minimind.data.chatml import Segment, TrainOn, render, render_prompt
from minimind.data.conversation import (
    ROLES,
    Conversation,
    Message,
    parse_chat,
    parse_conversation,
    warn_of_unread,
)
from minimind.data.dataset import Dataset, Example, flat
from minimind.data.errors import DataError
from minimind.data.rounds import has_reasoning, split_rounds
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.vocabulary import END, START, TAGS

Truncation = Literal["turns", "tokens", "drop"]
_POLICIES = get_args(Truncation)
_TEMPLATE = ("\n", "\n\n", *(f"{role}\n" for role in ROLES))


class MissingTagsError(ValueError):
    """A tokenizer lacks tags that rows need: those in `tags`."""

    def __init__(self, tags: Iterable[str]) -> None:
        self.tags = [tag for tag in TAGS if tag in tags]
        super().__init__(
            f"tokenizer: lacks {' and '.join(self.tags)}, which the row needs; "
            f"use tokenizer.with_tags({self.tags})"
        )


def encode_conversation(
    conversation: Conversation | Mapping[str, object] | Iterable[Message | Mapping[str, object]],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    *,
    truncation: Truncation = "turns",
    train_on: TrainOn = "all",
    framed: bool | None = None,
) -> Example:
    """Turn one conversation into ids and mask.

    Args:
        conversation: a Conversation; a row of a shape that `parse_conversation` accepts; or a list
            of messages, each a `{"role": ..., "content": ...}` or a Message.
        tokenizer: decides the ids.
        max_length: tokens to keep at most; None keeps all.
        truncation: of longer rows, "turns" drops whole trailing turns, "tokens" cuts at the
            limit, "drop" leaves out rows whose trained tokens don't all fit.
        train_on: "all" assistant messages, or the "last" one only.
        framed: whether each answer has a `<think>` block, an empty one if it has no reasoning;
            None: if the tokenizer's chats have one, or the conversation has reasoning.

    Returns:
        The Example; empty if `truncation` leaves nothing.

    Raises:
        DataError: it isn't a legal conversation, has reasoning and `framed` is False, or has
            reasoning in several of the user's turns, so that it becomes several rows.
        TypeError: it is none of the above.
        ValueError: `max_length` isn't positive, `truncation` or `train_on` is unknown, or the
            tokenizer lacks the tags of tools or thinking, which `Tokenizer.with_tags` adds.
    """
    tools: Sequence[Mapping[str, object]] = ()
    if isinstance(conversation, Mapping):
        conversation = parse_conversation(conversation)
        warn_of_unread(conversation.unread)
    if isinstance(conversation, Conversation):
        tools, conversation = conversation.tools, conversation.messages
    row = parse_chat(conversation, tools)
    if has_reasoning(row.messages) and framed is False:
        fact, remedy = "there is reasoning, and framed is False", "leave framed out, or remove it"
        raise DataError("not_framed", fact, remedy, "messages")
    if len(split_rounds(row)) > 1 and train_on == "all":
        fact = "there is reasoning in several of the user's turns, so that it becomes several rows"
        remedy = "encode each of minimind.data.rounds.split_rounds(conversation)"
        raise DataError("several_rows", fact, remedy, "messages")
    if framed is None:
        framed = tokenizer.framed or has_reasoning(row.messages)
    (example,) = encode_rows([row], tokenizer, train_on=train_on, framed=framed)
    limit = len(example) if max_length is None else max_length
    return truncate(example, limit, tokenizer, truncation)


def encode_prompt(
    messages: Iterable[Message | Mapping[str, object]],
    tokenizer: Tokenizer,
    *,
    tools: Iterable[Mapping[str, object]] | str = (),
    thinking: bool | None = None,
) -> list[int]:
    """Turn messages into the ids that the assistant's answer follows; see `parse_messages`.

    Args:
        messages: reasoning before the last user's message isn't shown.
        tokenizer: decides the ids, and whether the prompt has a `<think>` block.
        tools: what the system turn offers, beside the tools that a system message carries.
        thinking: whether the answer begins with reasoning; None: as most that were trained.

    Raises:
        ValueError: `thinking` is True, and the tokenizer's chats have no reasoning.
    """
    if thinking and not tokenizer.framed:
        raise ValueError("thinking is True, and this model wasn't trained to reason; use None")
    thinking = tokenizer.thinking if thinking is None else thinking
    chat = as_framed(parse_chat(messages, tools), tokenizer.framed)
    segments = render_prompt(
        chat.messages, tools=chat.tools, framed=tokenizer.framed, thinking=thinking
    )
    return list(_lay_out([segments], tokenizer)[0].input_ids)


def as_framed(conversation: Conversation, framed: bool) -> Conversation:
    """As it is shown to a model: without reasoning where that isn't framed."""
    if framed or not has_reasoning(conversation.messages):
        return conversation
    messages = tuple(replace(message, reasoning="") for message in conversation.messages)
    return replace(conversation, messages=messages)


def encode_rows(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    *,
    train_on: TrainOn = "all",
    framed: bool | None = None,
) -> Dataset:
    """Encode conversations, untruncated, with one call of the tokenizer.

    `framed` None is what the tokenizer says.
    """
    framed = tokenizer.framed if framed is None else framed
    rows = [render(row.messages, train_on, tools=row.tools, framed=framed) for row in conversations]
    return _lay_out(rows, tokenizer)


def truncate(
    example: Example, max_length: int, tokenizer: Tokenizer, policy: Truncation = "turns"
) -> Example:
    """Shorten an Example to `max_length` tokens by a named policy.

        turns    drop whole trailing turns, so that it ends with a complete answer
        tokens   cut; the last answer may be incomplete, and no end token is invented for it
        drop     drop the row

    A row whose trained tokens all fit loses only what comes after them, whatever the policy. The
    result is empty if the policy leaves nothing.

    Raises:
        ValueError: `max_length` isn't positive, or there is no such policy.
    """
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; use a positive number")
    if policy not in _POLICIES:
        raise ValueError(f'truncation is "{policy}"; use {", ".join(_POLICIES)}')
    if len(example) <= max_length:
        return example
    keep = max_length
    if policy == "turns":
        while keep and not (
            example.loss_mask[keep - 1] and example.input_ids[keep - 1] == tokenizer.end_id
        ):
            keep -= 1
    elif policy == "drop" and any(example.loss_mask[max_length:]):
        keep = 0
    weights = None if example.weights is None else example.weights[:keep]
    return Example(example.input_ids[:keep], example.loss_mask[:keep], weights)


def _lay_out(rows: Sequence[list[Segment]], tokenizer: Tokenizer) -> Dataset:
    """Tokenize rows of segments, each segment on its own, and lay them end to end."""
    # The template's own few texts are tokenized once.
    known = {(text, False): tokenizer.encode(text) for text in _TEMPLATE}
    known |= {(START, True): [tokenizer.start_id], (END, True): [tokenizer.end_id]}
    known |= {(t, True): [tokenizer.encode_control(t)] for t in TAGS if tokenizer.has_control(t)}
    left = [segment for row in rows for segment in row if segment[:2] not in known]
    if missing := {segment.text for segment in left if segment.control}:
        raise MissingTagsError(missing)
    contents = [segment.text for segment in left]
    encoded = iter(tokenizer.encode_batch(contents))
    pieces: list[list[int]] = []  # the ids of each segment
    factors: list[float] = []  # the weight of each segment
    ends: list[int] = []  # segments up to each row's end
    for row in rows:
        if tokenizer.bos_id is not None:
            pieces.append([tokenizer.bos_id])
            factors.append(0.0)
        for segment in row:
            ids = known.get(segment[:2])
            pieces.append(next(encoded) if ids is None else ids)
            factors.append(segment.weight)
        ends.append(len(pieces))
    counts = np.fromiter(map(len, pieces), np.int64, len(pieces))
    weights = np.repeat(np.array(factors, np.float32), counts)
    return Dataset.from_flat(
        flat("I", pieces),
        weights > 0,
        None if {0.0, 1.0}.issuperset(factors) else weights,
        np.cumsum(counts)[np.array(ends, np.int64) - 1],
    )
