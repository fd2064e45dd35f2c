"""Rows that ask alike share a key, however they are written; rows that ask otherwise don't."""

from __future__ import annotations

from dataclasses import replace
from unicodedata import normalize

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minimind.data.conversation import Conversation, Message
from minimind.data.prompts import normalized, prompt_keys_of, trained_prompts
from tests.support.strategies import conversations, texts


def said(*turns: str) -> Conversation:
    """ "user: ..." and "assistant: ..."."""
    return Conversation(tuple(Message(*turn.split(": ", 1)) for turn in turns))


def key(*turns: str) -> int:
    return prompt_keys_of(said(*turns))[-1]


def asking(text: str) -> int:
    return prompt_keys_of(Conversation((Message("user", text), Message("assistant", "x"))))[-1]


# What a conversation asks


def test_chats_that_merely_open_alike_part_ways() -> None:
    chats = [
        ("user: 안녕하세요", "assistant: 네!", f"user: {n}번은?", "assistant: 네")
        for n in range(50)
    ]
    assert len({key(*chat) for chat in chats}) == 50


def test_all_that_is_asked_counts_and_nothing_that_is_answered() -> None:
    base = key("system: s", "user: a", "assistant: x", "user: b", "assistant: y")
    assert base == key("system: s", "user: a", "assistant: z", "user: b", "assistant: w")
    assert base == key(
        *("system: s", "user: a", "assistant: x", "tool: 3", "assistant: z", "user: b"),
        "assistant: y",
    )
    others = [
        ("user: a", "assistant: x", "user: b", "assistant: y"),
        ("system: t", "user: a", "assistant: x", "user: b", "assistant: y"),
        ("system: s", "user: b", "assistant: x", "user: a", "assistant: y"),
        ("system: s", "user: a", "assistant: x"),
        ("system: s", "user: ab", "assistant: y"),
        ("user: s", "user: a", "assistant: x", "user: b", "assistant: y"),
    ]
    assert len({base, *(key(*other) for other in others)}) == 1 + len(others)


def test_what_nothing_answers_does_not_count() -> None:
    assert key("user: a", "assistant: x", "user: b") == key("user: a", "assistant: x")


def test_rows_where_nobody_asks_are_told_apart_by_all_they_say() -> None:
    assert key("assistant: 하나") != key("assistant: 둘")
    assert key("assistant: Hello!") == key("assistant: hello")
    assert key("assistant: hi", "assistant: you") != key("assistant: hi")
    first, second = prompt_keys_of(said("assistant: hi", "user: a", "assistant: x"))
    assert first == key("assistant: hi")
    assert second == key("user: a", "assistant: y")  # a greeting first is no other question


@settings(max_examples=60)
@given(conversation=conversations(answered=True))
def test_each_answers_key_is_that_of_the_conversation_up_to_it(conversation: Conversation) -> None:
    """So rows that are made of one conversation's beginnings can be found in it."""
    keys = prompt_keys_of(conversation)
    ends = [at for at, m in enumerate(conversation.messages) if m.role == "assistant"]
    assert len(keys) == len(ends)
    assert all(0 <= key < 2**64 for key in keys)
    for end, expected in zip(ends, keys, strict=True):
        part = replace(conversation, messages=conversation.messages[: end + 1])
        assert prompt_keys_of(part)[-1] == expected


def test_only_answers_that_are_trained_have_trained_prompts() -> None:
    turns = [Message("user", "a"), Message("assistant", "x", 0.0), Message("user", "b")]
    turns += [Message("assistant", "y"), Message("user", "c"), Message("assistant", "z", 0.5)]
    conversation = Conversation(tuple(turns))
    keys = prompt_keys_of(conversation)
    assert trained_prompts(conversation, keys, "all") == keys[1:]
    assert trained_prompts(conversation, keys, "last") == keys[2:]


# How it is written

ALIKE = [
    [
        "Hi there!",
        "hi there",
        "HI  THERE?",
        "\uff28\uff49 there",
        "Hi, there…",
        "Hi there~",
    ],
    ["What does 😀 mean?", "what does 😀mean", "WHAT DOES 😀 MEAN…"],
    ["I ❤ you", "i ❤\ufe0f you!"],
    ["Is this positive: :)", "is this positive :)", "Is this positive? :)"],
    ["C♯ major", "c♯  Major."],
    ["See the list:(a) and (b)", "See the list (a) and (b)", "see the list: a and b"],
    ["Pick:do or don't", "Pick: do or don't", "pick do or don't"],
    ["학교 어때?", "학교어때", "학교 어때?!", "학교 어때~", "\u1112\u1161\u11a8\u1100\u116d 어때"],
    ["What is 1 + 23?", "what is 1+23", "What  is １＋２３ ？"],
    ["1 + 23 = ?", "1+23=", "1 + 23 =?"],
    ["Is 7 a prime, 소수인가요?", "is 7 a prime 소수인가요", "IS 7 A PRIME:  소수인가요!!"],
    ["3번 질문입니다", "3 번 질문입니다!!"],
    ["What’s 7 – 2?", "What's 7 - 2?", "what's 7−2"],
    ["你好，3加4等于几？", "你好 3加4等于几"],
    ["print(x) 설명해 줘", "print(x) 설명해줘!!"],
    ["I'm fine, thanks.", "I’m fine thanks"],
    ["x = y", "x=y", "X = Y."],
]


