"""What any file must come to: rows that train the assistant's words and ends alone, or DataErrors.

The answers are taken from the rows' JSON once more and plainly, so that a reader, a renderer or a
mask that goes wrong is caught. Hypothesis asks it in the suite, tests/support/fuzz_rows.py
millions of times.
"""

from __future__ import annotations

import io
import sys
import unicodedata
from itertools import compress
from types import SimpleNamespace
from typing import Any

from minimind.data.conversation import Conversation, Message, parse_conversation
from minimind.data.dataset import Example
from minimind.data.errors import DataError
from minimind.data.masking import encode_rows
from minimind.data.reader import Row, read_rows
from minimind.data.rounds import split_rounds
from minimind.tokenizer import Tokenizer
from tests.support.templates import rendered_text

END = "<|im_end|>"
FLAGS = ("train", "training", "loss")


def check_file(data: bytes, tokenizer: Tokenizer) -> int:
    """Read `data` as a file, tokenize what can be trained, and fail where the mask is wrong.

    Returns:
        How many conversations it holds.
    """
    stdin, sys.stdin = sys.stdin, SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(data)))
    try:
        rows = list(read_rows("-"))
    finally:
        sys.stdin = stdin
    assert rows, "a file was passed over in silence"
    good: list[tuple[Any, Conversation]] = []
    for row in rows:
        try:
            if isinstance(row, DataError):
                raise row
            good.append((row.value, _parse(row)))
        except DataError as error:
            check_message(error)
    plain = [(value, c) for value, c in good if not (c.tools or any(map(_more, c.messages)))]
    examples = encode_rows([c for _, c in plain], tokenizer) if plain else []
    for (value, conversation), example in zip(plain, examples, strict=True):
        check_mask(value, conversation, example, tokenizer)
    for _, conversation in good:
        check_tags(conversation, tokenizer)
    return len(good)


def is_safe_line(text: str) -> bool:
    """Whether a terminal shows it on one line: no control, nothing that turns the order around.

    Joiners, wide spaces and the letters of flags aren't printable for Python, but are for people.
    """
    return all(
        char.isprintable()
        or unicodedata.category(char) == "Zs"
        or char in "\u200c\u200d"
        or "\U000e0020" <= char <= "\U000e007f"
        for char in text
    )


def check_message(error: DataError) -> None:
    """An error is one printable line, and one more with the excerpt."""
    assert error.kind
    assert error.fact
    assert error.remedy
    assert len(error.excerpt) <= 80
    assert is_safe_line(str(error).replace("\n    ", "", 1))


def check_mask(
    value: Any, conversation: Conversation, example: Example, tokenizer: Tokenizer
) -> None:
    """What is trained decodes to the answers and their ends, and all ids to all of the turns."""
    marked = list(zip(example.input_ids, example.loss_mask, strict=True))
    trained = [id for id, mark in marked if mark]
    answers = trained_answers(value, conversation.shape)
    assert tokenizer.decode(trained) == "".join(answer + END for answer in answers)
    assert [id for id in trained if id in tokenizer.control_ids] == [tokenizer.end_id] * len(
        answers
    )
    assert tokenizer.decode(example.input_ids) == rendered_text(conversation.messages)


def _more(message: Message) -> bool:
    return bool(message.reasoning or message.calls)


def check_tags(conversation: Conversation, tokenizer: Tokenizer) -> None:
    """What is trained of a row with tools and reasoning, framed: its answers, each in one part."""
    expected, trained = [], ""
    for part in split_rounds(conversation):
        (example,) = encode_rows([part], tokenizer, framed=True)
        trained += tokenizer.decode(compress(example.input_ids, example.loss_mask))
    for message in conversation.messages:
        if message.role == "assistant" and message.weight:
            thought = message.reasoning.strip("\n")
            block = f"{thought}\n</think>\n\n" if thought else ""
            calls = [f"<tool_call>\n{call.text}\n</tool_call>" for call in message.calls]
            content = message.content.lstrip("\n")
            said = "\n".join([*([content] if content or not calls else []), *calls])
            expected.append(f"{block}{said}{END}")
    assert trained == "".join(expected)


def trained_answers(row: Any, shape: str) -> list[str]:
    """A good row's answers, read off its JSON."""
    if shape == "list of messages":
        return _answers_of(row)
    if row.get("weight") == 0 or any(row.get(flag) is False for flag in FLAGS):
        return []
    if "/" not in shape:
        return _answers_of(row[shape])
    asking, answering = shape.split("/")
    answer = row[answering]
    if asking == "instruction":
        return [pair[1] for pair in row.get("history") or []] + [answer]
    return [answer] if isinstance(answer, str) else _answers_of(answer)  # a prompt is context


def _answers_of(messages: list[Any]) -> list[str]:
    answers = []
    for message in messages:
        role = message["from"] if message.get("role") is None else message["role"]
        untrained = message.get("weight") == 0 or any(message.get(f) is False for f in FLAGS)
        if role.lower() in ("assistant", "gpt", "model") and not untrained:
            first = message.get("content")
            content = message.get("value") if first is None else first
            if isinstance(content, list):
                content = "".join(part["text"] for part in content)
            answers.append(content)
    return answers


def _parse(row: Row) -> Conversation:
    return parse_conversation(row.value, path=row.path, line=row.line, text=row.text)
