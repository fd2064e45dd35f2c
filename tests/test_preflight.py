"""Each check passes on sound data and fails, with the consequence named, on what it is for."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import normalizers

from minimind.data import masking
from minimind.data.build import DataOptions, DataReport, count_spelled
from minimind.data.conversation import Conversation, Message, parse_conversation
from minimind.data.dataset import Dataset
from minimind.data.masking import encode_rows, truncate
from minimind.data.rounds import split_rounds
from minimind.data.template import CHAT_TEMPLATE, chat_template
from minimind.inspect import preflight
from minimind.inspect import survey as survey_module
from minimind.inspect.preflight import Check, _some_answers, check_data
from minimind.inspect.survey import decoding_mismatch, survey
from minimind.model.pretrained import BASE, save_tokenizer
from minimind.tokenizer import Tokenizer
from tests.support.strategies import conversations
from tests.support.tokenizers_of_bases import (
    edit_json,
    write_llama2_json,
    write_llama3,
    write_sentencepiece,
)

TOKENIZER = Tokenizer.load(BASE)
DECODING = "trained ids decode to the assistant's words and end tokens"
USABLE = "every row can be used"
KEYS = "what messages say is read"
SUPERVISION = "answers are left to train on"
LENGTHS = "few rows are too long"
STOP = "the saved model stops where answers end"
SPELLED = "at most 1% of answers spell the base's tokens"
TEMPLATE = "the saved tokenizer and chat template give the ids and the mask of training"


def chat(*turns: str, line: int = 1) -> Conversation:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return Conversation(tuple(messages), "messages", "data.jsonl", line)


ROWS = [
    chat("안녕? <|im_end|>", "안녕하세요!"),
    chat("1 + 1 = ?", "2.", "Sure?", "Yes.", line=2),
    chat("Story!", "Once upon a time. " * 60, line=3),
    chat("Only a question.", line=4),
]
OPTIONS = DataOptions(max_length=2000)
SHORT = DataOptions(max_length=100)  # too short for the story


def check(
    tokenizer: Tokenizer,
    rows: list[Conversation] = ROWS,
    options: DataOptions = OPTIONS,
    model_type: str | None = None,
) -> dict[str, Check]:
    """All checks by name, on rows as `build_dataset` counts them."""
    encoded = list(encode_rows(rows, tokenizer, train_on=options.train_on))
    before = [sum(row.loss_mask) for row in encoded]
    cut = [truncate(row, options.max_length, tokenizer, options.truncation) for row in encoded]
    after = [sum(row.loss_mask) for row in cut]
    report = DataReport(
        rows=len(rows),
        kept=sum(count > 0 for count in after),
        unsupervised=before.count(0),
        truncated=sum(a < b for a, b in zip(after, before, strict=True)),
        dropped_long=sum(a == 0 < b for a, b in zip(after, before, strict=True)),
        tokens_lost=sum(before) - sum(after),
        supervised=sum(after),
    )
    for row in rows:
        count_spelled(row, tokenizer, options.train_on, report)
        report.count_keys(len(row.messages), row.unread, row.read_as)
    found = survey(rows, tokenizer, options)
    return {check.name: check for check in check_data(found, report, tokenizer, model_type)}


def failed(checks: dict[str, Check]) -> set[str]:
    for found in checks.values():
        assert bool(found.consequence) == (found.outcome == "failed")
    return {name for name, found in checks.items() if found.outcome == "failed"}


@pytest.mark.parametrize("train_on", ["all", "last"])
@pytest.mark.parametrize("truncation", ["turns", "tokens", "drop"])
def test_sound_data_passes_every_check(tokenizer, train_on, truncation) -> None:
    pytest.importorskip("transformers")
    options = replace(OPTIONS, train_on=train_on, truncation=truncation)
    checks = check(tokenizer, options=options)
    assert {found.outcome for found in checks.values()} == {"passed"}
    assert list(checks) == [DECODING, USABLE, KEYS, SUPERVISION, SPELLED, LENGTHS, STOP, TEMPLATE]
    assert checks[DECODING].fact == "4 rows"


@pytest.mark.parametrize("write", [write_llama3, write_llama2_json])
def test_sound_data_passes_with_other_bases_tokenizers(tmp_path, write) -> None:
    pytest.importorskip("transformers")
    checks = check(Tokenizer.load(write(tmp_path)))
    assert {found.outcome for found in checks.values()} == {"passed"}


@settings(max_examples=60)
@given(conversations())
def test_whatever_a_legal_row_says_our_tokenizer_gives_it_back(row: Conversation) -> None:
    (example,) = encode_rows([row], TOKENIZER)
    assert decoding_mismatch(row, example, TOKENIZER, "all") is None


def test_a_tokenizer_that_changes_text_is_found(tmp_path) -> None:
    """One that lower-cases, as some bases' do."""
    from tokenizers import Tokenizer as Backend

    path = write_llama3(tmp_path) / "tokenizer.json"
    backend = Backend.from_file(str(path))
    backend.normalizer = normalizers.Lowercase()
    backend.save(str(path))
    found = check(Tokenizer.load(tmp_path))[DECODING]
    assert found.outcome == "failed"
    assert found.fact == (
        "2 of 4 rows don't; data.jsonl:2: "
        "trains '2.<|im_end|>yes.<|im_end|>' where the assistant says '2.<|im_end|>Yes.<|im_end|>'"
    )
    assert found.consequence == "the model would learn other text than the data has"


