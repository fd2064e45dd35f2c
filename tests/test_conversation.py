from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.conversation import (
    ROLES,
    Conversation,
    Message,
    irregularities,
    parse_conversation,
    parse_messages,
)
from minimind.data.errors import DataError, excerpt, printable
from minimind.data.keys import REFUSED
from tests.support.oracle import is_safe_line
from tests.support.strategies import conversations, messages, spells_no_tag, texts

USER = {"role": "user", "content": "안녕?"}
ANSWER = {"role": "assistant", "content": "안녕하세요."}
PLAIN = (Message("user", "안녕?"), Message("assistant", "안녕하세요."))


def turns(*roles: str) -> list[dict[str, object]]:
    return [{"role": role, "content": f"{number}번"} for number, role in enumerate(roles)]


# Shapes


@pytest.mark.parametrize(
    ("row", "shape"),
    [
        ({"messages": [USER, ANSWER]}, "messages"),
        ({"conversations": [USER, ANSWER]}, "conversations"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "안녕?"},
                    {"from": "gpt", "value": "안녕하세요."},
                ]
            },
            "conversations",
        ),
        ({"instruction": "안녕?", "output": "안녕하세요."}, "instruction/output"),
        ({"prompt": "안녕?", "completion": "안녕하세요."}, "prompt/completion"),
        ({"prompt": [USER], "completion": [ANSWER]}, "prompt/completion"),
        ({"prompt": [USER], "completion": "안녕하세요."}, "prompt/completion"),
    ],
)
def test_each_shape_says_the_same_conversation(row: dict[str, object], shape: str) -> None:
    assert parse_conversation(row, path="a.jsonl", line=7) == Conversation(
        PLAIN, shape, "a.jsonl", 7
    )


@pytest.mark.parametrize(
    ("row", "user"),
    [
        ({"instruction": "Translate:", "input": "물"}, "Translate:\n물"),
        ({"instruction": "Translate:", "input": ""}, "Translate:"),
        ({"instruction": "Translate:", "input": None}, "Translate:"),
        ({"instruction": "", "input": "물"}, "물"),
        ({"instruction": "Translate: ", "input": " 물\n"}, "Translate: \n 물\n"),
    ],
)
def test_alpaca_input_stands_below_the_instruction(row: dict[str, object], user: str) -> None:
    assert parse_conversation({**row, "output": "water"}).messages == (
        Message("user", user),
        Message("assistant", "water"),
    )


def test_alpaca_history_and_system_come_before_the_instruction_in_their_order() -> None:
    row = {
        "instruction": "E",
        "output": "F",
        "system": "S",
        "history": [["A", "B"], ["C", "D"]],
    }
    found = [(message.role, message.content) for message in parse_conversation(row).messages]
    assert found == [
        ("system", "S"),
        *(("user", "A"), ("assistant", "B"), ("user", "C"), ("assistant", "D")),
        *(("user", "E"), ("assistant", "F")),
    ]


def test_sharegpt_names_become_our_roles() -> None:
    senders = ["system", "human", "gpt", "observation", "function_response", "tool", "assistant"]
    row = {"conversations": [{"from": sender, "value": "값"} for sender in [*senders, "user"]]}
    assert [message.role for message in parse_conversation(row).messages] == [
        *("system", "user", "assistant", "tool", "tool", "tool", "assistant", "user")
    ]


def test_text_parts_are_joined_as_they_are() -> None:
    parts = [{"type": "text", "text": text} for text in ("안녕", "", " 하세요\n")]
    (message,) = parse_messages([{"role": "user", "content": parts}])
    assert message.content == "안녕 하세요\n"


def test_keys_by_name_come_before_every_other_shape_and_leave_other_rows_their_own() -> None:
    row = {"question": "1 + 1?", "answer": "2", "messages": [USER, ANSWER]}
    found = parse_conversation(row, prompt_key="question", answer_key="answer")
    assert found.shape == "question/answer"
    assert [message.content for message in found.messages] == ["1 + 1?", "2"]
    assert parse_conversation(row).shape == "messages"
    other = {**row, "answer": None}
    found = parse_conversation(other, prompt_key="question", answer_key="answer")
    assert found.shape == "messages"
    for keys in ({"prompt_key": "question"}, {"answer_key": "answer"}):
        with pytest.raises(ValueError, match=r"one is missing; give both or neither"):
            parse_conversation(row, **keys)


