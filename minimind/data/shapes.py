"""Tell row shapes apart, and read the messages of each: docs/data.md lists them.

The errors raised here have no place yet: parse_conversation adds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import NamedTuple, TypeAlias

from minimind.data.calls import (
    LISTED,
    NOT_OFFERED,
    TOOLS,
    lists_tools,
    name_of,
    read_calls,
    tools_of,
)
from minimind.data.errors import DataError, printable, show
from minimind.data.keys import FLAGS, JsonObject, Notes, Unread, check_keys
from minimind.data.messages import (
    TWO_SYSTEMS,
    Message,
    check_turns,
    check_weight,
    read_field,
    read_messages,
    weight_of,
)

_Reader: TypeAlias = Callable[[JsonObject, str, Notes], list[Message]]

LIST = "list of messages"


class _Shape(NamedTuple):
    """The keys that a row of the shape has, each with what reads it, and all keys that are read."""

    readers: dict[str, _Reader]
    read: frozenset[str]


def _turns(row: JsonObject, key: str, notes: Notes) -> list[Message]:
    return read_messages(row[key], key, notes)


def _question(row: JsonObject, key: str, notes: Notes, role: str = "user") -> list[Message]:
    if not isinstance(row[key], list):
        return [read_field(row, key, role)]
    messages = read_messages(row[key], key, notes, label=f"{printable(key)} message")
    if role == "assistant" or all(m.role != "assistant" or not m.weight for m in messages):
        return messages
    notes.read_as[f"answers in {key} as context"] = None
    return [replace(m, weight=0.0) if m.role == "assistant" else m for m in messages]


_answer = partial(_question, role="assistant")


def _alpaca_question(row: JsonObject, key: str, notes: Notes) -> list[Message]:
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
        messages += [read_field(turn, role, role, of=name) for role in turn]
    keys = [key for key in (key, "input", "context") if not _absent(row.get(key))]
    if "context" in keys:
        notes.read_as["context as input"] = None
    parts = [read_field(row, key, "user").content for key in keys or [key]]
    return [*messages, Message("user", "\n".join(parts))]


def _alpaca_answer(row: JsonObject, key: str, notes: Notes) -> list[Message]:
    return [read_field(row, key, "assistant")]


def _xlam_answer(row: JsonObject, key: str, notes: Notes) -> list[Message]:
    try:
        calls = read_calls(row[key], key, notes)
    except DataError as error:
        error.fact = f"the row {error.fact}"
        raise
    if not calls:
        fact = f'the row has no call in "{key}"'
        raise DataError("empty_content", fact, "fill it in or remove the row")
    return [Message("assistant", "", calls=tuple(call for call, _ in calls))]


def _shape(**readers: _Reader) -> _Shape:
    optional = {"system", "system_prompt", "weight", *TOOLS}
    if _alpaca_question in readers.values():
        optional |= {"input", "context", "history"}
    return _Shape(readers, frozenset(optional | readers.keys()))


_SHAPES = {
    "messages": _shape(messages=_turns),
    "conversations": _shape(conversations=_turns),
    "instruction/output": _shape(instruction=_alpaca_question, output=_alpaca_answer),
    "prompt/completion": _shape(prompt=_question, completion=_answer),
    "prompt/response": _shape(prompt=_question, response=_answer),
    "question/answer": _shape(question=_question, answer=_answer),
    "question/response": _shape(question=_question, response=_answer),
    "instruction/response": _shape(instruction=_alpaca_question, response=_alpaca_answer),
    "query/answers": _shape(query=_question, answers=_xlam_answer),
}
_QUESTIONS = {
    "instruction": _shape(instruction=_alpaca_question),
    "prompt": _shape(prompt=_question),
    "question": _shape(question=_question),
}


@lru_cache
def shapes_for(
    prompt_key: str | None, answer_key: str | None, questions: bool
) -> dict[str, _Shape]:
    """By name, in the order in which they are tried; `questions`: rows without an answer, too."""
    shapes = _SHAPES | _QUESTIONS if questions else _SHAPES
    if prompt_key is None or answer_key is None:
        return shapes
    both: dict[str, _Reader] = {prompt_key: _question, answer_key: _answer}
    named = {f"{prompt_key}/{answer_key}": _shape(**both)}
    if questions:
        named[prompt_key] = _shape(**{prompt_key: _question})
    return named | {name: shape for name, shape in shapes.items() if name not in named}


def read_row(row: object, shapes: dict[str, _Shape], notes: Notes) -> tuple[str, list[Message]]:
    if isinstance(row, list) and row and is_message(row[0]):
        messages = check_turns(read_messages(row, "messages", notes), notes)
        _tell_tools(messages, notes)
        return LIST, messages
    if not isinstance(row, dict):
        raise DataError("not_object", f"the row is {show(row)}", "a row is a JSON object")
    for name, (readers, read) in shapes.items():
        if None in map(row.get, readers):
            continue
        if not row.keys() <= read:
            notes.unread += [
                Unread(key, False, texts)
                for key, texts in check_keys(row, read, notes, "the row ")
                if not (key in FLAGS and isinstance(row[key], bool))
            ]
        tools_of({key: row.get(key) for key in TOOLS if key not in readers}, notes, "the row ")
        messages = [
            message for key, reader in readers.items() for message in reader(row, key, notes)
        ]
        messages = check_turns(messages, notes)
        _add_system(row, readers, messages, notes)
        _tell_tools(messages, notes)
        return name, _weighted(row, readers, messages)
    check_keys(row, (), notes, "the row ")  # what is refused by name is told first
    raise _unknown_shape(row, shapes)


def is_message(item: object) -> bool:
    """Whether an object looks like a message, not like a row."""
    if isinstance(item, Message):
        return True
    keys = item.keys() if isinstance(item, dict) else set()
    return (
        not keys.isdisjoint(("role", "from"))
        and not keys.isdisjoint(("content", "value"))
        and keys.isdisjoint(key for shape in _SHAPES.values() for key in shape.readers)
    )


def _add_system(
    row: JsonObject, readers: dict[str, _Reader], messages: list[Message], notes: Notes
) -> None:
    for key in ("system", "system_prompt"):
        if _absent(row.get(key)) or key in readers:
            continue
        if key != "system":
            notes.read_as[f"{key} as system"] = None
        message = read_field(row, key)
        if messages[0].role != "system":
            messages.insert(0, message)
        elif not messages[0].content:  # kept for its tools
            messages[0] = message
        elif messages[0].content == message.content:
            notes.read_as[TWO_SYSTEMS] = None
        else:
            fact = f'the row has "{key}" beside a system message'
            raise DataError("two_systems", fact, "keep one of them")


def _tell_tools(messages: list[Message], notes: Notes) -> None:
    """Tell of calls to other tools than are offered, and of tools that the system text lists."""
    if any(message.calls for message in messages):
        offered = {name_of(tool) for tool in notes.tools}
        if any(call.name not in offered for message in messages for call in message.calls):
            notes.read_as[NOT_OFFERED] = None
    if notes.tools and messages[0].role == "system" and lists_tools(messages[0].content):
        notes.read_as[LISTED] = None


def _weighted(
    row: JsonObject, readers: dict[str, _Reader], messages: list[Message]
) -> list[Message]:
    """Multiply the messages' weights with the row's."""
    own = {key: row[key] for key in ("weight", *FLAGS) if key in row and key not in readers}
    if not own:
        return messages
    try:
        factor = weight_of(own)
        if factor == 1:
            return messages
        return [replace(m, weight=check_weight(m.weight * factor)) for m in messages]
    except DataError as error:
        error.fact = f"the row {error.fact}"
        raise


def _unknown_shape(row: JsonObject, shapes: dict[str, _Shape]) -> DataError:
    found = [show(key) + (" (null)" if row[key] is None else "") for key in list(row)[:8]]
    if len(row) > len(found):
        found.append(f"{len(row) - len(found)} more")
    fact = f"the row's shape is unknown: its keys are {', '.join(found)}"
    *accepted, last = ["+".join(shape.readers) for shape in shapes.values()]
    remedy = f"a row needs {', '.join(accepted)} or {last}, "
    remedy += "or two keys named by --prompt-key and --answer-key"
    if is_message(row):
        remedy = 'a row is a whole conversation: {"messages": [...]}, or a list of messages a line'
    return DataError("unknown_shape", fact if found else "the row is {}", remedy)


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)