def test_a_tokenizer_that_can_not_write_a_word_is_found(tmp_path) -> None:
    base = write_sentencepiece(tmp_path, byte_fallback=False, vocab_size=200)
    checks = check(Tokenizer.load(base), [chat("hello", "the뷁")])
    assert DECODING in failed(checks)
    assert "<unk>" in checks[DECODING].fact


def wrong(change: Callable[[Dataset], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Encode rows wrongly for the survey."""

    def encode(*arguments: object, **options: object) -> Dataset:
        rows = masking.encode_rows(*arguments, **options)
        change(rows)
        return rows

    monkeypatch.setattr(survey_module, "encode_rows", encode)


def test_training_the_users_words_is_found(tokenizer, monkeypatch) -> None:
    def train_everything(rows: Dataset) -> None:
        rows.loss_mask[:] = True

    wrong(train_everything, monkeypatch)
    checks = check(tokenizer)
    assert failed(checks) == {DECODING}
    assert checks[DECODING].fact.startswith(
        "4 of 4 rows don't; data.jsonl:1: trains '<|im_start|>user"
    )


def test_an_end_that_is_not_trained_is_found(tokenizer, monkeypatch) -> None:
    def without_ends(rows: Dataset) -> None:
        rows.loss_mask[rows.input_ids == tokenizer.end_id] = False

    wrong(without_ends, monkeypatch)
    checks = check(tokenizer)
    assert failed(checks) == {DECODING}
    assert "trains '안녕하세요!' where the assistant says '안녕하세요!<|im_end|>'" in (
        checks[DECODING].fact
    )


@pytest.mark.parametrize(("row", "also"), [(ROWS[2], {LENGTHS}), (ROWS[3], set())])
def test_data_without_anything_to_train_on_is_found(tokenizer, row, also) -> None:
    checks = check(tokenizer, rows=[row], options=SHORT)
    assert failed(checks) == {SUPERVISION} | also
    assert checks[SUPERVISION].consequence == "there is nothing to train"


def test_what_truncation_takes_is_reported(tokenizer) -> None:
    lost = len(tokenizer.encode("Once upon a time. " * 60)) + 1
    assert check(tokenizer, options=SHORT)[SUPERVISION].fact == (
        "2 of 4 rows are trained; 1 have no answer, 1 are too long; "
        f"truncation takes {lost} supervised tokens from 1 rows"
    )


def saved_with(monkeypatch: pytest.MonkeyPatch, file: str, **changes: object) -> None:
    """Save a tokenizer, and then something else in one of its files."""

    def save(folder: str, tokenizer: Tokenizer) -> None:
        save_tokenizer(folder, tokenizer)
        edit_json(Path(folder) / file, **changes)

    monkeypatch.setattr(preflight, "save_tokenizer", save)


@pytest.mark.parametrize(
    ("counts", "outcome"),
    [
        ({"rows": 100, "truncated": 2, "supervised": 980, "tokens_lost": 20}, "passed"),
        ({"rows": 100, "truncated": 3, "supervised": 990, "tokens_lost": 10}, "failed"),
        ({"rows": 100, "truncated": 1, "supervised": 979, "tokens_lost": 21}, "failed"),
        ({"rows": 0}, "passed"),
    ],
)
def test_more_than_2_percent_lost_to_length_is_found(tokenizer, counts, outcome) -> None:
    checks = {
        c.name: c
        for c in check_data(survey([], tokenizer, OPTIONS), DataReport(**counts), tokenizer)
    }
    assert checks[LENGTHS].outcome == outcome
    if outcome == "failed":
        assert "supervised tokens to --max-length" in checks[LENGTHS].fact
        assert checks[LENGTHS].consequence == "the model would not learn what is there"


def test_bad_rows_are_found(tokenizer) -> None:
    report = DataReport(rows=98, kept=98)
    report.bad.update({"bad_json": 1, "untrained_key": 2})
    checks = {c.name: c for c in check_data(survey([], tokenizer, OPTIONS), report, tokenizer)}
    assert checks[USABLE].outcome == "failed"
    assert checks[USABLE].fact == "bad rows: 2 untrained_key, 1 bad_json"
    assert checks[USABLE].consequence == "what they say is not trained"


@pytest.mark.parametrize(
    ("value", "messages", "fails"),
    [
        *(("x", 2, False), ("x", 3, True), (False, 3, True), ([{"a": "x"}], 3, True)),
        *((7, 200, False), ({"a": [1.5]}, 200, False), (None, 200, False), ("", 200, False)),
    ],
)
def test_a_key_of_messages_that_says_something_and_is_not_read_is_found(
    tokenizer, value, messages, fails
) -> None:
    turns = [{"role": ("user", "assistant")[n % 2], "content": "x"} for n in range(200)]
    for message in turns[:messages]:
        message["mood"] = value
    row = parse_conversation({"messages": turns, "mood": "x"}, path="data.jsonl", line=1)
    checks = check(tokenizer, [row])
    assert failed(checks) == ({KEYS} if fails else set())
    if fails:
        told = f"mood ({messages}); in {messages} of 200 messages"
        assert checks[KEYS].fact == f"not read, with text or booleans in them: {told}"
        assert "--ignore-keys says that this is meant" in checks[KEYS].consequence


@pytest.mark.parametrize(("messages", "fails"), [(2, False), (3, True), (30, True)])
@pytest.mark.parametrize("keys", [1, 2])
def test_keys_of_any_names_count_together_and_each_message_once(
    tokenizer, messages, fails, keys
) -> None:
    """Each key is in one message alone, far below 1%."""
    rows = []
    for number in range(100):
        extra = {f"thought_{number}_{key}": "Hm." for key in range(keys)}
        answer = {"role": "assistant", "content": "b", "tokens": 7}
        answer |= extra if number < messages else {}
        row = {"messages": [{"role": "user", "content": "a"}, answer]}
        rows.append(parse_conversation(row, path="data.jsonl", line=number + 1))
    checks = check(tokenizer, rows)
    assert failed(checks) == ({KEYS} if fails else set())
    if fails:
        assert checks[KEYS].fact.endswith(f"; in {messages} of 200 messages")
        unnamed = messages * keys - 8
        assert (f", {unnamed} more; " in checks[KEYS].fact) == (unnamed > 0)


def test_a_wrong_stop_token_is_found(tokenizer, monkeypatch) -> None:
    saved_with(monkeypatch, "generation_config.json", eos_token_id=[0])
    checks = check(tokenizer)
    assert failed(checks) == {STOP}
    assert "would not stop the model" in checks[STOP].consequence
    saved_with(monkeypatch, "generation_config.json", pad_token_id=tokenizer.end_id)
    checks = check(tokenizer)
    assert failed(checks) == {STOP}
    assert "pad_token_id 2 is among the stop tokens" in checks[STOP].fact


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"pad_token": "<|im_end|>"}, r"the BOS, end and padding \(None, 2, 2\), and training"),
        ({"eos_token": "<|endoftext|>"}, r"padding \(None, 0, 3\), and training \(None, 2, 3\)"),
        ({"bos_token": "<think>"}, r"and training \(None, 2, 3\)"),
    ],
)
def test_tokens_with_a_role_that_differ_are_found(tokenizer, monkeypatch, changes, fact) -> None:
    saved_with(monkeypatch, "tokenizer_config.json", **changes)
    checks = check(tokenizer)
    assert failed(checks) == {TEMPLATE}
    assert re.search(fact, checks[TEMPLATE].fact)


def test_plain_text_that_gets_other_ids_is_found(tokenizer, monkeypatch) -> None:
    first = {"SpecialToken": {"id": "<think>", "type_id": 0}}
    puts = {
        "type": "TemplateProcessing",
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {"<think>": {"id": "<think>", "ids": [4], "tokens": ["<think>"]}},
    }
    saved_with(monkeypatch, "tokenizer.json", post_processor=puts)
    assert failed(check(tokenizer)) == {TEMPLATE}


def test_a_template_that_marks_something_else_is_found(tokenizer, monkeypatch) -> None:
    other = CHAT_TEMPLATE.replace("message['weight'] != 0", "message['weight'] == 0")
    monkeypatch.setattr("minimind.model.pretrained.chat_template", lambda *frame: other)
    checks = check(tokenizer)
    assert failed(checks) == {TEMPLATE}
    assert checks[TEMPLATE].fact == "data.jsonl:2: transformers gives another mask"


TOOL_ROWS = [
    {
        "messages": [
            {"role": "user", "content": "A?"},
            {
                "role": "assistant",
                "thinking": "Ask.",
                "tool_calls": [{"name": "f", "arguments": {}}],
            },
            {"role": "tool", "content": "1"},
            {"role": "assistant", "content": "1.", "thinking": "So."},
            {"role": "user", "content": "And?"},
            {"role": "assistant", "content": "2."},
        ],
        "tools": [{"name": "f"}],
    }
]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        ("(tool | tojson)", "(tool | tojson | upper)"),
        ('"arguments": ', '"parameters": '),
        ("\\n<tool_response>", "<tool_response>"),
        ("<think>\\n\\n", "<think>\\n"),
    ],
)
def test_rows_with_tools_and_reasoning_are_compared_too(tokenizer, monkeypatch, old, new) -> None:
    rows = [part for row in TOOL_ROWS for part in split_rounds(parse_conversation(row))]
    assert len(rows) == 2
    template = chat_template(True, False)
    other = template.replace(old, new) if old else template
    assert (other == template) is not bool(old)
    monkeypatch.setattr("minimind.model.pretrained.chat_template", lambda *frame: other)
    checks = check(tokenizer.with_framing(True, False), rows)
    assert failed(checks) == ({TEMPLATE} if old else set())
    assert checks[TEMPLATE].outcome == ("failed" if old else "passed")


def test_a_model_type_whose_tokenizers_transformers_makes_itself_is_found(tmp_path) -> None:
    """transformers 5 splits text in Qwen2's way for each qwen2 model, whatever its files say."""
    tokenizer = Tokenizer.load(write_llama3(tmp_path))
    rows = [chat("the fox", unicodedata.normalize("NFD", "안녕"))]  # Qwen2's makes it NFC
    assert failed(check(tokenizer, rows, model_type="llama")) == set()
    assert failed(check(tokenizer, rows, model_type="qwen2")) == {TEMPLATE}


def test_answers_that_spell_the_base_s_tokens_are_told_and_many_of_them_fail(tokenizer) -> None:
    """From the tokenizer's own list: `<unk>` is none of this one's."""
    think = chat("Why?", "<think>hm</think> So.", "And?", "<unk> [INST] <think>")
    other = chat("<think>", "No.")
    checks = check(tokenizer, [think, other])
    assert failed(checks) == {SPELLED}
    assert checks[SPELLED].fact == (
        "2 of 3 answers spell the base's tokens (2 <think>, 1 </think>)"
    )
    assert checks[SPELLED].consequence == (
        "they are trained as letters; the model learns to write those, not the base's tokens"
    )
    few = check(tokenizer, [chat("Why?", "<think>"), *[other] * 99])[SPELLED]
    assert (few.outcome, few.fact) == (
        "passed",
        "1 of 100 answers spell the base's tokens (1 <think>)",
    )
    unweighted = replace(think, messages=tuple(replace(m, weight=0.0) for m in think.messages))
    assert check(tokenizer, [unweighted])[SPELLED].outcome == "not checked"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{{ '<|im_end|>\\n' }}", "{{ '<|im_end|>' }}"),
        ("assistant\\n' }}\n{%- endif", "assistant' }}\n{%- endif"),
    ],
    ids=["row", "prompt"],
)
def test_a_template_that_gives_other_ids_is_found(tokenizer, monkeypatch, old, new) -> None:
    pytest.importorskip("transformers")
    other = CHAT_TEMPLATE.replace(old, new)
    assert other != CHAT_TEMPLATE
    monkeypatch.setattr("minimind.model.pretrained.chat_template", lambda *frame: other)
    checks = check(tokenizer)
    assert failed(checks) == {TEMPLATE}
    assert "transformers gives other ids" in checks[TEMPLATE].fact


