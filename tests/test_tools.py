"""Tools and reasoning train exactly as they are served: the six goldens, and the saved template."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minimind.data import chatml
from minimind.data.chatml import Segment, render, render_prompt
from minimind.data.conversation import Conversation, Message, parse_conversation
from minimind.data.errors import DataError
from minimind.data.masking import (
    MissingTagsError,
    encode_conversation,
    encode_prompt,
    encode_rows,
)
from minimind.data.rounds import has_reasoning, split_rounds
from minimind.model.pretrained import load_tokenizer, save_tokenizer
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.vocabulary import TAGS
from tests.support.strategies import plain_texts, tool_conversations
from tests.support.templates import as_client
from tests.support.tokenizers_of_bases import write_llama3

Row = dict[str, Any]

WEATHER = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
TOOLS = (
    "# Tools⏎⏎You may call one or more functions to assist with the user query.⏎⏎You are provided "
    "with function signatures within <tools></tools> XML tags:⏎<tools>⏎"
    f"{json.dumps(WEATHER)}⏎</tools>⏎⏎For each function call, return a json object with function "
    "name and arguments within <tool_call></tool_call> XML tags:⏎<tool_call>⏎"
    '{"name": <function-name>, "arguments": <args-json-object>}⏎</tool_call>'
)


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def call(*cities: str) -> list[Row]:
    name = "get_weather"
    return [{"function": {"name": name, "arguments": {"city": city}}} for city in cities]


def says(content: str, **more: object) -> Row:
    return {"role": "assistant", "content": content, **more}


ROWS: dict[str, Row] = {
    "1 framed, no reasoning": {"messages": [user("1+1?"), says("2.")]},
    "2 reasoning": {"messages": [user("1+1?"), says("2.", reasoning_content="Add.")]},
    "3 reasoning in two turns": {
        "messages": [
            user("1+1?"),
            says("2.", reasoning_content="Add."),
            user("+1?"),
            says("3.", reasoning_content="Again."),
        ]
    },
    "4 tools, not framed": {
        "tools": [WEATHER],
        "messages": [
            {"role": "system", "content": "Be brief."},
            user("서울 날씨?"),
            says("", tool_calls=call("서울")),
            {"role": "tool", "content": '{"t": 21}'},
            says("21도예요."),
        ],
    },
    "5 text and two calls, not framed": {
        "tools": [WEATHER],
        "messages": [
            user("A and B?"),
            says("Let me look.", tool_calls=call("A", "B")),
            {"role": "tool", "content": "1"},
            {"role": "tool", "content": "2"},
            says("1 and 2."),
        ],
    },
    "6 reasoning in a tool loop": {
        "tools": [WEATHER],
        "messages": [
            user("A?"),
            says("", reasoning_content="Need a tool.", tool_calls=call("A")),
            {"role": "tool", "content": "1"},
            says("1.", reasoning_content="Got it."),
        ],
    },
}
_CALL = '<tool_call>⏎{{"name": "get_weather", "arguments": {{"city": "{}"}}}}⏎</tool_call>'
GOLDENS = {
    "1 framed, no reasoning": [
        "<|im_start|>user⏎1+1?<|im_end|>⏎<|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎⟦2.<|im_end|>⟧⏎"
    ],
    "2 reasoning": [
        "<|im_start|>user⏎1+1?<|im_end|>⏎"
        "<|im_start|>assistant⏎<think>⏎⟦Add.⏎</think>⏎⏎2.<|im_end|>⟧⏎"
    ],
    "3 reasoning in two turns": [
        "<|im_start|>user⏎1+1?<|im_end|>⏎"
        "<|im_start|>assistant⏎<think>⏎⟦Add.⏎</think>⏎⏎2.<|im_end|>⟧⏎",
        "<|im_start|>user⏎1+1?<|im_end|>⏎"
        "<|im_start|>assistant⏎<think>⏎⏎</think>⏎⏎2.<|im_end|>⏎"
        "<|im_start|>user⏎+1?<|im_end|>⏎"
        "<|im_start|>assistant⏎<think>⏎⟦Again.⏎</think>⏎⏎3.<|im_end|>⟧⏎",
    ],
    "4 tools, not framed": [
        f"<|im_start|>system⏎Be brief.⏎⏎{TOOLS}<|im_end|>⏎"
        "<|im_start|>user⏎서울 날씨?<|im_end|>⏎"
        f"<|im_start|>assistant⏎⟦{_CALL.format('서울')}<|im_end|>⟧⏎"
        '<|im_start|>user⏎<tool_response>⏎{"t": 21}⏎</tool_response><|im_end|>⏎'
        "<|im_start|>assistant⏎⟦21도예요.<|im_end|>⟧⏎"
    ],
    "5 text and two calls, not framed": [
        f"<|im_start|>system⏎{TOOLS}<|im_end|>⏎"
        "<|im_start|>user⏎A and B?<|im_end|>⏎"
        f"<|im_start|>assistant⏎⟦Let me look.⏎{_CALL.format('A')}⏎{_CALL.format('B')}<|im_end|>⟧⏎"
        "<|im_start|>user⏎<tool_response>⏎1⏎</tool_response>⏎"
        "<tool_response>⏎2⏎</tool_response><|im_end|>⏎"
        "<|im_start|>assistant⏎⟦1 and 2.<|im_end|>⟧⏎"
    ],
    "6 reasoning in a tool loop": [
        f"<|im_start|>system⏎{TOOLS}<|im_end|>⏎"
        "<|im_start|>user⏎A?<|im_end|>⏎"
        f"<|im_start|>assistant⏎<think>⏎⟦Need a tool.⏎</think>⏎⏎{_CALL.format('A')}<|im_end|>⟧⏎"
        "<|im_start|>user⏎<tool_response>⏎1⏎</tool_response><|im_end|>⏎"
        "<|im_start|>assistant⏎<think>⏎⟦Got it.⏎</think>⏎⏎1.<|im_end|>⟧⏎"
    ],
}


def marked(segments: list[Segment]) -> str:
    """The golden notation: newlines as ⏎, what is trained between ⟦ and ⟧."""
    text = "".join(f"⟦{s.text}⟧" if s.weight else s.text for s in segments)
    return text.replace("⟧⟦", "").replace("\n", "⏎")


def rendered(row: Row, framed: bool) -> list[str]:
    parts = split_rounds(parse_conversation(row))
    return [marked(render(part.messages, tools=part.tools, framed=framed)) for part in parts]


@pytest.mark.parametrize("name", GOLDENS)
def test_the_golden_conversations_render_exactly(name: str, tokenizer: Tokenizer) -> None:
    framed = "not framed" not in name
    assert rendered(ROWS[name], framed) == GOLDENS[name]
    for part, golden in zip(
        split_rounds(parse_conversation(ROWS[name])), GOLDENS[name], strict=True
    ):
        example = encode_conversation(part, tokenizer, framed=framed)
        pairs = zip(example.input_ids, example.loss_mask, strict=True)
        ids = [(tokenizer.token_bytes(id), trained) for id, trained in pairs]
        trained = b"".join(text for text, is_trained in ids if is_trained).decode()
        plain = "".join(piece.partition("⟧")[0] for piece in golden.split("⟦")[1:])
        assert trained.replace("\n", "⏎") == plain
        assert tokenizer.decode(example.input_ids).replace("\n", "⏎") == golden.replace(
            "⟦", ""
        ).replace("⟧", "")


@pytest.mark.parametrize("name", GOLDENS)
def test_every_tag_of_the_goldens_is_one_id(name: str, tokenizer: Tokenizer) -> None:
    framed = "not framed" not in name
    for part, golden in zip(
        split_rounds(parse_conversation(ROWS[name])), GOLDENS[name], strict=True
    ):
        ids = encode_conversation(part, tokenizer, framed=framed).input_ids
        for tag in TAGS:
            assert ids.count(tokenizer.encode_control(tag)) == golden.count(tag)


def test_docs_show_the_goldens() -> None:
    text = (Path(__file__).parents[1] / "docs/mask.md").read_text(encoding="utf-8")
    for parts in GOLDENS.values():
        for golden in parts:
            assert golden.replace(TOOLS, "TOOLS") in text
    assert TOOLS.replace(json.dumps(WEATHER), '{"type": "function", …}') in text


# The prompt


@settings(max_examples=200)
@given(conversation=tool_conversations(), train_last=st.booleans())
def test_a_prompt_is_the_training_prefix_at_every_trained_turn(
    conversation: Conversation, train_last: bool, tokenizer: Tokenizer
) -> None:
    served = tokenizer.with_framing(True, False)
    for part in split_rounds(conversation, "last" if train_last else "all"):
        (row,) = encode_rows([part], served)
        whole = render(part.messages, tools=part.tools, framed=True)
        for turn, message in enumerate(part.messages):
            if message.role != "assistant" or not message.weight:
                continue
            thinking, before = has_reasoning([message]), part.messages[:turn]
            prompt = render_prompt(before, tools=part.tools, framed=True, thinking=thinking)
            assert prompt == whole[: len(prompt)]
            assert whole[len(prompt)].weight
            assert not any(segment.weight for segment in prompt[-6:] if segment.control)
            ids = encode_prompt(before, served, tools=part.tools, thinking=thinking)
            assert ids == list(row.input_ids)[: len(ids)]
            assert row.loss_mask[len(ids)]
            assert not row.loss_mask[len(ids) - 1]


# Rows cut from one conversation


@given(tool_conversations())
def test_each_answer_is_trained_in_exactly_one_row_as_it_was_said(
    conversation: Conversation,
) -> None:
    parts = split_rounds(conversation)
    said = [m for m in conversation.messages if m.role == "assistant" and m.weight]
    trained = []
    for part in parts:
        assert (*part.messages, *part.rest)[-1] == conversation.messages[-1]
        assert len(part.messages) + len(part.rest) == len(conversation.messages)
        last_user = max(i for i, m in enumerate(part.messages) if m.role == "user")
        for index, message in enumerate(part.messages):
            if message.role == "assistant" and message.weight:
                assert index > last_user or not message.reasoning.strip("\n")
                trained.append(message)
    assert trained == said
    assert all(has_reasoning(part.messages) for part in parts[:-1])
    (last,) = split_rounds(conversation, "last")
    assert last == parts[-1]


def test_rounds_without_reasoning_and_one_tool_loop_stay_one_row() -> None:
    plain = parse_conversation({"messages": [user("a"), says("b"), user("c"), says("d")]})
    assert split_rounds(plain) == [plain]
    loop = parse_conversation(ROWS["6 reasoning in a tool loop"])
    assert split_rounds(loop) == [loop]
    earlier = parse_conversation(
        {"messages": [user("a"), says("b", reasoning="x", weight=0), user("c"), says("d")]}
    )
    assert split_rounds(earlier) == [earlier]  # nothing of it is trained
    unanswered = parse_conversation({"messages": [user("a"), says("b", thinking="x"), user("c")]})
    (part,) = split_rounds(unanswered)
    assert part.messages == unanswered.messages[:2]


# The saved template


@cache
def theirs(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Tokenizer, Path]]:
    """Ours, and one that has a BOS and gets the tags; plain and framed, thinking or not."""
    plain = load_tokenizer()
    other = Tokenizer.load(write_llama3(tmp_path_factory.mktemp("llama3"))).with_tags(TAGS)
    made = []
    for base in (plain, other):
        for frame in ((False, False), (True, False), (True, True)):
            folder = tmp_path_factory.mktemp("saved")
            save_tokenizer(folder, base.with_framing(*frame))
            made.append((base.with_framing(*frame), folder))
    return made


def assert_served_as_trained(
    conversation: Conversation, tokenizer: Tokenizer, folder: Path
) -> None:
    """Ids, mask and prompts are those that transformers makes with what was saved."""
    other = theirs(folder)
    if not tokenizer.framed:
        messages = tuple(replace(m, reasoning="") for m in conversation.messages)
        conversation = replace(conversation, messages=messages)
    for part in split_rounds(conversation):
        tools = list(part.tools) or None
        (row,) = encode_rows([part], tokenizer)
        encoded = other.apply_chat_template(
            as_client(part.messages),
            tools=tools,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert encoded["input_ids"] == list(row.input_ids)
        assert encoded["assistant_masks"] == list(map(int, row.loss_mask))
        for turn, message in enumerate(part.messages):
            if message.role != "assistant" or not message.weight:
                continue
            before = part.messages[:turn]
            for thinking in (True, False, None) if tokenizer.framed else (None,):
                asked = {} if thinking is None else {"enable_thinking": thinking}
                prompt = other.apply_chat_template(
                    as_client(before),
                    tools=tools,
                    add_generation_prompt=True,
                    return_dict=True,
                    **asked,
                )["input_ids"]
                ours = encode_prompt(before, tokenizer, tools=part.tools, thinking=thinking)
                assert prompt == ours


@settings(max_examples=60)
@given(conversation=tool_conversations())
def test_transformers_makes_the_ids_and_the_mask_of_training(
    bases: list[tuple[Tokenizer, Path]], conversation: Conversation
) -> None:
    for tokenizer, folder in bases:
        assert_served_as_trained(conversation, tokenizer, folder)


@pytest.mark.slow
@settings(max_examples=10_000)
@given(conversation=tool_conversations(), chosen=st.integers(0, 5))
def test_transformers_makes_them_of_ten_thousand_conversations(
    bases: list[tuple[Tokenizer, Path]], conversation: Conversation, chosen: int
) -> None:
    assert_served_as_trained(conversation, *bases[chosen])


@pytest.mark.parametrize("default", [False, True])
def test_open_thinking_is_enable_thinkings_other_name(
    default: bool, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    save_tokenizer(tmp_path, tokenizer.with_framing(True, default))
    other = theirs(tmp_path)
    loaded = Tokenizer.load(tmp_path)
    assert (loaded.framed, loaded.thinking) == (True, default)
    ends = {True: "<think>\n", False: "<think>\n\n</think>\n\n"}
    for options, on in (
        ({}, default),
        ({"open_thinking": True}, True),
        ({"open_thinking": False}, False),
        ({"enable_thinking": False, "open_thinking": True}, False),
        ({"enable_thinking": None}, default),
    ):
        prompt = other.apply_chat_template(
            [user("x")], tokenize=False, add_generation_prompt=True, **options
        )
        assert prompt == f"<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n{ends[on]}"


def test_clients_may_send_old_reasoning_or_the_answers_text_as_it_was_written(
    bases: list[tuple[Tokenizer, Path]],
) -> None:
    _, folder = bases[1]
    whole = ROWS["3 reasoning in two turns"]["messages"]
    texts = [
        theirs(folder).apply_chat_template(messages, tokenize=False)
        for messages in (
            whole,
            [whole[0], says("2."), *whole[2:]],
            [*whole[:3], says("<think>\nAgain.\n</think>\n\n3.")],
        )
    ]
    golden = GOLDENS["3 reasoning in two turns"][1].replace("⟦", "").replace("⟧", "")
    assert [text.replace("\n", "⏎") for text in texts] == [golden] * 3


# Spellings


@given(conversation=tool_conversations(reasoning=False), data=st.data())
def test_both_spellings_of_arguments_give_the_same_ids(
    conversation: Conversation, data: st.DataObject, tokenizer: Tokenizer
) -> None:
    rows = []
    for spell in (lambda x: x, lambda x: json.dumps(x, ensure_ascii=data.draw(st.booleans()))):
        turns = as_client(conversation.messages)
        for turn in turns:
            for one in turn.get("tool_calls", []):
                one["function"] = {
                    **one["function"],
                    "arguments": spell(one["function"]["arguments"]),
                }
        rows.append({"messages": turns, "tools": spell(list(conversation.tools))})
    first, second = (encode_conversation(parse_conversation(row), tokenizer) for row in rows)
    assert first == second


# Mutants: each breaks what one test above holds


MUTANTS = {
    "train <think>": lambda segments: [
        s._replace(weight=1.0) if s.text == "<think>" else s for s in segments
    ],
    "drop </think>": lambda segments: [s for s in segments if s.text != "</think>"],
    "results outside a user turn": lambda segments: [
        s._replace(text="tool\n") if s.text == "user\n" and after.text == "<tool_response>" else s
        for s, after in pairwise([*segments, Segment("")])
    ],
    "reorder calls": lambda segments: segments,
    "keep old reasoning": lambda segments: segments,
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_fails_a_golden(
    name: str, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = chatml._answer

    def answer(message: Message, weight: float, framed: bool, shown: bool) -> Any:
        if name == "reorder calls":
            message = replace(message, calls=message.calls[::-1])
        if name == "keep old reasoning":
            shown = True
        return original(message, weight, framed, shown)

    monkeypatch.setattr(chatml, "_answer", answer)
    real = chatml.render
    monkeypatch.setitem(globals(), "render", lambda *a, **o: MUTANTS[name](real(*a, **o)))
    texts = {golden: rendered(ROWS[golden], "not framed" not in golden) for golden in GOLDENS}
    assert texts != GOLDENS


# What users type


@given(
    text=plain_texts(),
    tag=st.sampled_from(TAGS),
    role=st.sampled_from(["user", "system", "tool"]),
)
def test_a_tag_in_the_text_of_others_stays_text(
    text: str, tag: str, role: str, tokenizer: Tokenizer
) -> None:
    content = f"{text}{tag}x"
    turns = [user("a"), says("b")]
    at = {"system": 0, "user": 1, "tool": 2}[role]
    turns.insert(at, {"role": role, "content": content})
    row = parse_conversation({"messages": turns, "tools": [WEATHER]})
    assert row.messages[at].content == content
    assert f"{tag} in a text as text" in row.read_as
    ids = encode_conversation(row, tokenizer).input_ids
    turns[at] = {"role": role, "content": "x"}
    without = encode_conversation({"messages": turns, "tools": [WEATHER]}, tokenizer).input_ids
    id = tokenizer.encode_control(tag)
    assert ids.count(id) == without.count(id)


# The base


def test_a_base_without_the_tags_gets_those_that_are_used_in_spare_slots(tmp_path: Path) -> None:
    base = Tokenizer.load(write_llama3(tmp_path / "base"))
    row = parse_conversation(ROWS["6 reasoning in a tool loop"])
    with pytest.raises(MissingTagsError, match=r"lacks </think> .*use tokenizer.with_tags") as e:
        encode_conversation(row, base)
    assert e.value.tags == list(TAGS[1:])  # it has <think>
    grown = base.with_tags(TAGS[:2])
    assert grown.vocab_size == base.vocab_size
    assert (grown.bos_id, grown.pad_id, grown.stop_ids) == (base.bos_id, base.pad_id, base.stop_ids)
    assert not grown.has_control("<tool_call>")
    assert grown.encode("<think> 안녕") == base.encode("<think> 안녕")
    grown.save(tmp_path / "saved")
    again = Tokenizer.load(tmp_path / "saved")
    assert again.fingerprint == grown.fingerprint
    assert again.encode_control("<think>") == grown.encode_control("<think>")
    assert base.with_tags([]) is base


# Errors


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({"framed": False}, "there is reasoning, and framed is False; leave framed out"),
        ({}, "several of the user's turns, so that it becomes several rows; encode each of"),
    ],
)
def test_what_one_example_cannot_train_is_refused(
    options: dict[str, bool], fact: str, tokenizer: Tokenizer
) -> None:
    with pytest.raises(DataError, match=fact):
        encode_conversation(ROWS["3 reasoning in two turns"], tokenizer, **options)


def test_reasoning_without_a_frame_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="messages: have reasoning; render them framed"):
        render([Message("assistant", "2.", reasoning="Add.")])
    with pytest.raises(ValueError, match="thinking is True, and this model wasn't trained to"):
        encode_prompt([user("x")], tokenizer, thinking=True)
