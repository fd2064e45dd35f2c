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
    {"prompt": ..., "completion": ...}             each a string or a list of messages

In each of them "system" beside these keys is the first message. An optional key ("input", "system",
"history") that is empty counts as missing, too. Other keys are ignored, except those in UNTRAINED:
they mean something that isn't trained yet, and are an error.

Turns are kept in their order. docs/data.md says which orders are legal and what is done with each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import isnan
from typing import Any, TypeAlias

from minimind.data.errors import DataError, excerpt, printable, show

ROLES = ("system", "user", "assistant", "tool")
_ROLE_OF = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
UNTRAINED = ("tool_calls", "tools", "function_call", "reasoning_content", "chosen", "rejected")
_LEAST_WEIGHT, _LARGEST_WEIGHT = 0.0001, 10_000  # beyond them a loss in float32 means little

JsonObject: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `parse_conversation` checks what is said here, constructing a Message doesn't.

    Attributes:
        role: one of system, user, assistant and tool.
        content: its text, not empty unless it is a tool's.
        weight: how much an assistant's turn counts in the loss; ignored for other roles.
    """

    role: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one row, the name of its shape, and its place.

    Attributes:
        messages: at least one.
        shape: such as "messages" or "instruction/output".
        path: the file, or "" for a row that a caller gave.
        line: its line in the file, or its number among the rows given, from 1; 0 for a single row.
    """

    messages: tuple[Message, ...]
    shape: str = "messages"
    path: str = ""
    line: int = 0


