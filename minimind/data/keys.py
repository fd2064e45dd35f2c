"""Tell apart the keys of rows and messages: read, refused by name, or counted as not read.

A value that is null, an empty text, or a list or object with nothing else in it says nothing: its
key counts as missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from minimind.data.errors import DataError, printable

JsonObject: TypeAlias = dict[str, Any]

FLAGS = ("train", "training", "loss")  # true is weight 1, false is weight 0
_JUDGEMENTS = ("label", "kto_tag")  # refused where they are true or false
_REASONING = ("reasoning_content", "thinking", "reasoning")
_PREFERENCES = ("chosen", "rejected", "rejected_response")
_MEDIA = ("image", "images", "video", "videos", "audio", "audios")
REFUSED = {
    **dict.fromkeys(("reasoning_details", *_PREFERENCES), "which is not trained yet"),
    **dict.fromkeys(_JUDGEMENTS, "which judges an answer that would be trained either way"),
    **dict.fromkeys(_MEDIA, "which the model can neither see nor hear"),
    "chat_template_kwargs": "which the chat template doesn't take",
}
# Read in their place, and refused in any other.
MISPLACED = {
    **dict.fromkeys(_REASONING, "which is read in an assistant's message"),
    **dict.fromkeys(("tool_calls", "function_call"), "which is read in an assistant's message"),
    **dict.fromkeys(("tools", "functions"), "which is read in a row or its system message"),
    "tool_call_id": "which is read in a tool's message",
}
_EVERY_REASON = REFUSED | MISPLACED
_HOLD_CALLS = ("tools", "functions", "tool_calls", "function_call")
_NOTHING = re.compile(r"\s*(\[\s*\]|\{\s*\}|null)?\s*")  # as text, also as JSON in a text
_MOST_NAMES = 1000  # counted by name, so that memory is bounded
_MOST_SHOWN = 20


class Unread(NamedTuple):
    """A key that nobody read."""

    key: str
    in_message: bool  # in a message, or in a part of its content
    texts: bool  # its value has text, true or false in it
    again: bool = False  # so has an earlier one of the same message


@dataclass(slots=True)
class Notes:
    """What was found in a row beside its messages: keys not read, and what was read as what."""

    unread: list[Unread] = field(default_factory=list)
    read_as: dict[str, None] = field(default_factory=dict)  # in order, each once
    tools: list[JsonObject] = field(default_factory=list)
    wrapped: list[object] = field(default_factory=list)  # messages whose text wraps results


def says_something(value: object) -> bool:
    return any(leaf is not None and leaf != "" for leaf in _leaves(value))


def is_nothing(value: object) -> bool:
    """Whether it is text that spells an empty list, an empty object or null."""
    return isinstance(value, str) and _NOTHING.fullmatch(value) is not None


def check_keys(
    item: JsonObject, read: Collection[str], notes: Notes, subject: str = ""
) -> list[tuple[str, bool]]:
    """Refuse keys that mean something we don't train; return the other ones that aren't `read`.

    Each comes with whether its value holds text or booleans.

    Raises:
        DataError: a key is refused; `subject` begins what it says.
    """
    found = []
    for key, value in item.items():
        if key in read or not says_something(value):
            continue
        judges = key not in _JUDGEMENTS or isinstance(value, bool)
        why = _EVERY_REASON.get(key) if judges else None
        if why is None:
            texts = any(isinstance(x, (str, bool)) and x != "" for x in _leaves(value))
            found.append((str(key), texts))
        elif is_nothing(value):
            notes.read_as[f"empty {key} as none"] = None
        else:
            remedy = f"remove it (--ignore-keys {key}) where the conversation makes sense without "
            remedy += "it, or else the row"
            raise DataError("untrained_key", f'{subject}has "{key}", {why}', remedy)
    return found


def without_keys(value: Any, keys: Collection[str], depth: int = 5) -> Any:
    """A row without some keys of its own, of its messages, and of the parts of their contents.

    What calls and tools hold isn't the row's.
    """
    if depth and isinstance(value, dict):
        return {
            key: item if key in _HOLD_CALLS else without_keys(item, keys, depth - 1)
            for key, item in value.items()
            if key not in keys
        }
    if depth and isinstance(value, list):
        return [without_keys(item, keys, depth - 1) for item in value]
    return value


def _leaves(value: object) -> Iterator[object]:
    """All that isn't a list or an object; a stack, since JSON may be deeper than Python's."""
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)
        else:
            yield item


@dataclass(kw_only=True)
class KeyCounts:
    """What wasn't read, and what was read as what, of many rows."""

    messages: int = 0
    messages_with_unread_texts: int = 0  # each once, whatever its keys are called
    unread_of_rows: Counter[str] = field(default_factory=Counter)  # rows by key
    unread_of_messages: Counter[str] = field(default_factory=Counter)  # messages by key
    unread_texts: Counter[str] = field(default_factory=Counter)  # those with text or booleans
    read_as: Counter[str] = field(default_factory=Counter)  # rows, by "developer as system" etc.

    def count_keys(self, messages: int, unread: Iterable[Unread], read_as: Iterable[str]) -> None:
        """Count those of one row."""
        self.messages += messages
        for key, in_message, texts, again in unread:
            counts = self.unread_of_messages if in_message else self.unread_of_rows
            if key not in counts and len(counts) >= _MOST_NAMES:
                key = "other keys"
            counts[key] += 1
            if in_message and texts:
                self.unread_texts[key] += 1
                self.messages_with_unread_texts += not again
        self.read_as.update(read_as)

    def describe(self) -> list[str]:
        """`not read: id (1,000 rows), source (1,000), mood (12 messages)`, and what was read."""
        unread = [
            *_counted(self.unread_of_rows, "row"),
            *_counted(self.unread_of_messages, "message"),
        ]
        lines = [f"not read: {', '.join(unread)}"] if unread else []
        if self.read_as:
            lines.append(f"read: {', '.join(_counted(self.read_as, 'row'))}")
        return lines


def _counted(counts: Counter[str], unit: str) -> Iterator[str]:
    """`id (1,000 rows)`; after the first name the unit is left out."""
    for name, count in counts.most_common(_MOST_SHOWN):
        shown = printable(name[:40]) + "…" * (len(name) > 40)
        yield f"{shown} ({count:,}{unit and f' {unit}'}{'s' * bool(unit and count > 1)})"
        unit = ""
    if len(counts) > _MOST_SHOWN:
        yield f"{len(counts) - _MOST_SHOWN:,} more"
