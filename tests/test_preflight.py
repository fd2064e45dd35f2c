"""Each check passes on sound data and fails, with the consequence named, on what it is for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from tokenizers import normalizers

from minimind.data import chatml, masking
from minimind.data.build import DataOptions, DataReport
from minimind.data.conversation import Conversation, Message
from minimind.data.dataset import Dataset
from minimind.data.masking import encode_rows, truncate
from minimind.inspect import survey as survey_module
from minimind.inspect.preflight import Check, _some_answers, check_data
from minimind.inspect.survey import decoding_mismatch, survey
from minimind.model.pretrained import BASE
from minimind.tokenizer import Tokenizer
from tests.support.strategies import conversations
from tests.support.tokenizers_of_bases import write_llama2_json, write_llama3, write_sentencepiece

TOKENIZER = Tokenizer.load(BASE)
DECODING = "trained ids decode to the assistant's words and end tokens"
SUPERVISION = "answers are left to train on"
STOP = "the saved model stops where answers end"
TEMPLATE = "the saved chat template gives the ids of training"


def chat(*turns: str, line: int = 1) -> Conversation:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return Conversation(tuple(messages), "messages", "data.jsonl", line)


ROWS = [
    chat("안녕? <|im_end|>", "안녕하세요!"),
    chat("1 + 1 = ?", "2.", "Sure?", "Yes.", line=2),
    chat("Story!", "Once upon a time. " * 60, line=3),
    chat("Only a question.", line=4),
]
OPTIONS = DataOptions(max_length=100)


def check(
    tokenizer: Tokenizer, rows: list[Conversation] = ROWS, options: DataOptions = OPTIONS
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
    )
    found = survey(rows, tokenizer, options)
    return {check.name: check for check in check_data(found, report, tokenizer)}


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
    assert list(checks) == [DECODING, SUPERVISION, STOP, TEMPLATE]
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


@pytest.mark.parametrize("row", [ROWS[2], ROWS[3]])
def test_data_without_anything_to_train_on_is_found(tokenizer, row) -> None:
    checks = check(tokenizer, rows=[row])
    assert failed(checks) == {SUPERVISION}
    assert checks[SUPERVISION].consequence == "there is nothing to train"


def test_what_truncation_takes_is_reported(tokenizer) -> None:
    lost = len(tokenizer.encode("Once upon a time. " * 60)) + 1
    assert check(tokenizer)[SUPERVISION].fact == (
        "2 of 4 rows are trained; 1 have no answer, 1 are too long; "
        f"truncation takes {lost} supervised tokens from 1 rows"
    )


def test_a_wrong_stop_token_is_found(tokenizer, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "stop_ids", (0,))
        checks = check(tokenizer)
        assert STOP in failed(checks)
        assert "would not stop the model" in checks[STOP].consequence
    monkeypatch.setattr(tokenizer, "pad_id", tokenizer.end_id)
    checks = check(tokenizer)
    assert STOP in failed(checks)
    assert "pad_token_id 2 is among the stop tokens" in checks[STOP].fact


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("'\\n' }}{% endfor %}", "'' }}{% endfor %}"),
        ("assistant\\n' }}{% endif %}", "assistant' }}{% endif %}"),
    ],
    ids=["row", "prompt"],
)
def test_a_template_that_gives_other_ids_is_found(tokenizer, monkeypatch, old, new) -> None:
    pytest.importorskip("transformers")
    other = chatml.CHAT_TEMPLATE.replace(old, new)
    assert other != chatml.CHAT_TEMPLATE
    monkeypatch.setattr("minimind.model.pretrained.CHAT_TEMPLATE", other)
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
