"""Read tools, calls, results and reasoning: from keys of their own, JSON strings and text.

The errors raised here have no place yet. What they say begins with a verb.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minimind.data.errors import DataError, printable, show
from minimind.data.keys import JsonObject, Notes, Unread, check_keys, is_nothing, says_something
from minimind.data.strict_json import JsonText
from minimind.tokenizer.vocabulary import (
    CALL,
    END_CALL,
    END_RESULT,
    END_THINK,
    RESULT,
    TAGS,
    THINK,
)

REASONING = ("reasoning_content", "reasoning", "thinking")
CALLS = ("tool_calls", "function_call")
TOOLS = ("tools", "functions")
_READ_OF_CALL = frozenset({"id", "type", "index", "function", "name", "arguments"})
_READ_OF_FUNCTION = frozenset({"name", "arguments"})
_CALL_REMEDY = 'write a call as {"name": ..., "arguments": {...}}'
_TOOLS_REMEDY = 'give a list such as [{"type": "function", "function": {"name": ..., ...}}]'
NOT_OFFERED = "calls of tools that aren't offered"
LISTED = "a system text that lists tools as it is"
WRAPPED = "<tool_response> around a result as none"


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool.

    Attributes:
        name: the tool's.
        arguments: by name, JSON values in their order.
    """

    name: str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """As it is trained and served."""
        return f'{{"name": {dumps(self.name)}, "arguments": {dumps(self.arguments)}}}'


def dumps(value: object) -> str:
    """JSON as templates write it."""
    return json.dumps(value, ensure_ascii=False)


def lists_tools(system: str) -> bool:
    """Whether a system message has a list of tools in its text."""
    return "</tools>" in system.partition("<tools>")[2]


def read_tools(value: object, key: str) -> list[JsonObject]:
    """The tools under a key: a list of objects, or JSON of one."""
    tools = _parsed(value, key) if isinstance(value, str) else value
    if not isinstance(tools, list):
        raise DataError("bad_tools", f'has {show(tools)} for "{printable(key)}"', _TOOLS_REMEDY)
    tools = [_parsed(tool, key) if isinstance(tool, str) else tool for tool in tools]
    read: list[JsonObject] = []
    for number, tool in enumerate(tools, start=1):
        if not isinstance(tool, dict) or name_of(tool) is None:
            fact = f'has {show(tool)} without a name as tool {number} of "{printable(key)}"'
            raise DataError("bad_tools", fact, _TOOLS_REMEDY)
        _check_json(tool, f'tool {number} of "{printable(key)}"')
        read.append(tool)
    return read


def name_of(tool: Mapping[str, Any]) -> str | None:
    inner = tool.get("function")
    name = inner.get("name") if isinstance(inner, dict) else tool.get("name")
    return name if isinstance(name, str) and name else None


def tools_of(item: JsonObject, notes: Notes, subject: str = "") -> None:
    """Note the tools of a row or of its system message: one list, wherever it stands."""
    for key in TOOLS:
        if not is_given(item, key, notes):
            continue
        try:
            tools = read_tools(item[key], key)
            if tools and notes.tools and tools != notes.tools:
                fact = f'has "{key}" beside other tools'
                raise DataError("two_tools", fact, "keep one list of tools")
        except DataError as error:
            error.fact = f"{subject}{error.fact}"
            raise
        notes.tools = tools or notes.tools


def is_given(item: JsonObject, key: str, notes: Notes) -> bool:
    """Whether a key says something; text such as "[]" is told to be nothing."""
    value = item.get(key)
    if value is None or not says_something(value):
        return False
    if is_nothing(value):
        notes.read_as[f"empty {key} as none"] = None
        return False
    return True


def read_calls(value: object, key: str, notes: Notes) -> list[tuple[Call, str | None]]:
    """Calls, each with its id: a list, one object, or JSON of them."""
    calls = _parsed(value, key) if isinstance(value, str) else value
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list):
        raise DataError("bad_call", f'has {show(calls)} for "{printable(key)}"', _CALL_REMEDY)
    read = []
    for number, call in enumerate(calls, start=1):
        where = f'call {number} of "{printable(key)}"'
        call = _parsed(call, key) if isinstance(call, str) else call
        if not isinstance(call, dict):
            raise DataError("bad_call", f"has {show(call)} as {where}", _CALL_REMEDY)
        unread = check_keys(call, _READ_OF_CALL, notes)
        function = call.get("function")
        if isinstance(function, dict):
            unread += check_keys(function, _READ_OF_FUNCTION, notes)
        notes.unread += [Unread(name, True, texts) for name, texts in unread]
        id = call.get("id")
        read.append((_read_call(function or call, where), id if isinstance(id, str) else None))
    ids = [id for _, id in read if id]
    if len(set(ids)) < len(ids):
        twice = next(id for id in ids if ids.count(id) > 1)
        fact = f"has two calls with the id {show(twice)}"
        raise DataError("bad_call", fact, "give each call its own id")
    return read


