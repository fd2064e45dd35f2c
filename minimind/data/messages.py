"""Read the messages of a row: roles, contents, reasoning, calls, weights, and the order of turns.

Knows no shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from minimind.data.calls import (
    CALLS,
    REASONING,
    TOOLS,
    WRAPPED,
    Call,
    Results,
    is_given,
    read_calls,
    take_calls,
    take_reasoning,
    take_results,
    tell_tags,
    tools_of,
)
from minimind.data.errors import DataError, printable, show
from minimind.data.keys import FLAGS, JsonObject, Notes, Unread, check_keys, says_something

ROLES = ("system", "user", "assistant", "tool")
_ROLE_OF = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
_TOLD_ROLES = {"developer": "system", "model": "assistant", "function": "tool"}  # read, and told
_CALLING_ROLE = "function_call"  # ShareGPT's: the assistant's, whose text is the calls' JSON
_READ_OF_ROLE = {
    "system": TOOLS,
    "user": (),
    "assistant": (*REASONING, *CALLS),
    "tool": ("tool_call_id", "name"),
}
_READ = {
    (role, key, content): frozenset({key, content, "weight", *FLAGS, *more})
    for role, more in _READ_OF_ROLE.items()
    for key in ("role", "from")
    for content in ("content", "value")
}
_PLAIN = {
    (key, content): frozenset({key, content, "weight"})
    for key in ("role", "from")
    for content in ("content", "value")
}
_READ_OF_PART = frozenset({"type", "text"})
TWO_SYSTEMS = "two equal system messages as one"
_LEAST_WEIGHT, _LARGEST_WEIGHT = 0.0001, 10_000  # beyond them a loss in float32 means little


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `parse_conversation` checks what is said here, constructing a Message doesn't.

    Attributes:
        role: one of system, user, assistant and tool.
        content: its text, not empty unless it is a tool's or stands beside calls. It is never
            read for tags: what was a call or reasoning in a row's text is in the fields below.
        weight: how much an assistant's turn counts in the loss; ignored for other roles.
        reasoning: an assistant's, before its content.
        calls: an assistant's, after its content; the tools' messages that follow are their results.
    """

    role: str
    content: str
    weight: float = 1.0
    reasoning: str = ""
    calls: tuple[Call, ...] = ()


def read_messages(items: object, key: str, notes: Notes, label: str = "message") -> list[Message]:
    if not isinstance(items, list):
        fact = f'"{printable(key)}" is {show(items)}'
        raise DataError("bad_messages", fact, "it takes a list of messages")
    if not items:
        fact = f'"{printable(key)}" is an empty list'
        raise DataError("no_messages", fact, "give at least one message")
    messages: list[Message] = []
    results = Results()
    try:
        for item in items:
            message, asked = _read_message(item, notes)
            if message.role != "tool":
                results = Results(asked)
                messages.append(message)
                continue
            # In the order of the calls, wherever it stands among the results.
            first = len(messages) - len(results.ranks)
            given = item if isinstance(item, dict) else {}
            name = given.get("name") or None
            if name and not results.calls:
                notes.unread.append(Unread("name", True, True))
            place = results.place(given.get("tool_call_id"), name)
            messages.insert(first + place, message)
    except DataError as error:
        error.fact = f"{label} {len(messages) + 1} {error.fact}"
        raise
    return messages


def check_turns(messages: Sequence[Message], notes: Notes) -> list[Message]:
    """Check the order; return them without system messages that are empty or repeat the first."""
    kept: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if message.role == "system":
            if not message.content and (kept or not notes.tools):
                notes.read_as["empty system message as none"] = None
                continue
            if len(kept) == 1 and (kept[0].role, kept[0].content) == ("system", message.content):
                notes.read_as[TWO_SYSTEMS] = None
                continue
            if kept:
                fact = f"message {number} has role system"
                raise DataError("system_not_first", fact, "a system message is the first one only")
        if message.role == "tool" and not (kept and kept[-1].role in ("assistant", "tool")):
            after = f"follows {kept[-1].role}" if kept else "is the first"
            fact = f"message {number} has role tool and {after}"
            remedy = "a tool's message follows an assistant's or another tool's"
            raise DataError("tool_out_of_place", fact, remedy)
        kept.append(message)
    if not kept:
        fact = "its only message is an empty system message"
        raise DataError("no_messages", fact, "give at least one message")
    if notes.wrapped:
        kept = [part for message in kept for part in _unwrap(message, notes)]
    return kept


