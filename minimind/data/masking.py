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
from typing import Literal, get_args

import numpy as np

from minimind.data.chatml import Segment, TrainOn, render, render_prompt
from minimind.data.conversation import (
    ROLES,
    Conversation,
    Message,
    parse_conversation,
    parse_messages,
    warn_of_unread,
)
from minimind.data.dataset import Dataset, Example, flat
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.vocabulary import END, START

Truncation = Literal["turns", "tokens", "drop"]
_POLICIES = get_args(Truncation)
_TEMPLATE = ("\n", *(f"{role}\n" for role in ROLES))


def encode_conversation(
    conversation: Conversation | Mapping[str, object] | Iterable[Message | Mapping[str, object]],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    *,
    truncation: Truncation = "turns",
    train_on: TrainOn = "all",
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

    Returns:
        The Example; empty if `truncation` leaves nothing.

    Raises:
        DataError: it isn't a legal conversation.
        TypeError: it is none of the above.
        ValueError: `max_length` isn't positive, or `truncation` or `train_on` is unknown.
    """
    if isinstance(conversation, Mapping):
        conversation = parse_conversation(conversation)
        warn_of_unread(conversation.unread)
    if isinstance(conversation, Conversation):
        conversation = conversation.messages
    messages = parse_messages(conversation)
    (example,) = encode_rows([Conversation(messages)], tokenizer, train_on=train_on)
    limit = len(example) if max_length is None else max_length
    return truncate(example, limit, tokenizer, truncation)


def encode_prompt(
    messages: Iterable[Message | Mapping[str, object]], tokenizer: Tokenizer
) -> list[int]:
    """Turn messages into the ids that the assistant's answer follows; see `parse_messages`."""
    segments = render_prompt(parse_messages(messages))
    return list(_lay_out([segments], tokenizer)[0].input_ids)


def encode_rows(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, *, train_on: TrainOn = "all"
) -> Dataset:
    """Encode conversations, untruncated, with one call of the tokenizer."""
    return _lay_out([render(row.messages, train_on) for row in conversations], tokenizer)


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
    contents = [segment.text for row in rows for segment in row if segment[:2] not in known]
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