def _read_call(call: object, where: str) -> Call:
    name = call.get("name") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(name, str) or not name:
        raise DataError("bad_call", f"has {show(name)} as the name of {where}", _CALL_REMEDY)
    arguments = call.get("arguments")
    if isinstance(arguments, str):
        arguments = _parsed(arguments, f"arguments of {where}")
    if not isinstance(arguments, dict):
        fact = f"has {show(arguments)} as the arguments of {where}"
        raise DataError("bad_arguments", fact, "arguments are a JSON object, {} for none")
    _check_json([name, arguments], where)
    return Call(name, arguments)


def _parsed(text: str, key: str) -> object:
    try:
        json_text = JsonText(text, "", 0)
        value, end = json_text.value(json_text.skip_space(0))
        json_text.expect_end(end, "value")
    except DataError as error:
        name = key if "of call" in key else f'"{printable(key)}"'
        fact = f"has text in the {name} that isn't JSON: {error.fact}"
        raise DataError("bad_json_string", fact, error.remedy) from None
    return value


def _check_json(value: object, where: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        fact = f"has half a surrogate pair in {where}"
        remedy = "it is half a character; write both halves or remove it"
        raise DataError("lone_surrogate", fact, remedy) from None
    except (TypeError, ValueError, RecursionError) as error:
        fact = f"has what JSON can't write in {where} ({error})"
        remedy = "use texts, numbers, booleans, null, lists, objects"
        raise DataError("not_json", fact, remedy) from None


# In text


def take_reasoning(text: str) -> tuple[str | None, str]:
    """Split the leading block of reasoning from an answer; None where there is none."""
    start = text.lstrip()
    if not start.startswith(THINK):
        return None, text
    reasoning, closed, answer = start.removeprefix(THINK).partition(END_THINK)
    if not closed:
        fact = f"begins with {THINK} and has no {END_THINK}"
        raise DataError("open_reasoning", fact, "close it before the answer, or remove it")
    return reasoning.strip("\n"), answer.lstrip("\n")


def take_calls(text: str) -> tuple[list[Call], str]:
    """Split the calls at an answer's end from it: whole blocks of well-formed calls."""
    calls: list[Call] = []
    rest = text
    while (end := rest.rstrip()).endswith(END_CALL):
        before, opened, inner = end.removesuffix(END_CALL).rpartition(CALL)
        try:
            value = _parsed(inner, "text") if opened else None
            if not isinstance(value, dict) or not value.keys() <= _READ_OF_FUNCTION:
                break
            calls.insert(0, _read_call(value, "the text"))
        except DataError:
            break
        rest = before.rstrip()
    return calls, rest


def take_results(text: str) -> list[str]:
    """The results in a tool's text that is made of whole <tool_response> blocks; else none."""
    results = []
    rest = text.strip()
    while rest:
        inner, closed, after = rest.removeprefix(RESULT).partition(END_RESULT)
        if not rest.startswith(RESULT) or not closed or RESULT in inner:
            return []
        results.append(inner.removeprefix("\n").removesuffix("\n"))
        rest = after.lstrip()
    return results


def tell_tags(text: str, notes: Notes) -> None:
    if "think>" in text or "<tool_" in text or "</tool_" in text:
        for tag in TAGS:
            if tag in text:
                notes.read_as[f"{tag} in a text as text"] = None


# Results


@dataclass(slots=True)
class Results:
    """The calls of an assistant's message, and the results that follow it."""

    calls: Sequence[tuple[Call, str | None]] = ()
    ranks: list[int] = field(default_factory=list)  # of the results so far, in order

    def place(self, id: object, name: object) -> int:
        """How many of the results so far go before the next one: those of earlier calls.

        Raises:
            DataError: its id or name is of none of the calls, or its call has a result.
        """
        rank = self._rank(id, name)
        at = bisect_right(self.ranks, rank)
        self.ranks.insert(at, rank)
        return at

    def _rank(self, id: object, name: object) -> int:
        left = [rank for rank in range(len(self.calls)) if rank not in self.ranks]
        remedy = "a result names a call of the assistant's message before it, each call once"
        if id:
            ranks = [rank for rank in left if self.calls[rank][1] == id]
            if not ranks:
                fact = f"has the tool_call_id {show(id)}, which names no call without a result"
                raise DataError("unknown_call", fact, remedy)
        elif name and self.calls:
            ranks = [rank for rank in left if self.calls[rank][0].name == name]
        else:
            ranks = left
        if name and self.calls and (not ranks or self.calls[ranks[0]][0].name != name):
            fact = f"has the name {show(name)}, which isn't its call's"
            raise DataError("unknown_call", fact, remedy)
        return ranks[0] if ranks else len(self.calls) + len(self.ranks)