def _unwrap(message: Message, notes: Notes) -> list[Message]:
    """A tool's message without the <tool_response> around each result in its text."""
    if not any(message is wrapped for wrapped in notes.wrapped):
        return [message]
    notes.read_as[WRAPPED] = None
    return [replace(message, content=result) for result in take_results(message.content)]


def read_field(row: JsonObject, key: str, role: str = "system", of: str = "the row") -> Message:
    """The message whose content is under a key of its own."""
    try:
        return Message(role, _check_text(row.get(key), key, role))
    except DataError as error:
        error.fact = f"{of} {error.fact}"
        raise


def weight_of(item: JsonObject) -> float:
    """The product of a row's or message's weight and of its flags."""
    weight = item.get("weight")
    factor = 1.0 if weight is None else check_weight(weight)
    for flag in FLAGS:
        if item.get(flag) is False:
            factor = 0.0
    return factor


def check_weight(weight: object) -> float:
    number = weight if isinstance(weight, (int, float)) and weight is not True else -1
    if weight is not False and (number == 0 or _LEAST_WEIGHT <= number <= _LARGEST_WEIGHT):
        return float(number)
    remedy = f"a weight is a number, 0 or {_LEAST_WEIGHT} to {_LARGEST_WEIGHT}"
    raise DataError("bad_weight", f"has weight {show(weight)}", remedy)


def _read_message(item: object, notes: Notes) -> tuple[Message, Sequence[tuple[Call, str | None]]]:
    """A message, and its calls with their ids."""
    if isinstance(item, Message):
        return _check_message(item, notes)
    if not isinstance(item, dict):
        remedy = 'write it as {"role": ..., "content": ...}'
        raise DataError("bad_message", f"is {show(item)}", remedy)
    role_key = "role" if item.get("role") is not None else "from"
    key = "value" if item.get("content") is None and item.get("value") is not None else "content"
    name = item.get(role_key)
    is_call = isinstance(name, str) and name.lower() == _CALLING_ROLE
    role = "assistant" if is_call else _read_role(name, notes)
    plain = item.keys() <= _PLAIN[role_key, key]
    unread = {} if plain else dict(check_keys(item, _READ[role, role_key, key], notes))
    content = item.get(key)
    text = _join(content, notes, unread) if isinstance(content, list) and not is_call else content
    weight = 1.0 if len(item) == 2 else _weight_of_message(item, role, unread)
    reasoning, calls = "", list[tuple[Call, "str | None"]]()
    if role == "assistant":
        if not plain:
            reasoning, calls = _read_keys(item, notes)
        if is_call:
            if calls:
                raise DataError("two_calls", "has its calls twice", "keep one of them")
            text, calls = "", read_calls(text, key, notes)
        elif isinstance(text, str) and "<" in text:
            text, reasoning, calls = _read_tags(text, reasoning, calls, notes)
        if calls and text is None:
            text = ""
    elif role == "system" and not plain:
        tools_of(item, notes)
    elif role == "tool" and not isinstance(item.get("name") or "", str):
        raise DataError("bad_name", f"has the name {show(item['name'])}", "it takes a text")
    text = _check_text(text, key, "tool" if calls else role)
    results = take_results(text) if role == "tool" else []
    for part in (reasoning, *(results or [text])):
        tell_tags(part, notes)
    again = False
    for name, texts in unread.items():
        notes.unread.append(Unread(name, True, texts, again and texts))
        again |= texts
    message = Message(role, text, weight, reasoning, tuple(call for call, _ in calls))
    if results:
        notes.wrapped.append(message)
    return message, calls


def _check_message(
    message: Message, notes: Notes
) -> tuple[Message, Sequence[tuple[Call, str | None]]]:
    """A Message from Python: data already, whose texts aren't read for tags."""
    role = _read_role(message.role, notes)
    if role != "assistant" and (message.reasoning or message.calls):
        fact = f"has role {role} and reasoning or calls"
        raise DataError("untrained_key", fact, "only an assistant's message has them")
    _check_text(message.reasoning, "reasoning", "tool")
    _check_text(message.content, "content", "tool" if message.calls else role)
    weight = check_weight(message.weight)
    return replace(message, role=role, weight=weight), [(call, None) for call in message.calls]


