"""Read the messages of a row: roles, contents, weights, and the order of turns. Knows no shapes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minimind.data.errors import DataError, printable, show
from minimind.data.keys import FLAGS, JsonObject, Notes, Unread, check_keys, says_something

ROLES = ("system", "user", "assistant", "tool")
_ROLE_OF = {role: role for role in ROLES} | {
    "human": "user",
    "gpt": "assistant",
    "function_response": "tool",
    "observation": "tool",
}
_TOLD_ROLES = {"developer": "system", "model": "assistant"}  # read, counted and told
_READ = {
    (role, content): frozenset({role, content, "weight", *FLAGS})
    for role in ("role", "from")
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
        content: its text, not empty unless it is a tool's.
        weight: how much an assistant's turn counts in the loss; ignored for other roles.
    """

    role: str
    content: str
    weight: float = 1.0


def read_messages(items: object, key: str, notes: Notes, label: str = "message") -> list[Message]:
    if not isinstance(items, list):
        fact = f'"{printable(key)}" is {show(items)}'
        raise DataError("bad_messages", fact, "it takes a list of messages")
    if not items:
        fact = f'"{printable(key)}" is an empty list'
        raise DataError("no_messages", fact, "give at least one message")
    messages: list[Message] = []
    try:
        for item in items:
            messages.append(_read_message(item, notes))
    except DataError as error:
        error.fact = f"{label} {len(messages) + 1} {error.fact}"
        raise
    return messages


def check_turns(messages: Sequence[Message], notes: Notes) -> list[Message]:
    """Check the order; return them without system messages that are empty or repeat the first."""
    kept: list[Message] = []
    for number, message in enumerate(messages, start=1):
        if message.role == "system":
            if not message.content:
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
    return kept


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


def _read_message(item: object, notes: Notes) -> Message:
    if isinstance(item, Message):
        item = {"role": item.role, "content": item.content, "weight": item.weight}
    if not isinstance(item, dict):
        remedy = 'write it as {"role": ..., "content": ...}'
        raise DataError("bad_message", f"is {show(item)}", remedy)
    role_key = "role" if item.get("role") is not None else "from"
    key = "value" if item.get("content") is None and item.get("value") is not None else "content"
    read = _READ[role_key, key]
    unread = {} if item.keys() <= read else dict(check_keys(item, read, notes))
    role = _read_role(item.get(role_key), notes)
    content = item.get(key)
    text = _join(content, notes, unread) if isinstance(content, list) else content
    text = _check_text(text, key, role)
    weight = 1.0
    if len(item) > 2:
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
    again = False
    for name, texts in unread.items():
        notes.unread.append(Unread(name, True, texts, again and texts))
        again |= texts
    return Message(role, text, weight)


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