def test_what_can_not_be_checked_is_not_passed(tokenizer, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = check(tokenizer)[TEMPLATE]
    assert (found.outcome, found.fact) == ("not checked", "transformers isn't installed")


def test_what_no_row_showed_is_not_passed(tokenizer) -> None:
    rows = [chat("What does <|im_end|> do?", "It ends a turn.")]
    assert check(tokenizer, rows)[TEMPLATE].outcome == "not checked"
    assert check(tokenizer, [])[DECODING].outcome == "not checked"


def test_a_tokenizer_that_transformers_can_not_use_is_reported(tokenizer, monkeypatch) -> None:
    transformers = pytest.importorskip("transformers")

    def fails(folder: Path) -> None:
        raise ImportError("requires jinja2")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fails)
    found = check(tokenizer)[TEMPLATE]
    assert found.outcome == "not checked"
    assert found.fact == "transformers can't use the tokenizer: requires jinja2"


@pytest.mark.parametrize("answers", [1, 2, 8, 9, 50, 2000])
def test_the_prompts_that_are_checked_grow_with_the_row_alone(answers: int) -> None:
    row = [Message(role, "a") for _ in range(answers) for role in ("user", "assistant")]
    turns = _some_answers(row)
    every = list(range(1, 2 * answers, 2))
    assert turns[:8] == every[:8]
    assert set(turns) <= set(every)
    assert turns[-1] == every[-1]
    assert sum(turns) <= 12 * len(row)
