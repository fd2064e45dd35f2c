"""Cut conversations whose reasoning stands in several rounds into rows, each as it is served.

A round is what follows a user's message, up to the next one. Reasoning is shown in the last round
alone: clients don't send that of earlier ones. So a conversation whose other rounds reason, too,
becomes several rows, and each answer is trained in one of them:

    user, answer, user, reasoning + answer, user, answer, user, reasoning + answer
          trained       trained                                                       row 1
                        context               trained       trained                   row 2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from minimind.data.chatml import TrainOn
from minimind.data.conversation import Conversation, Message


def has_reasoning(messages: Sequence[Message]) -> bool:
    return any(message.reasoning.strip("\n") for message in messages)


def split_rounds(conversation: Conversation, train_on: TrainOn = "all") -> list[Conversation]:
    """The rows of a conversation, itself alone if only its last round reasons.

    Messages that a row doesn't train have weight 0 in it. With `train_on="last"` the row that
    trains the conversation's last answer is the only one.
    """
    messages = conversation.messages
    ends = _ends(messages)
    if len(ends) == 1 and ends[0] == len(messages):
        return [conversation]
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        earlier = [replace(m, weight=0.0) if m.role == "assistant" else m for m in messages[:start]]
        row = (*earlier, *messages[start:end])
        parts.append(replace(conversation, messages=row, rest=messages[end:]))
    return parts[-1:] if train_on == "last" else parts


def _ends(messages: Sequence[Message]) -> list[int]:
    """Where rows end: after each round but the last that reasons and trains, and after the last.

    A last round without an answer is no row, unless it is the only one.
    """
    starts = [at for at, message in enumerate(messages) if message.role == "user"]
    starts = starts if starts[:1] == [0] else [0, *starts]
    ends = [*starts[1:], len(messages)]
    rounds = [messages[start:end] for start, end in zip(starts, ends, strict=True)]
    chosen = [
        end
        for turns, end in zip(rounds[:-1], ends[:-1], strict=True)
        if has_reasoning(turns) and any(m.role == "assistant" and m.weight for m in turns)
    ]
    left = messages[chosen[-1] :] if chosen else messages
    if not chosen or any(message.role == "assistant" for message in left):
        chosen.append(len(messages))
    return chosen
