"""Turn a parsed JSON row into a Conversation. Knows no files, no templates, no tokens.

Row shapes, mixed freely. The first shape whose keys are all there, and not null, is taken:

    {PROMPT: ..., ANSWER: ...}                     any two keys by name; as prompt and completion
    {"messages": [{"role": ..., "content": ...}]}  OpenAI; content may be a list of text parts,
                                                   joined as they are; "weight" scales the loss
    {"conversations": [...]}                       MiniMind's role and content, ShareGPT's from and
                                                   value
    {"instruction": ..., "output": ...}            Alpaca; the user's turn is instruction + "\\n" +
                                                   input; "history": [[user, assistant], ...] goes
                                                   before it
    {"prompt": ..., "completion": ...}             each a string or a list of messages

In each of them "system" beside these keys is the first message. A key that is null is as good as
absent, and so is an optional key ("input", "system", "history") that is empty. Other keys are
ignored, but for those that carry meaning which is not trained yet: UNTRAINED.

Turns. Whatever is legal is kept as it stands, turn by turn; the names are `irregularities`':

    system, not first                  error      system_not_first
    tool, not after assistant or tool  error      tool_out_of_place
    no message at all                  error      no_messages
    empty content, but a tool's        error      empty_content
    content that is only white space   legal      trained or shown as it is
    user after user                    legal      repeated_user: two turns
    assistant after assistant          legal      repeated_assistant: two turns, each trained
    assistant first                    legal      leading_assistant: trained, with nothing before it
    user or tool last, after answers   legal      trailing_prompt: read, never trained
    no assistant at all                legal      no_assistant: a prompt only, nothing to train
    every other order                  legal      nothing to tell
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from typing import TypeAlias

ROLES = ("system", "user", "assistant", "tool")
UNTRAINED = ("tool_calls", "tools", "function_call", "reasoning_content", "chosen", "rejected")

Row: TypeAlias = dict[str, object]

_SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_EXCERPT = 80  # characters
_LEAST_WEIGHT, _LARGEST_WEIGHT = 0.0001, 10_000  # beyond them a loss in float32 means little


class DataError(ValueError):
    """A row or a file that can't be used.

        train.jsonl:41: message 2 has role "bot"; use system, user, assistant or tool
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "bot", "content": "H…

    Attributes:
        kind: a short stable name for counting, such as "unknown_role".
        fact: what was found.
        remedy: what to do about it.
        path: the file, "-" for standard input, or what else was read: "row" or "messages".
        line: the line in the file, from 1; 0 where no single line is meant.
        excerpt: at most 80 printable characters of the input, or "".
        row: the whole row as it stands in the file, where it could be made out, or "".
    """

    def __init__(
        self, kind: str, fact: str, remedy: str, path: str = "", line: int = 0, excerpt: str = ""
    ) -> None:
        super().__init__(kind, fact, remedy, path, line, excerpt)  # so that it pickles
        self.kind = kind
        self.fact = fact
        self.remedy = remedy
        self.path = path
        self.line = line
        self.excerpt = excerpt
        self.row = ""

    def __str__(self) -> str:
        place = "<stdin>" if self.path == "-" else printable(_as_typed(self.path)) or "data"
        if self.line:
            place += f":{self.line}"
        excerpt = f"\n    {self.excerpt}" if self.excerpt else ""
        return f"{place}: {self.fact}; {self.remedy}{excerpt}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Attributes:
        role: one of ROLES.
        content: its text, not empty unless it is a tool's.
        weight: how much an assistant's turn counts in the loss; means nothing on other roles.
    """

    role: str
    content: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """The messages of one row, the name of its shape, and the file and line where it stood."""

    messages: tuple[Message, ...]
    shape: str = "messages"
    path: str = ""
    line: int = 0