@pytest.mark.parametrize("answer", ["completion", "response", "answer", "a"])
@pytest.mark.parametrize("question", ["prompt", "question", "q"])
@pytest.mark.parametrize("listed", [True, False])
def test_of_a_prompt_and_its_completion_the_completion_alone_is_trained(
    question: str, answer: str, listed: bool
) -> None:
    """As in TRL's prompt-completion format, whatever the context says of its own weight."""
    context = [USER, ANSWER, USER, {**ANSWER, "weight": 2, "train": True}, USER]
    row = {question: context, answer: [ANSWER, USER, ANSWER] if listed else "안녕하세요."}
    found = parse_conversation(row, prompt_key=question, answer_key=answer)
    trained = [m.weight for m in found.messages if m.role == "assistant"]
    assert trained == [0, 0, 1, 1] if listed else [0, 0, 1]
    assert found.read_as == (f"answers in {question} as context",)
    assert parse_conversation({"messages": context}).read_as == ()
    masked = [USER, {**ANSWER, "weight": 0}, USER]  # says so already
    found = parse_conversation({**row, question: masked}, prompt_key=question, answer_key=answer)
    assert (found.messages[1].weight, found.read_as) == (0, ())


def test_the_answers_of_a_history_are_trained() -> None:
    row = {"instruction": "E", "output": "F", "history": [["A", "B"], ["C", "D"]]}
    found = parse_conversation(row)
    assert [m.weight for m in found.messages if m.role == "assistant"] == [1, 1, 1]
    assert found.read_as == ()


def test_of_rows_by_named_keys_the_system_message_and_the_weight_are_read_too() -> None:
    row = {"q": "1 + 1?", "a": "2", "system": "짧게.", "weight": 0.5, "train": True, "input": "3"}
    found = parse_conversation(row, prompt_key="q", answer_key="a")
    assert [(m.role, m.content) for m in found.messages] == [
        ("system", "짧게."),
        ("user", "1 + 1?"),
        ("assistant", "2"),
    ]
    assert found.messages[-1].weight == 0.5
    assert [unread.key for unread in found.unread] == ["input"]
    unlearned = parse_conversation({**row, "train": False}, prompt_key="q", answer_key="a")
    assert unlearned.messages[-1].weight == 0


OPTIONAL = ("input", "context", "system", "system_prompt", "history", "id", *REFUSED)


@given(
    row=st.fixed_dictionaries(
        {"instruction": st.just("Hi"), "output": st.just("네.")},
        optional={key: st.sampled_from([None, "", [], {}]) for key in OPTIONAL},
    ),
    weight=st.sampled_from([{}, {"weight": None}]),
)
def test_null_missing_and_empty_optional_fields_are_the_same(
    row: dict[str, object], weight: dict[str, object]
) -> None:
    found = parse_conversation(row)
    assert found.messages == (Message("user", "Hi"), Message("assistant", "네."))
    others = {key: value for key, value in row.items() if key not in ("instruction", "output")}
    shape = {"messages": [USER, {**ANSWER, **weight, **others}], "prompt": None, **others}
    assert parse_conversation(shape).messages == PLAIN


