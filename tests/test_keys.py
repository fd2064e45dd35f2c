"""No key is ignored in silence: it changes the conversation, is refused by name, or is counted."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data.conversation import Message, parse_conversation, parse_messages
from minimind.data.errors import DataError
from minimind.data.keys import FLAGS, MISPLACED, REFUSED, KeyCounts, Unread
from minimind.data.masking import encode_conversation
from minimind.tokenizer import Tokenizer
from tests.support.strategies import json_values, texts

Row = dict[str, Any]
USER: Row = {"role": "user", "content": "안녕?"}
ANSWER: Row = {"role": "assistant", "content": "안녕하세요."}
PLAIN = (Message("user", "안녕?"), Message("assistant", "안녕하세요."))
TURNS = [{"role": "system", "content": "짧게."}, USER, ANSWER]
PARTS = {"role": "user", "content": [{"type": "text", "text": "안녕?"}]}

GOOD: dict[str, Any] = {
    "messages": {"messages": TURNS},
    "parts": {"messages": [PARTS, ANSWER]},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "안녕?"}, {"from": "gpt", "value": "네."}]
    },
    "alpaca": {"instruction": "안녕?", "output": "네."},
    "dolly": {"instruction": "안녕?", "response": "네."},
    "prompt/completion": {"prompt": "안녕?", "completion": "네."},
    "message lists": {"prompt": [USER], "completion": [ANSWER]},
    "prompt/response": {"prompt": "안녕?", "response": "네."},
    "question/answer": {"question": "안녕?", "answer": "네."},
    "question/response": {"question": "안녕?", "response": "네."},
    "list": [USER, ANSWER],
    "named": {"q": "안녕?", "a": "네."},
}
MEANT = [
    *REFUSED,
    *MISPLACED,
    *FLAGS,
    *("weight", "system", "system_prompt", "context", "input", "history", "mask", "prefix", "name"),
    *("train_detail", "documents", "messages", "conversations", "prompt", "completion", "response"),
    *("question", "answer", "instruction", "output", "role", "from", "content", "value", "text"),
]


def parse(row: object) -> Any:
    return parse_conversation(row, prompt_key="q", answer_key="a")


def objects(value: Any) -> list[Row]:
    """The row itself if it is an object, its messages, and the parts of their contents."""
    found = [value] if isinstance(value, dict) else []
    for item in value.values() if isinstance(value, dict) else value:
        if isinstance(item, (dict, list)):
            found += objects(item)
    return found


def is_nothing(value: Any) -> bool:
    """Null, an empty text, or made of nothing else; the slow way."""
    if isinstance(value, (dict, list)):
        return all(map(is_nothing, value.values() if isinstance(value, dict) else value))
    return value is None or value == "" or value != value  # a frame's NaN


@settings(max_examples=1500)
@given(data=st.data())
def test_any_key_with_any_value_changes_the_conversation_is_refused_or_is_counted(
    data: st.DataObject,
) -> None:
    good = copy.deepcopy(GOOD[data.draw(st.sampled_from(sorted(GOOD)))])
    before = parse(good)
    place = data.draw(st.sampled_from(objects(good)))
    key = data.draw(st.sampled_from(MEANT) | texts())
    value = data.draw(json_values | st.sampled_from([True, False, 0, 1, "x", "[]", ["x"], {"": 1}]))
    if key in place:
        return
    place[key] = value
    try:
        after = parse(good)
    except DataError:
        return
    counted = [unread.key for unread in after.unread] + list(after.read_as)
    read = [(found.messages, found.shape, found.tools) for found in (before, after)]
    changed = read[0] != read[1]
    if changed or is_nothing(value):
        return
    if not counted:  # it says what is so without it
        own = place.get("role") or place.get("from")
        read_flags = FLAGS if own in (None, "assistant", "gpt") or value is False else ()
        assert key in ("weight", *read_flags)
        assert value == 1 or own in ("user", "human", "system")
        return
    assert key in counted or f"empty {key} as none" in counted or "two equal" in counted[-1]


@pytest.mark.parametrize("name", [name for name in GOOD if name != "list"])
def test_what_says_nothing_counts_as_missing(name: str) -> None:
    for nothing in (None, "", [], {}, [None, ""], {"a": [{}]}):
        row = copy.deepcopy(GOOD[name])
        for place in objects(row):
            place |= {
                key: nothing for key in (*REFUSED, *MISPLACED, "mood", "train") if key not in place
            }
        assert parse(row) == parse(GOOD[name])


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_means_something_untrained_is_refused_by_name(key: str) -> None:
    values: tuple[Any, ...] = ("x", ["x"], {"x": 1}, 0, False)
    for value in (True, False) if key in ("label", "kto_tag") else values:
        with pytest.raises(DataError, match=f'the row has "{key}", which .*--ignore-keys {key}'):
            parse({"messages": [USER, ANSWER], key: value})
        with pytest.raises(DataError, match=f'message 2 has "{key}", which .*or else the row'):
            parse({"messages": [USER, {**ANSWER, key: value}]})
        with pytest.raises(DataError, match=f'has "{key}"'):  # told before the unknown shape
            parse({"text": "x", key: value})
        ignoring = parse_conversation(
            {"messages": [USER, {**ANSWER, key: value}], key: value}, ignore_keys=[key]
        )
        assert (ignoring.messages, ignoring.unread) == (PLAIN, ())


@pytest.mark.parametrize("key", ["label", "kto_tag"])
def test_a_label_that_is_no_boolean_is_only_counted(key: str) -> None:
    for value in (0, 7, "closed_qa", [True]):
        found = parse({"prompt": "a", "completion": "b", key: value})
        assert [unread.key for unread in found.unread] == [key]


def test_a_key_that_was_named_is_read_whatever_it_means() -> None:
    row = {"prompt": "a", "chosen": "b", "score": 1}
    found = parse_conversation(row, prompt_key="prompt", answer_key="chosen")
    assert [message.content for message in found.messages] == ["a", "b"]
    assert [unread.key for unread in found.unread] == ["score"]


def test_the_text_keys_that_named_keys_leave_out_are_named() -> None:
    row = {"instruction": "When?", "context": "In 1932.", "input": "x", "output": "1932."}
    found = parse_conversation(row, prompt_key="instruction", answer_key="output")
    assert [message.content for message in found.messages] == ["When?", "1932."]
    assert [unread.key for unread in found.unread] == ["context", "input"]


# Weights


@pytest.mark.parametrize("flag", FLAGS)
def test_a_flag_is_weight_1_or_0_and_nothing_else(flag: str) -> None:
    for value in (True, False):
        (_, answer) = parse({"messages": [USER, {**ANSWER, flag: value}]}).messages
        assert answer.weight == float(value)
        (_, answer) = parse({"messages": [USER, {**ANSWER, flag: value, "weight": 0.5}]}).messages
        assert answer.weight == 0.5 * value
        (_, answer) = parse({"messages": [USER, ANSWER], flag: value}).messages
        assert answer.weight == float(value)
    for wrong in (0, 1, 0.3, "false", [False], {"a": True}):
        with pytest.raises(DataError, match=f'message 2 has .* for "{flag}"; it takes true'):
            parse({"messages": [USER, {**ANSWER, flag: wrong}]})
        row = parse({"messages": [USER, ANSWER], flag: wrong})  # a row's is often something else
        assert (row.messages, [unread.key for unread in row.unread]) == (PLAIN, [flag])


def test_a_flag_that_asks_to_train_a_question_is_told() -> None:
    found = parse({"messages": [{**USER, "train": True}, {**ANSWER, "train": True}]})
    assert found.unread == (Unread("train", True, True),)
    found = parse({"messages": [{**USER, "weight": 2}, ANSWER]})
    assert found.unread == (Unread("weight", True, False),)
    for as_it_is in ({"train": False}, {"weight": 0}, {"weight": 1}):
        assert parse({"messages": [{**USER, **as_it_is}, ANSWER]}).unread == ()


def test_the_weight_of_a_row_multiplies_those_of_its_messages() -> None:
    turns = [USER, {**ANSWER, "weight": 0.5}, USER, ANSWER, USER, {**ANSWER, "train": False}]
    for weight in (0, 0.25, 1, 4):
        for row in ({"messages": turns}, {"prompt": turns[:1], "completion": turns[1:]}):
            found = parse({**row, "weight": weight}).messages
            assert [m.weight for m in found[1::2]] == [0.5 * weight, weight, 0]
    row = {"prompt": "a", "completion": "b"}
    assert parse({**row, "weight": 0}).messages[1].weight == 0
    for wrong in ("heavy", -1, True, 1e9):
        with pytest.raises(DataError, match=r"the row has weight .*; a weight is a number, 0 or"):
            parse({**row, "weight": wrong})
    with pytest.raises(DataError, match=r"the row has weight 1e-06; a weight is a number"):
        parse({"messages": [USER, {**ANSWER, "weight": 0.001}], "weight": 0.001})


# What is read as what


READ_AS = [
    ({"messages": [{"role": "developer", "content": "S"}, USER, ANSWER]}, "developer as system"),
    ({"messages": [USER, {"role": "model", "content": "안녕하세요."}]}, "model as assistant"),
    ({"messages": [{"role": "User", "content": "안녕?"}, ANSWER]}, "User as user"),
    ({"conversations": [USER, {"from": "GPT", "value": "안녕하세요."}]}, "GPT as assistant"),
    (
        {"messages": [{"role": "system", "content": ""}, USER, ANSWER]},
        "empty system message as none",
    ),
    (
        {"messages": [{"role": "system", "content": [{"type": "text", "text": ""}]}, USER, ANSWER]},
        "empty system message as none",
    ),
    (
        {"messages": [*[{"role": "system", "content": "S"}] * 3, USER, ANSWER]},
        "two equal system messages as one",
    ),
    (
        {"system": "S", "messages": [{"role": "system", "content": "S"}, USER, ANSWER]},
        "two equal system messages as one",
    ),
    ({"system_prompt": "S", "messages": [USER, ANSWER]}, "system_prompt as system"),
    ({"messages": [USER, ANSWER], "tools": "[]"}, "empty tools as none"),
    ({"messages": [USER, {**ANSWER, "tool_calls": " [ ] "}]}, "empty tool_calls as none"),
    ({"messages": [USER, {**ANSWER, "reasoning": "\n"}]}, "empty reasoning as none"),
    ({"instruction": "안녕?", "context": "C", "response": "안녕하세요."}, "context as input"),
]


@pytest.mark.parametrize(("row", "name"), READ_AS)
def test_what_is_read_as_something_else_is_told_by_name(row: Row, name: str) -> None:
    found = parse_conversation(row)
    assert found.read_as == (name,)
    assert found.unread == ()
    contents = [message.content for message in found.messages]
    system = ["S"] * any(value in str(row) for value in ("'S'",))
    question = ["안녕?\nC" if "context" in row else "안녕?"]
    assert contents == [*system, *question, "안녕하세요."]
    assert [message.role for message in found.messages][-2:] == ["user", "assistant"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"system": "A", "system_prompt": "B"},
            'has "system_prompt" beside a system message',
        ),
        ({"system_prompt": 3}, 'the row has 3 for "system_prompt"; it takes a text'),
    ],
)
def test_two_system_texts_that_differ_are_refused(row: Row, message: str) -> None:
    with pytest.raises(DataError, match=message):
        parse({**row, "prompt": "a", "completion": "b"})


def test_a_place_counts_messages_as_they_stand_in_the_file() -> None:
    empty = {"role": "system", "content": ""}
    with pytest.raises(DataError, match="message 3 has role tool and follows user"):
        parse({"messages": [empty, USER, {"role": "tool", "content": "x"}]})
    with pytest.raises(DataError, match="its only message is an empty system message; give at le"):
        parse({"messages": [empty]})


# Counting


def test_keys_are_counted_in_one_line() -> None:
    counts = KeyCounts()
    for number in range(1000):
        row = {"messages": [USER, ANSWER], "id": number, "source": "web"}
        if number < 6:
            row["messages"] = [{**USER, "mood": "sad"}, {**ANSWER, "mood": "glad"}]
        found = parse_conversation(row)
        counts.count_keys(len(found.messages), found.unread, found.read_as)
    counts.count_keys(3, (), ("developer as system",))
    assert counts.describe() == [
        "not read: id (1,000 rows), source (1,000), mood (12 messages)",
        "read: developer as system (1 row)",
    ]
    assert counts.unread_texts == {"mood": 12}
    assert counts.messages == 2003


def test_only_text_and_booleans_in_a_message_say_something_to_learn() -> None:
    values = {"a": "x", "b": False, "c": [{"d": True}], "e": 3, "f": [1.5], "g": {"h": None}}
    found = parse_conversation({"messages": [USER, {**ANSWER, **values}]})
    assert {unread.key: unread.texts for unread in found.unread} == {
        "a": True,
        "b": True,
        "c": True,
        "e": False,
        "f": False,
    }


def test_keys_of_parts_are_counted_as_their_messages_once() -> None:
    part = {"type": "text", "text": "안녕?", "cache": 1}
    row = {"messages": [{"role": "user", "content": [part, {**part, "cache": "x"}]}, ANSWER]}
    assert parse_conversation(row).unread == (Unread("cache", True, True),)
    assert parse_conversation(row, ignore_keys=["cache"]).unread == ()


def test_any_number_of_names_takes_bounded_memory_and_a_short_line() -> None:
    counts = KeyCounts()
    for number in range(3000):
        counts.count_keys(1, [Unread(f"key-{number}" + "x" * 50, False, False)], ())
    assert counts.unread_of_rows.total() == 3000
    assert counts.unread_of_rows["other keys"] == 2000
    (line,) = counts.describe()
    assert line.startswith("not read: other keys (2,000 rows), key-0xxx")
    assert line.endswith("… (1), 981 more")
    assert len(line) < 1200


def test_a_name_cannot_disturb_a_terminal() -> None:
    counts = KeyCounts()
    counts.count_keys(1, [Unread("\x1b]52;\u202e", True, False)], ())
    assert counts.describe() == [r"not read: \x1b]52;\u202e (1 message)"]


def test_keys_to_ignore_are_as_good_as_absent_everywhere() -> None:
    row = {"messages": [{**USER, "mood": "x"}, {**ANSWER, "weight": 0}], "mood": "y", "id": 1}
    found = parse_conversation(row, ignore_keys=("mood", "weight"))
    assert found.messages == PLAIN
    assert [unread.key for unread in found.unread] == ["id"]


def test_a_value_that_is_nested_deeply_is_counted() -> None:
    deep = json.loads("[" * 900 + "7" + "]" * 900)
    for _ in range(10):
        deep = [[deep]] * 1
    row = {"messages": [USER, {**ANSWER, "deep": deep}], "deep": deep}
    assert [unread.key for unread in parse_conversation(row, text="x").unread] == ["deep"] * 2


def test_python_is_warned_where_no_report_tells_it(tokenizer: Tokenizer) -> None:
    with pytest.warns(UserWarning, match=r"not read: mood \(1 message\)"):
        parse_messages([USER, {**ANSWER, "mood": "x"}])
    with pytest.warns(UserWarning, match=r"not read: id \(1 row\), mood \(1 message\)"):
        encode_conversation({"messages": [USER, {**ANSWER, "mood": "x"}], "id": 7}, tokenizer)
    encode_conversation(parse_conversation({"messages": [USER, ANSWER], "id": 7}), tokenizer)