class _RowError(Exception):
    """What is wrong, as a predicate: `has role "bot"`. Whoever knows the subject puts it before."""

    def __init__(self, kind: str, predicate: str, remedy: str) -> None:
        self.kind = kind
        self.predicate = predicate
        self.remedy = remedy

    def of(self, subject: str) -> _RowError:
        return _RowError(self.kind, f"{subject} {self.predicate}", self.remedy)


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

    Args:
        row: what `json.loads` made of it.
        prompt_key: with `answer_key`, two keys that come before every other shape.
        answer_key: see `prompt_key`.
        system: becomes the first message where the row has no system message.
        questions: take rows, too, that have the question's keys only.
        path: where the row stood, for the Conversation and for errors.
        line: its line there, from 1.
        text: its source, for an error's excerpt.

    Raises:
        DataError: the row's shape, a message or the order of the turns is not one of those above.
        ValueError: only one of `prompt_key` and `answer_key` is given.
    """
    shapes = _shapes(prompt_key, answer_key, questions)
    try:
        name, messages = _read_row(row, shapes)
        if system and messages[0].role != "system":
            messages.insert(0, _added_system(system))
    except _RowError as fault:
        raise DataError(
            fault.kind, fault.predicate, fault.remedy, path or "row", line, excerpt(text)
        ) from None
    return Conversation(tuple(messages), name, path, line)


def parse_messages(messages: Sequence[Message | Mapping[str, object]]) -> tuple[Message, ...]:
    """Check messages that come from Python: dicts, or Messages, which pass through unchanged.

    Raises:
        DataError: as for a file's row; its place reads "messages".
    """
    try:
        parsed = _read_messages(messages, "messages")
        _check_turns(parsed)
    except _RowError as fault:
        raise DataError(fault.kind, fault.predicate, fault.remedy, "messages") from None
    return tuple(parsed)


def irregularities(conversation: Conversation) -> list[str]:
    """Name the legal but unusual things about the order of turns, each at most once.

    See the table at the top of this module. The list is empty for system?, (user, assistant)+.
    """
    return list(_irregularities(tuple([message.role for message in conversation.messages])))


@lru_cache  # a data set knows few orders of turns
def _irregularities(order: tuple[str, ...]) -> tuple[str, ...]:
    roles = [role for role in order if role != "system"]
    pairs = set(pairwise(roles))
    found = {
        "repeated_user": ("user", "user") in pairs,
        "repeated_assistant": ("assistant", "assistant") in pairs,
        "leading_assistant": roles[:1] == ["assistant"],
        "trailing_prompt": "assistant" in roles and roles[-1] != "assistant",
        "no_assistant": "assistant" not in roles,
    }
    return tuple(name for name, present in found.items() if present)


def printable(text: str) -> str:
    """Escape whatever could disturb a terminal or can't be encoded: controls, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def _as_typed(path: str) -> str:
    """A file's name in UTF-8: in the locale C Python has a surrogate for each of its bytes."""
    try:
        return path.encode(errors="surrogateescape").decode(errors="surrogateescape")
    except UnicodeEncodeError:
        return path