def parse_conversation(
    row: object,
    *,
    prompt_key: str | None = None,
    answer_key: str | None = None,
    system: str | None = None,
    questions: bool = False,
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
    shapes = _SHAPES | _QUESTIONS if questions else _SHAPES
    if prompt_key is not None and answer_key is not None:
        both: _Shape = {prompt_key: _question, answer_key: _answer}
        named = {f"{prompt_key}/{answer_key}": both}
        if questions:
            named[prompt_key] = {prompt_key: _question}
        shapes = named | shapes
    if not text:  # from Python, where a frame has NaN or pandas' NA for a key that a row lacks
        row = _plain(row)
        if isinstance(row, dict):
            row = {key: None if _is_nan(value) else value for key, value in row.items()}
    try:
        name, messages = _read_row(row, shapes)
        if system and messages[0].role != "system":
            messages.insert(0, _field({"system": system}, "system", of="the added system message"))
    except DataError as error:
        error.path, error.line = path or ("" if line else "row"), line
        error.excerpt = excerpt(text)
        raise
    return Conversation(tuple(messages), name, path, line)


def parse_messages(messages: Iterable[Message | Mapping[str, object]]) -> tuple[Message, ...]:
    """Check messages from Python, dicts or Messages; a DataError's place reads "messages"."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise TypeError(
            f"messages: {show(messages)} is not a list; "
            'give a list such as [{"role": "user", "content": "Hello!"}]'
        )
    try:
        parsed = _read_messages(_plain(list(messages)), "messages")
        _check_turns(parsed)
    except DataError as error:
        error.path = "messages"
        raise
    return tuple(parsed)


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


# Shapes: the keys that a row of the shape has, in order, and what reads the messages under each.
# The errors raised here have no place yet: parse_conversation adds it.

_Reader: TypeAlias = Callable[[JsonObject, str], list[Message]]
_Shape: TypeAlias = dict[str, _Reader]


def _turns(row: JsonObject, key: str) -> list[Message]:
    return _read_messages(row[key], key)


def _question(row: JsonObject, key: str, role: str = "user") -> list[Message]:
    if isinstance(row[key], list):
        return _read_messages(row[key], key, label=f"{printable(key)} message")
    return [_field(row, key, role)]


_answer = partial(_question, role="assistant")


def _alpaca_question(row: JsonObject, key: str) -> list[Message]:
    messages = []
    remedy = 'write "history" as a list of [user, assistant] pairs'
    history = [] if _absent(row.get("history")) else row["history"]
    if not isinstance(history, list):
        raise DataError("bad_history", f"the history is {show(history)}", remedy)
    for number, pair in enumerate(history, start=1):
        name = f"history pair {number}"
        if not isinstance(pair, list) or len(pair) != 2:
            raise DataError("bad_history", f"{name} is {show(pair)}", remedy)
        turn = dict(zip(("user", "assistant"), pair, strict=True))
        messages += [_field(turn, role, role, of=name) for role in turn]
    keys = [key for key in (key, "input") if not _absent(row.get(key))]
    parts = [_field(row, key, "user").content for key in keys or [key]]
    return [*messages, Message("user", "\n".join(parts))]


def _alpaca_answer(row: JsonObject, key: str) -> list[Message]:
    return [_field(row, key, "assistant")]


_SHAPES: dict[str, _Shape] = {
    "messages": {"messages": _turns},
    "conversations": {"conversations": _turns},
    "instruction/output": {"instruction": _alpaca_question, "output": _alpaca_answer},
    "prompt/completion": {"prompt": _question, "completion": _answer},
}
_QUESTIONS: dict[str, _Shape] = {
    "instruction": {"instruction": _alpaca_question},
    "prompt": {"prompt": _question},
}


def _read_row(row: object, shapes: dict[str, _Shape]) -> tuple[str, list[Message]]:
    if not isinstance(row, dict):
        raise DataError("not_object", f"the row is {show(row)}", "a row is a JSON object")
    _refuse_untrained(row, "the row ")
    for name, shape in shapes.items():
        if None in map(row.get, shape):
            continue
        messages = [message for key, read in shape.items() for message in read(row, key)]
        _check_turns(messages)
        if not _absent(row.get("system")) and "system" not in shape:
            if messages[0].role == "system":
                fact = 'the row has "system" beside a system message'
                raise DataError("two_systems", fact, "keep one of them")
            messages.insert(0, _field(row, "system", "system"))
        return name, messages
    found = [show(key) + (" (null)" if row[key] is None else "") for key in list(row)[:8]]
    if len(row) > len(found):
        found.append(f"{len(row) - len(found)} more")
    fact = f"the row's shape is unknown: its keys are {', '.join(found)}"
    *accepted, last = ["+".join(shape) for shape in shapes.values()]
    remedy = f"a row needs {', '.join(accepted)} or {last}, "
    remedy += "or two keys named by --prompt-key and --answer-key"
    raise DataError("unknown_shape", fact if found else "the row is {}", remedy)


def _read_messages(items: object, key: str, label: str = "message") -> list[Message]:
    if not isinstance(items, list):
        fact = f'"{printable(key)}" is {show(items)}'
        raise DataError("bad_messages", fact, "it takes a list of messages")
    if not items:
        fact = f'"{printable(key)}" is an empty list'
        raise DataError("no_messages", fact, "give at least one message")
    messages: list[Message] = []
    try:
        for item in items:
            messages.append(_read_message(item))
    except DataError as error:
        error.fact = f"{label} {len(messages) + 1} {error.fact}"
        raise
    return messages


def _read_message(item: object) -> Message:
    if isinstance(item, Message):
        item = {"role": item.role, "content": item.content, "weight": item.weight}
    if not isinstance(item, dict):
        remedy = 'write it as {"role": ..., "content": ...}'
        raise DataError("bad_message", f"is {show(item)}", remedy)
    _refuse_untrained(item)
    name = item.get("role")
    if name is None and (name := item.get("from")) is None:
        raise DataError("missing_role", 'has no "role"', 'give it "role" and "content"')
    role = _ROLE_OF.get(name) if isinstance(name, str) else None
    if role is None:
        remedy = "use system, user, assistant or tool"
        raise DataError("unknown_role", f"has role {show(name)}", remedy)
    key = "value" if item.get("content") is None and item.get("value") is not None else "content"
    content = item.get(key)
    text = _check_text(_join(content) if isinstance(content, list) else content, key, role)
    weight = item.get("weight")
    return Message(role, text) if weight is None else Message(role, text, _check_weight(weight))


def _join(parts: list[object]) -> str:
    texts = []
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict) or part.get("type") != "text":
            found = f"type {show(part.get('type'))}" if isinstance(part, dict) else show(part)
            remedy = 'only text is trained: {"type": "text", "text": ...}'
            raise DataError("bad_part", f"has {found} as content part {number}", remedy)
        texts.append(_check_text(part.get("text"), "text", "tool"))  # one part may be empty
    return "".join(texts)


def _field(row: JsonObject, key: str, role: str = "system", of: str = "the row") -> Message:
    """The message whose content is under a key of its own."""
    try:
        return Message(role, _check_text(row.get(key), key, role))
    except DataError as error:
        error.fact = f"{of} {error.fact}"
        raise


def _check_text(text: object, key: str, role: str) -> str:
    name = f'"{printable(key)}"'
    if text is None:
        raise DataError("missing_content", f"has no {name}", f"give it {name}, a text")
    if not isinstance(text, str):
        raise DataError("bad_content", f"has {show(text)} for {name}", "it takes a text")
    if not text and role != "tool":
        raise DataError("empty_content", f"has an empty {name}", "fill it in or remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        fact = f"has half a surrogate pair, {printable(text[error.start])}, in {name}"
        remedy = "it is half a character; write both halves or remove it"
        raise DataError("lone_surrogate", fact, remedy) from None
    return text


def _check_weight(weight: object) -> float:
    number = weight if isinstance(weight, (int, float)) and weight is not True else -1
    if weight is not False and (number == 0 or _LEAST_WEIGHT <= number <= _LARGEST_WEIGHT):
        return float(number)
    remedy = f"a weight is a number, 0 or {_LEAST_WEIGHT} to {_LARGEST_WEIGHT}"
    raise DataError("bad_weight", f"has weight {show(weight)}", remedy)


def _refuse_untrained(item: JsonObject, subject: str = "") -> None:
    for key in UNTRAINED:
        if not _absent(item.get(key)):
            fact = f'{subject}has "{key}", which is not trained yet'
            remedy = "remove the key where the conversation makes sense without it, or else the row"
            raise DataError("untrained_key", fact, remedy)


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _check_turns(messages: Sequence[Message]) -> None:
    previous = None
    for number, message in enumerate(messages, start=1):
        if message.role == "system" and number > 1:
            fact = f"message {number} has role system"
            raise DataError("system_not_first", fact, "a system message is the first one only")
        if message.role == "tool" and previous not in ("assistant", "tool"):
            after = f"follows {previous}" if previous else "is the first"
            fact = f"message {number} has role tool and {after}"
            remedy = "a tool's message follows an assistant's or another tool's"
            raise DataError("tool_out_of_place", fact, remedy)
        previous = message.role
