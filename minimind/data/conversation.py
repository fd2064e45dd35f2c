"""Read one row as a Conversation.

Row shapes, mixed freely. The first shape whose keys are all there is taken; a null key counts as
missing:

    {PROMPT: ..., ANSWER: ...}                     any two keys, named by prompt_key and
                                                   answer_key; read as prompt and completion
    {"messages": [{"role": ..., "content": ...}]}  OpenAI; content may be a list of text parts,
                                                   which are joined; "weight" scales the loss
    {"conversations": [...]}                       MiniMind's role and content, ShareGPT's from and
                                                   value
    {"instruction": ..., "output": ...}            Alpaca; the user's turn is instruction + "\\n" +
                                                   input; "history": [[user, assistant], ...] goes
                                                   before it
    {"prompt": ..., "completion": ...}             each a string or a list of messages; a prompt's
                                                   answers are context, weight 0; so are
                                                   prompt/response, question/answer and
                                                   question/response
    {"instruction": ..., "response": ...}          Dolly; as Alpaca, and "context" as its input
    {"query": ..., "answers": [...]}               xLAM's calls, each {"name", "arguments"}
    [{"role": ..., "content": ...}]                a list of messages

In each object "system" (or "system_prompt") beside these keys is the first message, and "weight"
multiplies its messages' weights. Keys that mean something which isn't trained are an error
(keys.REFUSED); all others are in the Conversation's `unread`.

Tools stand in the row ("tools" or "functions") or on its system message. An assistant's reasoning
and calls are read from keys of their own or out of its text: docs/data.md says how.

Turns are kept in their order. docs/data.md says which orders are legal and what is done with each.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import isnan
from typing import Any

from minimind.data.calls import Call as Call
from minimind.data.calls import read_tools
from minimind.data.errors import DataError, excerpt, show
from minimind.data.formats import frame_error
from minimind.data.keys import JsonObject, KeyCounts, Notes, Unread, without_keys
from minimind.data.messages import ROLES as ROLES
from minimind.data.messages import Message as Message
from minimind.data.messages import check_turns, read_field, read_messages
from minimind.data.shapes import read_row, shapes_for


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one row, the name of its shape, and its place.

    Attributes:
        messages: at least one.
        shape: such as "messages" or "instruction/output".
        path: the file, or "" for a row that a caller gave.
        line: its line in the file, or its number among the rows given, from 1; 0 for a single row.
        unread: keys of the row and of its messages that weren't read, those that say nothing left
            out; a message's once for each message.
        read_as: what was read as what, such as "developer as system".
        tools: what its system turn offers, each as it stands in the row.
        rest: messages that follow in the conversation which this row is a part of.
    """

    messages: tuple[Message, ...]
    shape: str = "messages"
    path: str = ""
    line: int = 0
    unread: tuple[Unread, ...] = ()
    read_as: tuple[str, ...] = ()
    tools: tuple[JsonObject, ...] = ()
    rest: tuple[Message, ...] = ()


def parse_conversation(
    row: object,
    *,
    prompt_key: str | None = None,
    answer_key: str | None = None,
    system: str | None = None,
    questions: bool = False,
    ignore_keys: Collection[str] = (),
    path: str = "",
    line: int = 0,
    text: str = "",
) -> Conversation:
    """Read one row of any accepted shape.

        >>> parse_conversation({"prompt": "1 + 1 = ?", "completion": "2."}).messages
        (Message('user', '1 + 1 = ?'), Message('assistant', '2.'))

    Args:
        row: a dict or another mapping. Lists in it may also be tuples or arrays.
        prompt_key: with `answer_key`: the key of the question; both are tried before other shapes.
        answer_key: the key of the answer.
        system: becomes the first message if the row has no system message.
        questions: also accept rows that have a question and no answer.
        ignore_keys: the row is read as if neither it nor its messages had these keys.
        path: the row's file, for the Conversation and for errors.
        line: its line there, or without a file its number, from 1.
        text: the JSON that `row` was read from, for an error's excerpt.

    Raises:
        DataError: the row has none of the shapes in docs/data.md, or a message or the order of
            turns is illegal.
        ValueError: only one of `prompt_key` and `answer_key` is given.
    """
    if (prompt_key is None) != (answer_key is None):
        raise ValueError("prompt_key and answer_key: one is missing; give both or neither")
    if not text:  # from Python, where a frame has NaN or pandas' NA for a key that a row lacks
        row = _plain(row)
        if isinstance(row, dict):
            row = {key: None if _is_nan(value) else value for key, value in row.items()}
    if ignore_keys:
        row = without_keys(row, ignore_keys)
    notes = Notes()
    try:
        shapes = shapes_for(prompt_key, answer_key, questions)
        name, messages = read_row(row, shapes, notes)
        if system and not (messages[0].role == "system" and messages[0].content):
            added = read_field({"system": system}, "system", of="the added system message")
            messages[: messages[0].role == "system"] = [added]
    except DataError as error:
        error = frame_error(row, path) or error
        error.path, error.line = path or ("" if line else "row"), line
        error.excerpt = excerpt(text)
        raise error from None
    unread, read_as = tuple(notes.unread), tuple(notes.read_as)
    return Conversation(tuple(messages), name, path, line, unread, read_as, tuple(notes.tools))


def parse_messages(messages: Iterable[Message | Mapping[str, object]]) -> tuple[Message, ...]:
    """Check messages from Python, dicts or Messages; a DataError's place reads "messages".

    Warns of keys that aren't read.
    """
    return parse_chat(messages).messages


def parse_chat(
    messages: Iterable[Message | Mapping[str, object]],
    tools: Iterable[Mapping[str, object]] | str = (),
) -> Conversation:
    """Check messages and tools from Python; see `parse_messages`."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TypeError(
            f"messages: {show(messages)} is not a list; "
            'give a list such as [{"role": "user", "content": "Hello!"}]'
        )
    notes = Notes()
    try:
        if tools:
            notes.tools = read_tools(tools if isinstance(tools, str) else _plain(tools), "tools")
        parsed = read_messages(_plain(list(messages)), "messages", notes)
        parsed = check_turns(parsed, notes)
    except DataError as error:
        error.path = "messages"
        raise
    warn_of_unread(notes.unread)
    return Conversation(tuple(parsed), tools=tuple(notes.tools))


def warn_of_unread(unread: Collection[Unread]) -> None:
    """Where no report can tell it: in Python."""
    if unread:
        counts = KeyCounts()
        counts.count_keys(0, unread, ())
        warnings.warn(counts.describe()[0], stacklevel=4)


def irregularities(conversation: Conversation) -> list[str]:
    """Name what is legal but unusual in the order of turns: the names of docs/data.md."""
    roles = [message.role for message in conversation.messages if message.role != "system"]
    pairs = set(pairwise(roles))
    found = {
        "repeated_user": ("user", "user") in pairs,
        "repeated_assistant": ("assistant", "assistant") in pairs,
        "leading_assistant": roles[:1] == ["assistant"],
        "trailing_prompt": "assistant" in roles and roles[-1] != "assistant",
        "no_assistant": "assistant" not in roles,
    }
    return [name for name, present in found.items() if present]


def _plain(value: object) -> Any:
    """Mappings as dicts; tuples and arrays (of pandas, Parquet, NumPy) as lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # an array; or one of NumPy's numbers, which becomes Python's
        value = value.tolist()
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _is_nan(value: object) -> bool:
    return (isinstance(value, float) and isnan(value)) or type(value).__name__ == "NAType"