def excerpt(text: str, at: int = 0) -> str:
    """Cut at most 80 printable characters out of `text`, around the index `at`."""
    start = max(0, at - _EXCERPT // 4)
    cut = printable(text[start : start + _EXCERPT].rstrip("\r\n"))
    cut = "…" * (start > 0) + cut
    if len(cut) > _EXCERPT or len(text.rstrip("\r\n")) > start + _EXCERPT:
        cut = cut[: _EXCERPT - 1] + "…"
    return cut


# Shapes. A parser takes a row that has the shape's keys, and returns its messages.

_Parser: TypeAlias = Callable[[Row], list[Message]]
_Shapes: TypeAlias = dict[str, tuple[tuple[str, ...], _Parser]]


def _read_row(row: object, shapes: _Shapes) -> tuple[str, list[Message]]:
    if not isinstance(row, dict):
        raise _RowError("not_object", f"the row is {_show(row)}", "a row is a JSON object")
    if not _UNTRAINED.isdisjoint(row):
        _refuse_untrained(row, "the row ")
    for name, (keys, parse) in shapes.items():
        for key in keys:
            if row.get(key) is None:
                break
        else:
            messages = parse(row)
            _check_turns(messages)
            if not _absent(row.get("system")) and "system" not in keys:
                if messages[0].role == "system":
                    raise _RowError(
                        "two_systems",
                        'the row has "system" beside a system message',
                        "keep one of them",
                    )
                messages.insert(0, _field(row, "system", "system"))
            return name, messages
    raise _unknown_shape(row, shapes)


def _unknown_shape(row: Row, shapes: _Shapes) -> _RowError:
    found = [_show(key) + (" (null)" if row[key] is None else "") for key in list(row)[:8]]
    if len(row) > len(found):
        found.append(f"{len(row) - len(found)} more")
    accepted = ["+".join(keys) for keys, _ in shapes.values()]
    return _RowError(
        "unknown_shape",
        f"the row's shape is unknown: its keys are {', '.join(found)}"
        if found
        else "the row is {}",
        f"a row needs {', '.join(accepted[:-1])} or {accepted[-1]}, "
        "or two keys named by --prompt-key and --answer-key",
    )


def _alpaca(row: Row) -> list[Message]:
    return [*_alpaca_question(row), _field(row, "output", "assistant")]


def _alpaca_question(row: Row) -> list[Message]:
    messages = []
    history = [] if _absent(row.get("history")) else row["history"]
    if not isinstance(history, list):
        raise _bad_history("the history", history)
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise _bad_history(f"history pair {number}", pair)
        turn = dict(zip(("user", "assistant"), pair, strict=True))
        messages += [_field(turn, role, role, f"history pair {number}") for role in turn]
    keys = [key for key in ("instruction", "input") if not _absent(row.get(key))]
    parts = [_field(row, key, "user").content for key in keys or ["instruction"]]
    user = Message("user", "\n".join(parts))
    return [*messages, user]


def _bad_history(subject: str, value: object) -> _RowError:
    remedy = 'write "history" as a list of [user, assistant] pairs'
    return _RowError("bad_history", f"{subject} is {_show(value)}", remedy)


def _prompt_and_answer(row: Row, prompt_key: str, answer_key: str) -> list[Message]:
    return [*_under(row, prompt_key, "user"), *_under(row, answer_key, "assistant")]


def _under(row: Row, key: str, role: str) -> list[Message]:
    """What stands under a key: a role's text, or messages."""
    value = row[key]
    if isinstance(value, list):
        return _read_messages(value, key, label=f"{printable(key)} message")
    return [_field(row, key, role)]


_SHAPES: _Shapes = {
    "messages": (("messages",), lambda row: _read_messages(row["messages"], "messages")),
    "conversations": (
        ("conversations",),
        lambda row: _read_messages(row["conversations"], "conversations"),
    ),
    "instruction/output": (("instruction", "output"), _alpaca),
    "prompt/completion": (
        ("prompt", "completion"),
        partial(_prompt_and_answer, prompt_key="prompt", answer_key="completion"),
    ),
}


# Rows that only ask.
_QUESTIONS: _Shapes = {
    "instruction": (("instruction",), _alpaca_question),
    "prompt": (("prompt",), partial(_under, key="prompt", role="user")),
}


def _shapes(prompt_key: str | None, answer_key: str | None, questions: bool) -> _Shapes:
    shapes = {**_SHAPES, **_QUESTIONS} if questions else _SHAPES
    if prompt_key is None and answer_key is None:
        return shapes
    if prompt_key is None or answer_key is None:
        raise ValueError("prompt_key and answer_key: one is missing; give both or neither")
    pair = partial(_prompt_and_answer, prompt_key=prompt_key, answer_key=answer_key)
    named: _Shapes = {f"{prompt_key}/{answer_key}": ((prompt_key, answer_key), pair)}
    if questions:
        ask = partial(_under, key=prompt_key, role="user")
        return {**named, prompt_key: ((prompt_key,), ask), **shapes}
    return {**named, **shapes}


# Messages


def _read_messages(items: object, key: str, label: str = "message") -> list[Message]:
    if not isinstance(items, (list, tuple)):
        raise _RowError(
            "bad_messages",
            f'"{printable(key)}" is {_show(items)}',
            "it takes a list of messages",
        )
    if not items:
        raise _RowError(
            "no_messages", f'"{printable(key)}" is an empty list', "give at least one message"
        )
    messages = []
    for item in items:
        try:
            messages.append(_read_message(item))
        except _RowError as fault:
            raise fault.of(f"{label} {len(messages) + 1}") from None
    return messages


def _read_message(item: object) -> Message:
    if isinstance(item, Message):
        _check_role(item.role)
        _check_text(item.content, "content", item.role)
        _check_weight(item.weight)
        return item
    if not isinstance(item, dict):
        raise _RowError(
            "bad_message", f"is {_show(item)}", 'write it as {"role": ..., "content": ...}'
        )
    if not _UNTRAINED.isdisjoint(item):
        _refuse_untrained(item)
    role = item.get("role")
    if role not in ROLES:
        role = _sharegpt_role(item.get("from")) if role is None else _check_role(role)
    key = "value" if item.get("content") is None and item.get("value") is not None else "content"
    content = item.get(key)
    if isinstance(content, list):
        content = _join_parts(content)
    text = _check_text(content, key, role)
    weight = item.get("weight")
    return Message(role, text) if weight is None else Message(role, text, _check_weight(weight))


def _field(row: Row, key: str, role: str, subject: str = "the row") -> Message:
    """The message whose whole content stands under a key of its own."""
    try:
        return Message(role, _check_text(row.get(key), key, role))
    except _RowError as fault:
        raise fault.of(subject) from None


def _added_system(system: str) -> Message:
    try:
        return _read_message(Message("system", system))
    except _RowError as fault:
        raise fault.of("the added system message") from None


def _check_role(role: object) -> str:
    if isinstance(role, str) and role in ROLES:
        return role
    raise _RowError(
        "unknown_role", f"has role {_show(role)}", "use system, user, assistant or tool"
    )


def _sharegpt_role(sender: object) -> str:
    if sender is None:
        raise _RowError("missing_role", 'has no "role"', 'give it "role" and "content"')
    if isinstance(sender, str) and sender in _SHAREGPT_ROLES:
        return _SHAREGPT_ROLES[sender]
    raise _RowError(
        "unknown_role", f"is from {_show(sender)}", f"use {', '.join(sorted(_SHAREGPT_ROLES))}"
    )


def _check_text(text: object, key: str, role: str) -> str:
    if not isinstance(text, str):
        key = printable(key)
        if text is None:
            raise _RowError("missing_content", f'has no "{key}"', f'give it "{key}", a text')
        raise _RowError("bad_content", f'has {_show(text)} for "{key}"', "it takes a text")
    if not text and role != "tool":
        raise _RowError(
            "empty_content", f'has an empty "{printable(key)}"', "fill it in or remove it"
        )
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise _RowError(
                "lone_surrogate",
                f'has half a surrogate pair, {printable(text[error.start])}, in "{printable(key)}"',
                "it stands for no character; write the whole pair or remove it",
            ) from None
    return text


def _join_parts(parts: list[object]) -> str:
    texts = []
    for number, part in enumerate(parts, start=1):
        if not isinstance(part, dict) or part.get("type") != "text":
            found = f"type {_show(part.get('type'))}" if isinstance(part, dict) else _show(part)
            raise _RowError(
                "bad_part",
                f"has {found} as content part {number}",
                'only text is trained: {"type": "text", "text": ...}',
            )
        texts.append(_check_text(part.get("text"), "text", "tool"))  # one part may be empty
    return "".join(texts)


def _check_weight(weight: object) -> float:
    if isinstance(weight, (int, float)) and not isinstance(weight, bool):  # noqa: SIM102
        if weight == 0 or _LEAST_WEIGHT <= weight <= _LARGEST_WEIGHT:
            return float(weight)
    remedy = f"a weight is a number, 0 or {_LEAST_WEIGHT} to {_LARGEST_WEIGHT}"
    raise _RowError("bad_weight", f"has weight {_show(weight)}", remedy)


_UNTRAINED = frozenset(UNTRAINED)


def _refuse_untrained(item: Row, subject: str = "") -> None:
    for key in UNTRAINED:
        if not _absent(item.get(key)):
            raise _RowError(
                "untrained_key",
                f'{subject}has "{key}", which is not trained yet',
                "remove the key where the conversation makes sense without it, or else the row",
            )


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _check_turns(messages: Sequence[Message]) -> None:
    previous = ""
    for number, message in enumerate(messages, start=1):
        role = message.role
        if role == "system" and number > 1:
            raise _RowError(
                "system_not_first",
                f"message {number} has role system",
                "a system message is the first one only",
            )
        if role == "tool" and previous not in ("assistant", "tool"):
            after = f"follows {previous}" if previous else "is the first"
            raise _RowError(
                "tool_out_of_place",
                f"message {number} has role tool and {after}",
                "a tool's message follows an assistant's or another tool's",
            )
        previous = role


def _show(value: object) -> str:
    """Name a value in an error, short and safe: "bot", -1, null, a list, an object."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{printable(value[:40])}{"…" * (len(value) > 40)}"'
    if isinstance(value, (int, float)):
        return str(value) if isinstance(value, float) or abs(value) < 1e12 else "a huge number"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    return "an object" if isinstance(value, dict) else f"a {type(value).__name__}"