@pytest.mark.parametrize(
    ("row", "error"),
    [
        (["x"], r"row: the row is a list of 1; a row is a JSON object"),
        (USER, r"is unknown: its keys are \"role\", \"content\"; a row is a whole conversation"),
        ({}, r"the row is \{\}; a row needs messages, conversations, instruction\+output, "),
        ({"text": "x"}, r'shape is unknown: its keys are "text"; a row needs messages, .* named'),
        ({"instruction": "x"}, r'shape is unknown: its keys are "instruction"; a row needs'),
        ({"instruction": "x", "output": None}, r'its keys are "instruction", "output" \(null\);'),
        (
            {"prompt": "x"},
            r'its keys are "prompt"; a row needs .* or query\+answers, or two',
        ),
        ({"messages": "x"}, r'"messages" is "x"; it takes a list of messages'),
        ({"messages": []}, r'"messages" is an empty list; give at least one message'),
        ({"messages": ["x"]}, r'message 1 is "x"; write it as \{"role": ..., "content": ...\}'),
        ({"prompt": [3], "completion": "x"}, r"prompt message 1 is 3; write it as"),
        ({"instruction": "x", "output": ""}, r'the row has an empty "output"; fill it in or'),
        ({"instruction": "x", "output": "y", "history": {"a": 1}}, r"the history is an object;"),
        ({"instruction": "x", "output": "y", "history": ["ab"]}, r'history pair 1 is "ab"; write'),
        ({"instruction": "x", "output": "y", "history": [["a", 1]]}, r"pair 1 has 1 for \"assist"),
        (
            {"messages": turns("system", "user"), "system": "x"},
            r'the row has "system" beside a system message; keep one of them',
        ),
        ({"messages": [USER], "system": 3}, r'the row has 3 for "system"; it takes a text'),
    ],
)
def test_a_row_that_is_not_a_conversation_is_told_so(row: object, error: str) -> None:
    with pytest.raises(DataError, match=error):
        parse_conversation(row)


# Messages


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": "x"}, r'^messages: message 2 has no "role"; give it "role" and "content"'),
        ({"role": "bot", "content": "x"}, r'message 2 has role "bot"; use system, user, assistant'),
        ({"role": "Aſſistant", "content": "x"}, r'message 2 has role "Aſſistant"; use system'),
        ({"role": ["user"], "content": "x"}, r"message 2 has role a list of 1; use system"),
        (
            {"from": "bing", "value": "x"},
            r'message 2 has role "bing"; use system, user, assist',
        ),
        ({"role": "user"}, r'message 2 has no "content"; give it "content", a text'),
        ({"role": "user", "content": 1.5}, r'message 2 has 1.5 for "content"; it takes a text'),
        ({"role": "user", "content": 10**5000}, r"message 2 has a huge number for"),
        ({"role": "user", "content": b"x"}, r'message 2 has a bytes for "content"; it takes'),
        ({"role": "user", "content": ""}, r'message 2 has an empty "content"; fill it in or'),
        ({"role": "user", "content": "\ud83d"}, r"half a surrogate pair, \\ud83d, in \"content\";"),
        (
            {"role": "user", "content": [{"type": "image"}]},
            r'message 2 has type "image" as content part 1; only text is trained',
        ),
        ({"role": "user", "content": [[]]}, r"message 2 has a list of 0 as content part 1; only"),
        (
            {"role": "user", "content": [{"type": "text", "text": None}]},
            r'message 2 has no "text"; give it "text", a text',
        ),
        (Message("bot", "x"), r'message 2 has role "bot"; use system, user, assistant or tool'),
        (Message("user", ""), r'message 2 has an empty "content"; fill it in or remove it'),
        (Message("user", "x", -1.0), r"message 2 has weight -1.0; a weight is a number, 0 or"),
    ],
)
def test_a_message_that_is_not_one_is_told_so_by_its_number(message: object, error: str) -> None:
    with pytest.raises(DataError, match=error):
        parse_messages([USER, message])


@pytest.mark.parametrize("weight", [0, 0.0, 1, 0.25, 3, 10_000, 0.0001])
def test_a_weight_is_zero_or_a_number_that_float32_can_bear(weight: float) -> None:
    _, message = parse_messages([USER, {**ANSWER, "weight": weight}])
    assert (message.weight, type(message.weight)) == (float(weight), float)


@pytest.mark.parametrize(
    "weight",
    [
        -1,
        -1e-9,
        1e-50,
        1e308,
        True,
        False,
        "1",
        [1],
        float("nan"),
        float("inf"),
        pytest.param(10**400, id="huge"),
    ],
)
def test_nothing_else_is_a_weight(weight: object) -> None:
    with pytest.raises(
        DataError, match=r"message 2 has weight .*; a weight is a number, 0 or 0.0001"
    ):
        parse_messages([USER, {**ANSWER, "weight": weight}])


