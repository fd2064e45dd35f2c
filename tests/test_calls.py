"""Every spelling of tools, calls, results and reasoning is read as the same data, or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from minimind.clean.rules import check_conversation
from minimind.data.conversation import Call, Message, parse_conversation, parse_messages
from minimind.data.errors import DataError
from minimind.evaluate.questions import Question
from tests.support.strategies import calls

Row = dict[str, Any]

TOOL = {"type": "function", "function": {"name": "weather"}}
USER = {"role": "user", "content": "Busan?"}
BUSAN = Call("weather", {"city": "Busan"})
FLAT = {"name": "weather", "arguments": {"city": "Busan"}}
NESTED = {"id": "c1", "type": "function", "function": FLAT}
SPELLED = {**FLAT, "arguments": '{"city": "Busan"}'}
BLOCK = f"<tool_call>\n{json.dumps(FLAT)}\n</tool_call>"


def messages(*turns: Row, **row: object) -> tuple[Message, ...]:
    return parse_conversation({"messages": [USER, *turns], **row}).messages


def says(content: object = "", **more: object) -> Row:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize(
    "turn",
    [
        says(tool_calls=[NESTED]),
        says(None, tool_calls=[FLAT]),
        says(tool_calls=[SPELLED]),
        says(tool_calls=[{"type": "function", "function": SPELLED}]),
        says(tool_calls=json.dumps([NESTED])),
        says(tool_calls=json.dumps(FLAT)),
        says(tool_calls=[json.dumps(FLAT)]),
        says(function_call=SPELLED),
        says(function_call=json.dumps(FLAT)),
        {"role": "assistant", "tool_calls": [NESTED]},
        {"from": "function_call", "value": json.dumps(FLAT)},
        {"from": "function_call", "value": json.dumps([SPELLED])},
        says(BLOCK),
        says(f"{BLOCK}\n"),
        says(f"<tool_call>{json.dumps(SPELLED)}</tool_call>"),
        {"from": "gpt", "value": f"\n{BLOCK}\n\n"},
    ],
    ids=str,
)
def test_each_spelling_of_a_call_is_the_same_call(turn: Row) -> None:
    found = parse_conversation({"conversations": [USER, turn], "tools": [TOOL]})
    assert found.messages[1] == Message("assistant", "", calls=(BUSAN,))
    assert (found.unread, found.read_as) == ((), ())
    assert found.tools == (TOOL,)


@pytest.mark.parametrize(
    "row",
    [
        {"tools": [TOOL]},
        {"functions": [TOOL]},
        {"tools": json.dumps([TOOL])},
        {"tools": [json.dumps(TOOL)]},
        {"tools": [TOOL], "functions": [TOOL]},
    ],
    ids=str,
)
def test_each_spelling_of_tools_is_the_same_list(row: Row) -> None:
    system = {"role": "system", "content": "x"}
    turns = [system, USER, says("No.")]
    assert parse_conversation({"messages": turns, **row}).tools == (TOOL,)
    on_system = [{**system, **row}, USER, says("No.")]
    assert parse_conversation({"messages": on_system}).tools == (TOOL,)
    assert parse_conversation(on_system).tools == (TOOL,)


def test_keys_of_tools_keep_their_order() -> None:
    tool = {"z": 1, "name": "f", "a": {"y": 2, "b": 3}}
    (found,) = parse_conversation({"messages": [USER, says("x")], "tools": [tool]}).tools
    assert json.dumps(found) == json.dumps(tool)


def test_xlams_rows_are_read() -> None:
    row = {"query": "Busan?", "tools": json.dumps([TOOL]), "answers": json.dumps([FLAT])}
    found = parse_conversation(row)
    assert found.messages == (Message("user", "Busan?"), Message("assistant", "", calls=(BUSAN,)))
    assert (found.tools, found.shape) == ((TOOL,), "query/answers")
    with pytest.raises(DataError, match='the row has no call in "answers"; fill it in or remove'):
        parse_conversation({**row, "answers": [{}][:0] or "[{}][:0]".replace("{}", "")[:2]})
    with pytest.raises(DataError, match="the row has null as the name of call 1"):
        parse_conversation({**row, "answers": [{"x": 1}]})


def test_hermes_wrappers_are_taken_off_and_told() -> None:
    system = 'Call tools. <tools>[{"name": "weather"}]</tools>'
    wrapped = "<tool_response>\n{}\n</tool_response>"
    turns = [
        {"from": "system", "value": system},
        {"from": "human", "value": "Busan?"},
        {"from": "gpt", "value": f"{BLOCK}\n{BLOCK}"},
        {"from": "tool", "value": f"{wrapped.format(1)}\n{wrapped.format(2)}\n"},
        {"from": "gpt", "value": "Clear."},
    ]
    found = parse_conversation({"conversations": turns, "tools": '[{"name": "weather"}]'})
    assert found.messages[2].calls == (BUSAN, BUSAN)
    assert found.messages[3:5] == (Message("tool", "1"), Message("tool", "2"))
    assert found.messages[0].content == system
    assert found.read_as == (
        "<tool_response> around a result as none",
        "a system text that lists tools as it is",
    )


@pytest.mark.parametrize(
    ("ids", "order"),
    [(("b", "a"), "21"), (("a", "b"), "12"), (("b", None), "21"), ((None, None), "12")],
)
def test_results_go_in_the_order_of_their_calls(ids: tuple[str | None, ...], order: str) -> None:
    asked = says(tool_calls=[{**NESTED, "id": "a"}, {"id": "b", "name": "add", "arguments": {}}])
    results = [
        {"role": "tool", "content": str(number), "tool_call_id": id}
        for number, id in enumerate(ids, start=1)
    ]
    found = messages(asked, *results, says("x"))
    assert "".join(message.content for message in found[2:4]) == order


def test_a_result_is_matched_by_its_name_where_it_has_no_id() -> None:
    asked = says(tool_calls=[FLAT, {"name": "add", "arguments": {}}])
    results = [{"role": "tool", "content": name, "name": name} for name in ("add", "weather")]
    assert [m.content for m in messages(asked, *results)[2:]] == ["weather", "add"]


@pytest.mark.parametrize(
    "turn",
    [
        says("4", reasoning_content="\nAdd.\n"),
        says("4", reasoning="Add."),
        says("\n\n4", thinking="Add."),
        says("<think>\nAdd.\n</think>\n\n4"),
        says("\n<think>Add.</think>4"),
    ],
    ids=str,
)
def test_each_spelling_of_reasoning_is_the_same(turn: Row) -> None:
    (_, answer) = messages(turn)
    assert (answer.reasoning, answer.content.lstrip("\n")) == ("Add.", "4")


def test_a_tag_elsewhere_stays_text_and_is_told() -> None:
    for text in (
        "So <think>x</think> y",
        "x</think> y",
        f"{BLOCK} and then",
        "<tool_call>\n{not json}\n</tool_call>",
        '<tool_call>{"name": "f"}</tool_call>',
        "<tool_call>[]</tool_call>",
        "</tool_call>",
    ):
        found = parse_conversation({"messages": [USER, says(text)]})
        assert found.messages[1] == Message("assistant", text)
        assert found.read_as
        assert all(note.endswith("in a text as text") for note in found.read_as)
    (_, mixed) = messages(says(f"<tool_call>x</tool_call>\n{BLOCK}"))
    assert mixed == Message("assistant", "<tool_call>x</tool_call>", calls=(BUSAN,))


def test_an_empty_block_is_no_reasoning_and_told() -> None:
    found = parse_conversation({"messages": [USER, says("<think>\n\n</think>\n\n4")]})
    assert found.messages[1] == Message("assistant", "4")
    assert found.read_as == ("empty <think></think> as no reasoning",)


def test_a_call_of_a_tool_that_is_not_offered_is_told() -> None:
    for tools in ([], [{"name": "other"}]):
        row = {"messages": [USER, says(tool_calls=[FLAT])], "tools": tools}
        assert parse_conversation(row).read_as == ("calls of tools that aren't offered",)


def test_what_is_in_a_message_of_python_is_data_already() -> None:
    text = f"<think>x {BLOCK}"
    given_messages = (Message("user", "x"), Message("assistant", text, 1.0, "<think>", (BUSAN,)))
    assert parse_messages(given_messages) == given_messages


@given(call=calls)
def test_a_call_written_into_text_is_read_back(call: Call) -> None:
    (_, answer) = messages(says(f"가\n<tool_call>\n{call.text}\n</tool_call>"))
    assert answer == Message("assistant", "가", calls=(call,))
    assert json.dumps(dict(answer.calls[0].arguments)) == json.dumps(dict(call.arguments))


def test_ignore_keys_leaves_calls_and_tools_as_they_are() -> None:
    row = {"messages": [USER, says(tool_calls=[FLAT], name="x")], "tools": [TOOL], "name": 1}
    found = parse_conversation(row, ignore_keys=["name", "city"])
    assert (found.messages[1].calls, found.tools) == ((BUSAN,), (TOOL,))


def result(**more: object) -> Row:
    return {"role": "tool", "content": "1", **more}


ASKED = says(tool_calls=[NESTED])
BAD = [
    ([says(tool_calls=3)], {}, 'message 2 has 3 for "tool_calls"; write a call as'),
    ([says(tool_calls=[7])], {}, 'message 2 has 7 as call 1 of "tool_calls"'),
    ([says(tool_calls="{")], {}, 'has text in the "tool_calls" that isn\'t JSON: '),
    ([says(tool_calls=[{"arguments": {"x": 1}}])], {}, "has null as the name of call 1"),
    ([says(tool_calls=[{"name": "f"}])], {}, "has null as the arguments of call 1.* {} for none"),
    ([says(tool_calls=[{**FLAT, "arguments": "[1]"}])], {}, "has a list of 1 as the arguments"),
    ([says(tool_calls=[{**FLAT, "arguments": "x"}])], {}, "arguments of call 1 .* that isn't JSON"),
    ([says(tool_calls=[{**FLAT, "arguments": {"x": "\ud800"}}])], {}, "half a surrogate pair in"),
    ([says(tool_calls=[NESTED, NESTED])], {}, 'two calls with the id "c1"; give each call its own'),
    ([says(tool_calls=[FLAT], function_call=FLAT)], {}, 'has "tool_calls" and "function_call"'),
    ([says(BLOCK, tool_calls=[FLAT])], {}, "has calls twice, under a key and in <tool_call> tags"),
    ([{**ASKED, "role": "function_call"}], {}, "has its calls twice; keep one of them"),
    ([says("x", reasoning="a", thinking="b")], {}, 'reasoning twice, in "reasoning" and "thinking'),
    ([says("<think>a</think>b", reasoning="a")], {}, "twice, under a key and in <think> tags"),
    ([says("<think>a")], {}, "message 2 begins with <think> and has no </think>; close it"),
    ([says("x", reasoning=["a"])], {}, 'has a list of 1 for "reasoning"; it takes a text'),
    ([says("", reasoning="a")], {}, 'has an empty "content"'),
    ([{**USER, "reasoning": "a"}], {}, 'message 2 has "reasoning", which is read in an assistant'),
    ([{**USER, "tool_calls": [FLAT]}], {}, 'message 2 has "tool_calls", which is read in an assi'),
    ([{**USER, "tools": [TOOL]}], {}, 'has "tools", which is read in a row or its system message'),
    ([ASKED, result(tool_call_id="x")], {}, 'message 3 has the tool_call_id "x", which names no'),
    (
        [ASKED, result(tool_call_id="c1"), result(tool_call_id="c1")],
        {},
        "message 4 .* names no",
    ),
    ([says("x"), result(tool_call_id="c1")], {}, "message 3 has the tool_call_id .* names no call"),
    ([ASKED, result(name="add")], {}, "has the name \"add\", which isn't its call's"),
    (
        [ASKED, result(name="add", tool_call_id="c1")],
        {},
        "the name \"add\", which isn't its call's",
    ),
    ([ASKED, result(name=["x"])], {}, "has the name a list of 1; it takes a text"),
    ([says("x")], {"tools": 3}, 'the row has 3 for "tools"; give a list such as'),
    ([says("x")], {"tools": "x"}, 'the row has text in the "tools" that isn\'t JSON'),
    ([says("x")], {"tools": ["{}"]}, 'has an object without a name as tool 1 of "tools"'),
    ([says("x")], {"tools": [{"name": "\ud800"}]}, "half a surrogate pair in tool 1 of"),
    ([says("x")], {"tools": [TOOL], "functions": [FLAT]}, '"functions" beside other tools; keep'),
    ([says("x")], {"reasoning": "y"}, 'the row has "reasoning", which is read in an assistant'),
]


@pytest.mark.parametrize(("turns", "row", "match"), BAD, ids=[match for _, _, match in BAD])
def test_what_cannot_be_read_is_refused_with_its_place(
    turns: list[Row], row: Row, match: str
) -> None:
    with pytest.raises(DataError, match=match):
        messages(*turns, **row)


def test_values_that_json_cannot_write_are_refused() -> None:
    for value in (float("nan"), {1, 2}):
        with pytest.raises(DataError, match=r"what JSON can't write in call 1 .* use texts"):
            messages(says(tool_calls=[{"name": "f", "arguments": {"x": value}}]))


def test_only_an_assistants_message_reasons_and_calls() -> None:
    for message in (Message("user", "x", reasoning="y"), Message("tool", "x", calls=(BUSAN,))):
        with pytest.raises(DataError, match="reasoning or calls; only an assistant's message"):
            parse_messages([message])


def test_a_turn_of_calls_alone_is_no_empty_answer() -> None:
    row = {"messages": [USER, says(tool_calls=[FLAT])], "tools": [TOOL]}
    assert check_conversation(parse_conversation(row), ["empty_answer", "echo"]) == []
    assert Question(parse_conversation(row)).expected is None