@pytest.mark.parametrize("variants", ALIKE)
def test_variants_of_a_prompt_are_one_prompt(variants: list[str]) -> None:
    assert len({asking(text) for text in variants}) == 1


ENGLAND, SCOTLAND = (
    "".join(chr(0xE0000 + ord(letter)) for letter in f"{name}\x7f") for name in ("gbeng", "gbsct")
)
APART = [
    ["hi", "hello", "안녕", "안녕히", "?", "!", "👍", "1", "2", "ㅎㅎ"],
    [
        "1 + 23 = ?",
        "123 = ?",
        "12 + 3 = ?",
        "1 - 23 = ?",
        "1 × 23 = ?",
        "-1 + 23 = ?",
        "1 + 2.3 = ?",
    ],
    ["1 23", "12 3", "123", "1, 23", "12, 3", "1.23", "12:3", "1:23"],
    ["What is 5!", "What is 5?", "What is √5?", "What is 5%?", "What is 5²?", "What is 52?"],
    ["(1 + 2) * 3", "1 + (2 * 3)", "1 + 2 * 3"],
    ["If 3 < x, n!", "If 3 < x, n", "If 3 > x, n"],
    ["a == b", "a = b", "a != b", "a b"],
    ["f(a)", "f[a]", "f{a}", "f a", "f('a')", "*f", "&f", "!f"],
    ["{key: value}", "{key, value}", "{key; value}"],
    ["foo.bar", "foo->bar", "foo::bar", "foo bar"],
    ["ls -l", "ls l", "ls --l"],
    ["Learn C", "Learn C++", "Learn C#"],
    ["a && b", "a || b", "a & b", "a ? b", "a, b", "a; b", "a: b", "a ~ b"],
    ["What does 😀 mean?", "What does 😢 mean?", "What does 😀😀 mean?", "What does mean?"],
    [
        *(f"Is this positive: {face}" for face in (":)", ":(", ";)", ":-(", ":'(", ":D", ":P")),
        *("Is this positive: D", "Is this positive", "Is this positive: ^^"),
    ],
    ["C major", "C♯ major", "C♭ major", "C# major"],
    ["↑ arrow", "↓ arrow", "arrow", "→ arrow"],
    ["Which card is ♠?", "Which card is ♥?", "Which card is?"],
    ["How many € is it?", "How many £ is it?", "How many ₩ is it?"],
    ["Hi there", "Hi there 👋", "Hi there 👋🏽", "Hi there ^^"],
    [f"Where is \U0001f3f4{tags}?" for tags in (ENGLAND, SCOTLAND, "")],
    ["दिन", "दान", "दन"],  # vowel signs are marks, not letters
    ["ไก่", "ไก้", "ไก"],
]


@pytest.mark.parametrize("prompts", APART)
def test_other_prompts_are_other_prompts(prompts: list[str]) -> None:
    assert len({asking(text) for text in prompts}) == len(prompts)


@settings(max_examples=400)
@given(
    first=st.characters(categories=["Sm", "Sc", "So"]),
    second=st.characters(categories=["Sm", "Sc", "So"]),
    frame=st.sampled_from(["What does {} mean?", "{} arrow", "말해 줘: {}", "Hi there{}"]),
)
def test_prose_that_differs_in_one_symbol_is_two_prompts(
    first: str, second: str, frame: str
) -> None:
    """But for `~`, which ends a sentence as a full stop does."""
    alike = {normalize("NFKC", symbol) for symbol in (first, second)}
    assume(len(alike) == 2 and "~" not in alike)
    assert len({asking(frame.format(symbol)) for symbol in (first, second, "")}) == 3


SYMBOLS = "+-*/%^=<>|&@#$~!:;,\\×÷±≤≠∈√→"


@st.composite
def expressions(draw: st.DrawFn) -> list[str]:
    """A term or a line of code, as (operand, symbol, operand, ...)."""
    operand = st.from_regex(r"[1-9][0-9]{0,3}|[a-z]", fullmatch=True)
    count = draw(st.integers(1, 4))
    parts = [draw(operand)]
    for _ in range(count):
        parts += [draw(st.sampled_from(SYMBOLS)), draw(operand)]
    return parts


@settings(max_examples=400)
@given(
    parts=expressions(),
    frame=st.sampled_from(["{}", "{} = ?", "What is {}?", "{}의 값은?", "return {}", "`{}`"]),
    space=st.sampled_from(["", " "]),
    data=st.data(),
)
def test_arithmetic_and_code_that_differ_in_one_symbol_are_two_prompts(
    parts: list[str], frame: str, space: str, data: st.DataObject
) -> None:
    place = data.draw(st.sampled_from(range(1, len(parts), 2)))
    other = data.draw(st.sampled_from(SYMBOLS).filter(lambda symbol: symbol != parts[place]))
    changed = [*parts[:place], other, *parts[place + 1 :]]
    dropped = [*parts[:place], *parts[place + 1 :]]
    asked = [asking(frame.format(space.join(x))) for x in (parts, changed, dropped)]
    assert len(set(asked)) == 3


@settings(max_examples=200)
@given(text=texts(min_size=1))
def test_a_text_is_normalized_once_and_for_all(text: str) -> None:
    once = normalized(text)
    assert once
    assert asking(f"  {text}\n") == asking(text) or not text.strip()