@given(st.lists(messages("user") | messages("assistant"), min_size=1, max_size=4))
def test_message_objects_stay_as_they_are_and_mix_with_dicts(found: list[Message]) -> None:
    parsed = parse_messages([*found, USER])
    assert list(parsed[:-1]) == found
    assert parsed[-1] == Message("user", "안녕?")
    assert parse_messages(parsed) == parsed


def test_messages_from_python_must_be_a_list() -> None:
    for wrong in ("Hi", None, USER, 5, b"Hi"):
        with pytest.raises(TypeError, match=r"messages: .* is not a list; give a list such as"):
            parse_messages(wrong)  # type: ignore[arg-type]
    for right in ((USER,), iter([USER]), np.array([USER]), [Message("user", "안녕?")]):
        assert parse_messages(right) == PLAIN[:1]
    with pytest.raises(DataError, match=r'messages: "messages" is an empty list; give at least on'):
        parse_messages([])


@given(conversations().filter(spells_no_tag))
def test_every_legal_conversation_survives_its_json(conversation: Conversation) -> None:
    rows = [
        {"role": message.role, "content": message.content, "weight": message.weight}
        for message in conversation.messages
    ]
    for key in ("messages", "conversations"):
        for ensure_ascii in (True, False):
            row = json.loads(json.dumps({key: rows}, ensure_ascii=ensure_ascii))
            assert parse_conversation(row) == Conversation(conversation.messages, key)


# Turns


def is_legal(roles: list[str]) -> bool:
    """The rules once more, written the slow way."""
    text = " ".join(roles)
    return "system" not in roles[1:] and not any(
        text.startswith("tool") or f"{before} tool" in text for before in ("system", "user")
    )


@given(st.lists(st.sampled_from(ROLES), min_size=1, max_size=6))
def test_a_sequence_of_roles_is_read_as_it_stands_or_refused_by_its_rule(roles: list[str]) -> None:
    if is_legal(roles):
        assert [message.role for message in parse_messages(turns(*roles))] == roles
        return
    rule = (
        r"message \d+ has role system; a system message is the first one only|"
        r"message \d+ has role tool and .*; a tool's message follows an assistant's or another"
    )
    with pytest.raises(DataError, match=rule) as caught:
        parse_messages(turns(*roles))
    assert caught.value.kind in ("system_not_first", "tool_out_of_place")


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        (["user", "assistant"], []),
        (["system", "user", "assistant", "user", "assistant"], []),
        (["user", "assistant", "tool", "tool", "assistant"], []),
        (["user", "user", "assistant"], ["repeated_user"]),
        (["user", "assistant", "assistant", "assistant"], ["repeated_assistant"]),
        (["assistant", "user", "assistant"], ["leading_assistant"]),
        (["system", "assistant"], ["leading_assistant"]),
        (["user", "assistant", "user"], ["trailing_prompt"]),
        (["user", "assistant", "tool"], ["trailing_prompt"]),
        (["user"], ["no_assistant"]),
        (["system"], ["no_assistant"]),
        (["system", "user", "user"], ["repeated_user", "no_assistant"]),
        (
            ["assistant", "assistant", "user", "user"],
            ["repeated_user", "repeated_assistant", "leading_assistant", "trailing_prompt"],
        ),
    ],
)
def test_each_unusual_order_of_turns_has_one_name(roles: list[str], names: list[str]) -> None:
    assert irregularities(Conversation(parse_messages(turns(*roles)))) == names


def test_white_space_is_content_and_a_tool_may_say_nothing() -> None:
    rows = [
        {"role": "user", "content": " \n"},
        {"role": "assistant", "content": "\t"},
        {"role": "tool", "content": ""},
        {"role": "tool", "content": []},
        {"role": "assistant", "content": "\0"},
    ]
    assert [message.content for message in parse_messages(rows)] == [" \n", "\t", "", "", "\0"]