def _read_keys(item: JsonObject, notes: Notes) -> tuple[str, list[tuple[Call, str | None]]]:
    """An assistant's reasoning and calls under keys of their own."""
    reasonings = [key for key in REASONING if is_given(item, key, notes)]
    if len(reasonings) > 1:
        fact = f'has reasoning twice, in "{reasonings[0]}" and "{reasonings[1]}"'
        raise DataError("two_reasonings", fact, "keep one of them")
    reasoning = ""
    for key in reasonings:
        reasoning = _check_text(item[key], key, "tool").strip("\n")
    given = [key for key in CALLS if is_given(item, key, notes)]
    if len(given) > 1:
        raise DataError("two_calls", 'has "tool_calls" and "function_call"', "keep one of them")
    return reasoning, [call for key in given for call in read_calls(item[key], key, notes)]


def _read_tags(
    text: str, reasoning: str, calls: list[tuple[Call, str | None]], notes: Notes
) -> tuple[str, str, list[tuple[Call, str | None]]]:
    """Take the reasoning before an assistant's text, and the calls after it, out of it."""
    block, answer = take_reasoning(text)
    if block is not None:
        if reasoning:
            fact = "has reasoning twice, under a key and in <think> tags"
            raise DataError("two_reasonings", fact, "keep one of them")
        if not block:
            notes.read_as["empty <think></think> as no reasoning"] = None
        reasoning, text = block, answer
    found, answer = take_calls(text)
    if found and calls:
        fact = "has calls twice, under a key and in <tool_call> tags"
        raise DataError("two_calls", fact, "keep one of them")
    if found:
        text, calls = answer, [(call, None) for call in found]
    return text, reasoning, calls


def _weight_of_message(item: JsonObject, role: str, unread: dict[str, bool]) -> float:
    for flag in FLAGS:
        value = item.get(flag)
        if says_something(value) and not isinstance(value, bool):
            fact = f'has {show(value)} for "{flag}"'
            raise DataError("bad_weight", fact, "it takes true (trained) or false (not)")
        if value is True and role != "assistant":  # only answers are trained
            unread[flag] = True
    weight = weight_of(item)
    if weight not in (0, 1) and role != "assistant":
        unread["weight"] = False
    return weight


def _read_role(name: object, notes: Notes) -> str:
    if name is None:
        raise DataError("missing_role", 'has no "role"', 'give it "role" and "content"')
    if not isinstance(name, str):
        role = None
    elif (role := _ROLE_OF.get(name)) is None:
        plain = name.lower() if name.isascii() else ""
        if role := _ROLE_OF.get(plain) or _TOLD_ROLES.get(plain):
            notes.read_as[f"{name} as {role}"] = None
    if role is None:
        remedy = "use system, user, assistant or tool"
        raise DataError("unknown_role", f"has role {show(name)}", remedy)
    return role


def _join(parts: list[object], notes: Notes, unread: dict[str, bool]) -> str:
    texts = []
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict) or part.get("type") != "text":
            found = f"type {show(part.get('type'))}" if isinstance(part, dict) else show(part)
            remedy = 'only text is trained: {"type": "text", "text": ...}'
            raise DataError("bad_part", f"has {found} as content part {number}", remedy)
        if not part.keys() <= _READ_OF_PART:
            for key, holds_text in check_keys(part, _READ_OF_PART, notes):
                unread[key] = holds_text or unread.get(key, False)
        texts.append(_check_text(part.get("text"), "text", "tool"))  # one part may be empty
    return "".join(texts)


def _check_text(text: object, key: str, role: str) -> str:
    name = f'"{printable(key)}"'
    if text is None:
        raise DataError("missing_content", f"has no {name}", f"give it {name}, a text")
    if not isinstance(text, str):
        raise DataError("bad_content", f"has {show(text)} for {name}", "it takes a text")
    if not text and role not in ("tool", "system"):
        raise DataError("empty_content", f"has an empty {name}", "fill it in or remove it")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        fact = f"has half a surrogate pair, {printable(text[error.start])}, in {name}"
        remedy = "it is half a character; write both halves or remove it"
        raise DataError("lone_surrogate", fact, remedy) from None
    return text
