"""Turn segments into token ids and the mask of what is trained. Knows no files and no tensors.

    <|im_start|>  user\\n      1 + 1 = ?                   <|im_end|>  \\n
         1        708 315 230  48 6069 252 48 5272 7461       2      230    input_ids
         0          0   0   0   0    0   0  0    0    0       0        0    loss_mask

    <|im_start|>  assistant\\n       2.                     <|im_end|>  \\n
         1        1168 1007 703 230  49 45                    2      230    input_ids
         0           0    0   0   0   1  1                    1        0    loss_mask

Every segment is tokenized on its own: what a user types can't merge with the template around it,
and the prompt at inference is, id for id, a prefix of the training row. With a tokenizer that joins
newlines to what follows, ids may differ from tokenizing the whole rendered string where a message
begins with white space; that is on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal, get_args

from minimind.data.chatml import END, START, Segment, TrainOn, render, render_prompt
from minimind.data.conversation import Conversation, Message, parse_messages
from minimind.tokenizer import Tokenizer

Truncation = Literal["turns", "tokens", "drop"]
_POLICIES = get_args(Truncation)

BATCH_ROWS = 512  # conversations per call of the tokenizer: enough to keep its threads busy


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready to train on.

    Attributes:
        input_ids: token ids.
        loss_mask: True where the token is trained (predicted from those before it).
        weights: the loss's factor per token, or None where every trained token counts 1.
    """

    input_ids: Sequence[int]
    loss_mask: Sequence[bool]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.loss_mask)

    def __len__(self) -> int:
        return len(self.input_ids)


def encode_conversation(
    conversation: Conversation | Iterable[Message | Mapping[str, object]],
    tokenizer: Tokenizer,
    max_length: int | None = None,
    *,
    truncation: Truncation = "turns",
    train_on: TrainOn = "all",
) -> Example:
    """Turn one conversation into ids and mask.

    Args:
        conversation: a Conversation, or a list of `{"role", "content"}` dicts.
        tokenizer: decides the ids.
        max_length: tokens to keep at most; None keeps all.
        truncation: see `truncate`.
        train_on: "all" assistant messages, or the "last" one only.

    Returns:
        The Example; empty where `truncation` leaves nothing.

    Raises:
        DataError: the messages aren't a legal conversation.
    """
    if not isinstance(conversation, Conversation):
        conversation = Conversation(parse_messages(list(conversation)))
    (example,) = encode_conversations([conversation], tokenizer, train_on=train_on)
    return example if max_length is None else truncate(example, max_length, tokenizer, truncation)


def encode_prompt(
    messages: Iterable[Message | Mapping[str, object]], tokenizer: Tokenizer
) -> list[int]:
    """Turn messages into the ids after which the assistant's answer begins.

    Raises:
        DataError: the messages aren't a legal conversation.
    """
    segments = render_prompt(parse_messages(list(messages)))
    texts = [segment.text for segment in segments if not segment.control]
    example = _join(segments, iter(tokenizer.encode_batch(texts)), {}, tokenizer)
    return list(example.input_ids)


def encode_conversations(
    conversations: Iterable[Conversation], tokenizer: Tokenizer, *, train_on: TrainOn = "all"
) -> Iterator[Example]:
    """Encode many conversations, whole, in order; contents are tokenized in large batches."""
    # The template's own few texts are tokenized once.
    template = ["\n", *(f"{role}\n" for role in ("system", "user", "assistant", "tool"))]
    known = {text: tokenizer.encode(text) for text in template}
    source = iter(conversations)
    while block := list(islice(source, BATCH_ROWS)):
        rows = [render(conversation.messages, train_on) for conversation in block]
        texts = [
            segment.text
            for segments in rows
            for segment in segments
            if not segment.control and segment.text not in known
        ]
        encoded = iter(tokenizer.encode_batch(texts))
        for segments in rows:
            yield _join(segments, encoded, known, tokenizer)


def truncate(
    example: Example, max_length: int, tokenizer: Tokenizer, policy: Truncation = "turns"
) -> Example:
    """Shorten an Example to `max_length` tokens by a named policy.

        turns    drop whole trailing turns, so that it ends with a complete answer
        tokens   cut; the last answer may be incomplete, and no end token is invented for it
        drop     drop the row

    A row whose trained tokens all fit loses only what comes after them, whatever the policy.

    Returns:
        The Example itself if it fits; an empty one if the policy leaves nothing.

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
    weights = example.weights
    return Example(
        example.input_ids[:keep],
        example.loss_mask[:keep],
        None if weights is None else weights[:keep],
    )


def _join(
    segments: list[Segment],
    encoded: Iterator[list[int]],
    known: dict[str, list[int]],
    tokenizer: Tokenizer,
) -> Example:
    """Lay segments end to end; texts that aren't `known` are taken from `encoded`, in order."""
    control = {START: [tokenizer.start_id], END: [tokenizer.end_id]}
    input_ids: list[int] = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    loss_mask = [False] * len(input_ids)
    spans: list[tuple[int, int, float]] = []  # only weights other than 0 and 1
    for text, is_control, weight in segments:
        ids = control[text] if is_control else known.get(text)
        if ids is None:
            ids = next(encoded)
        if weight and weight != 1.0:
            spans.append((len(input_ids), len(input_ids) + len(ids), weight))
        input_ids += ids
        loss_mask += [weight > 0] * len(ids)
    if not spans:
        return Example(input_ids, loss_mask)
    weights = [1.0 if trained else 0.0 for trained in loss_mask]
    for start, stop, weight in spans:
        weights[start:stop] = [weight] * (stop - start)
    return Example(input_ids, loss_mask, weights)