def test_a_system_text_is_added_only_where_a_row_has_none() -> None:
    added = parse_conversation({"messages": [USER, ANSWER]}, system="친절하게.").messages
    assert added == (Message("system", "친절하게."), *PLAIN)
    for row in (
        {"messages": turns("system", "user", "assistant")},
        {"instruction": "1번", "output": "2번", "system": "0번"},
    ):
        found = parse_conversation(row, system="친절하게.").messages
        assert [message.content for message in found] == ["0번", "1번", "2번"]
    for none in (None, ""):
        assert parse_conversation({"messages": [USER, ANSWER]}, system=none).messages == PLAIN
    with pytest.raises(DataError, match=r"row: the added system message has half a surrogate pair"):
        parse_conversation({"messages": [USER]}, system="\udced")


# Errors


def test_an_error_names_place_fact_and_remedy_and_shows_a_short_excerpt() -> None:
    row = {"messages": [USER, {"role": "bot", "content": "x" * 100}]}
    text = json.dumps(row, ensure_ascii=False)
    with pytest.raises(DataError) as caught:
        parse_conversation(row, path="train.jsonl", line=41, text=text)
    error = caught.value
    assert str(error) == (
        'train.jsonl:41: message 2 has role "bot"; use system, user, assistant or tool\n'
        '    {"messages": [{"role": "user", "content": "안녕?"}, {"role": "bot", "content": "x…'
    )
    assert (error.kind, error.path, error.line) == ("unknown_role", "train.jsonl", 41)
    assert error.fact == 'message 2 has role "bot"'
    assert error.remedy == "use system, user, assistant or tool"
    assert len(error.excerpt) == 80


@given(
    text=texts() | st.text(alphabet="\ud800\udfff\x1b\x07가a", max_size=200), at=st.integers(0, 99)
)
def test_an_excerpt_is_short_safe_and_shows_its_place(text: str, at: int) -> None:
    shown = excerpt(text * 3, at)
    assert len(shown) <= 80
    assert is_safe_line(shown)
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("나쁜.jsonl", "나쁜.jsonl"),
        ("나쁜.jsonl".encode().decode("ascii", "surrogateescape"), "나쁜.jsonl"),  # the locale C
        ("\udcb0\udca1.jsonl", r"\udcb0\udca1.jsonl"),  # CP949
        ("\ud83d.jsonl", r"\ud83d.jsonl"),
        ("a\nb\x1b.jsonl", r"a\nb\x1b.jsonl"),
        ("-", "<stdin>"),
    ],
)
def test_a_file_is_called_by_its_name_in_any_locale(path: str, place: str) -> None:
    assert str(DataError("kind", "fact", "remedy", path, 3)) == f"{place}:3: fact; remedy"


def test_what_is_no_file_is_called_by_its_number_or_by_what_it_is() -> None:
    assert str(DataError("kind", "fact", "remedy")) == "data: fact; remedy"
    for place, line in (("row", 0), ("row 3", 3)):
        with pytest.raises(DataError, match=rf"^{place}: the row is null; a row is a JSON object"):
            parse_conversation(None, line=line)


def test_an_excerpt_shows_what_stands_around_its_index() -> None:
    text = "".join(chr(0xAC00 + number) for number in range(300))
    assert excerpt(text) == text[:79] + "…"
    assert excerpt(text, 150) == "…" + text[130:208] + "…"
    assert excerpt(text, 290) == "…" + text[270:]
    assert excerpt("짧다\r\n") == "짧다"


class NAType:
    """As pandas' NA is called."""


@pytest.mark.parametrize("missing", [math.nan, np.float64("nan"), NAType()])
def test_what_a_frame_has_for_a_missing_key_counts_as_missing(missing: object) -> None:
    row = {"instruction": "a", "output": "b", "system": missing, "messages": missing}
    assert parse_conversation(row).messages == (Message("user", "a"), Message("assistant", "b"))


def test_an_alpaca_answer_is_a_text() -> None:
    row = {"instruction": "a", "output": [{"role": "assistant", "content": "b"}]}
    with pytest.raises(DataError, match='the row has a list of 1 for "output"; it takes a text'):
        parse_conversation(row)
