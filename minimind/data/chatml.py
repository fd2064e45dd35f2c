"""Turn conversations into ChatML segments.

One turn becomes five segments, and only the marked ones are trained:

    <|im_start|>   user\\n        1 + 1 = ?   <|im_end|>   \\n
    <|im_start|>   assistant\\n   2.          <|im_end|>   \\n
     control        text          text         control      text
                                  ^ trained    ^ trained

The renderer is the only place that decides what is trained. Everything after it copies the mark;
nothing searches token ids for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, get_args

from minimind.data.conversation import Message
from minimind.tokenizer.vocabulary import END, START

TrainOn = Literal["all", "last"]
_TRAIN_ON = get_args(TrainOn)

# The Jinja form of `render`, saved with every run so that other tools build the same prompt. What
# stands in `generation` is what is trained: transformers and TRL make their mask of it.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' and message['weight'] != 0 %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class Segment(NamedTuple):
    """A piece of a rendered conversation, tokenized on its own."""

    text: str  # a control token's name if it is one
    control: bool = False
    weight: float = 0.0  # how much its tokens count in the loss; 0 means context only


def render(messages: Iterable[Message], train_on: TrainOn = "all") -> list[Segment]:
    """Render a whole conversation for training.

    The assistant's content and the `<|im_end|>` that closes it have the message's weight;
    everything else has weight 0. With `train_on="last"` only the last assistant message is trained.

    Raises:
        ValueError: `train_on` is neither "all" nor "last".
    """
    if train_on not in _TRAIN_ON:
        raise ValueError(f'train_on is "{train_on}"; use {" or ".join(_TRAIN_ON)}')
    messages = tuple(messages)
    last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=-1)
    segments: list[Segment] = []
    for index, message in enumerate(messages):
        trained = message.role == "assistant" and (train_on == "all" or index == last)
        weight = message.weight if trained else 0.0
        segments += (
            Segment(START, control=True),
            Segment(f"{message.role}\n"),
            Segment(message.content, weight=weight),
            Segment(END, control=True, weight=weight),
            Segment("\n"),
        )
    return segments


def render_prompt(messages: Iterable[Message]) -> list[Segment]:
    """Render the messages and open the assistant's turn: what a model is given to answer.

    For any conversation this is a prefix, segment by segment, of `render` at that turn.
    """
    return [*render(messages), Segment(START, control=True), Segment("assistant\n")]
