"""Each check passes on sound data and fails, with the consequence named, on what it is for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from minimind.data import chatml, masking
from minimind.data.build import DataOptions, DataReport
from minimind.data.conversation import Conversation, Message
from minimind.data.dataset import Dataset, Example
from minimind.data.masking import encode_rows
from minimind.inspect import preflight
from minimind.inspect.preflight import ROW_CHECKS, Check, check_data
from minimind.inspect.survey import survey
from minimind.model.pretrained import BASE
from minimind.tokenizer import Tokenizer
from tests.support.strategies import conversations

TOKENIZER = Tokenizer.load(BASE)
TEMPLATE = "the saved chat template gives the ids of training"
MASK, STOP, PREFIX, CUT = (name for name, _, _ in ROW_CHECKS)


def chat(*turns: str, line: int = 1) -> Conversation:
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return Conversation(tuple(messages), "messages", "data.jsonl", line)


ROWS = [
    chat("안녕? <|im_end|>", "안녕하세요!"),
    chat("1 + 1 = ?", " 2.", "Sure?", "Yes.", line=2),
    chat("Story!", "Once upon a time. " * 60, line=3),
    chat("Only a question.", line=4),
]
OPTIONS = DataOptions(max_length=100)


def check(
    tokenizer: Tokenizer,
    rows: list[Conversation] = ROWS,
    options: DataOptions = OPTIONS,
    change: Callable[[DataReport], DataReport] = lambda report: report,
    dataset: Dataset | None = None,
) -> dict[str, Check]:
    """All checks by name, on rows as `build_dataset` makes a dataset of them."""
    found = survey(rows, tokenizer, options)
    encoded = encode_rows(rows, tokenizer, train_on=options.train_on)
    kept = [
        masking.truncate(row, options.max_length, tokenizer, options.truncation) for row in encoded
    ]
    kept = [row for row in kept if any(row.loss_mask)]
    report = DataReport(
        rows=len(rows),
        unsupervised=found.unsupervised,
        truncated=found.truncated,
        dropped_long=found.dropped_long,
        tokens_lost=found.tokens_lost,
    )
    dataset = Dataset.from_examples(kept) if dataset is None else dataset
    checks = check_data(rows, len(rows), dataset, change(report), found, tokenizer, options)
    return {check.name: check for check in checks}


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
    assert len(checks) == 8
    assert checks[MASK].fact == "4 rows"


@settings(max_examples=60)
@given(conversations())
def test_whatever_a_legal_row_says_no_check_of_rows_fails(row: Conversation) -> None:
    (example,) = encode_rows([row], TOKENIZER)
    for name, row_check, _ in ROW_CHECKS:
        assert row_check(row, example, TOKENIZER, OPTIONS) is None, name


def changed(monkeypatch, change: Callable[[Dataset], None]) -> None:
    """Let rows be encoded wrongly for the checks."""

    def encode(*arguments: object, **options: object) -> Dataset:
        rows = masking.encode_rows(*arguments, **options)
        change(rows)
        return rows

    monkeypatch.setattr(preflight, "encode_rows", encode)


def test_training_the_users_words_is_found(tokenizer, monkeypatch) -> None:
    def train_everything(rows: Dataset) -> None:
        rows.loss_mask[:] = True

    changed(monkeypatch, train_everything)
    checks = check(tokenizer)
    assert MASK in failed(checks)
    assert checks[MASK].fact.startswith("data.jsonl:1: trained is ")
    assert "speak as the user" in checks[MASK].consequence


def test_an_end_that_is_not_trained_is_found(tokenizer, monkeypatch) -> None:
    def without_ends(rows: Dataset) -> None:
        rows.loss_mask[rows.input_ids == tokenizer.end_id] = False

    changed(monkeypatch, without_ends)
    checks = check(tokenizer)
    assert {MASK, STOP} <= failed(checks)
    assert checks[STOP].fact == "data.jsonl:1: 1 trained answers have 0 trained end tokens"
    assert "would not stop" in checks[STOP].consequence


def test_a_prompt_in_other_ids_is_found(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "encode_prompt", lambda *_: [99, 98])
    checks = check(tokenizer)
    assert failed(checks) == {PREFIX}
    assert "the prompt before message 2 has other ids" in checks[PREFIX].fact


def test_a_second_beginning_of_text_is_found(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(tokenizer, "bos_id", tokenizer.start_id)  # stands in each turn
    checks = check(tokenizer)
    assert PREFIX in failed(checks)
    assert "tokens that begin a text" in checks[PREFIX].fact


def test_an_invented_end_after_a_cut_is_found(tokenizer, monkeypatch) -> None:
    def invents(example, *arguments):
        cut = masking.truncate(example, *arguments)
        return Example([*list(cut.input_ids)[:-1], tokenizer.end_id], cut.loss_mask)

    monkeypatch.setattr(preflight, "truncate", invents)
    checks = check(tokenizer, options=replace(OPTIONS, truncation="tokens"))
    assert failed(checks) == {CUT}
    assert "stop in the middle" in checks[CUT].consequence


def test_too_much_left_after_a_cut_is_found(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "truncate", lambda example, *_: example)
    checks = check(tokenizer)
    assert "more than --max-length 100" in checks[CUT].fact


def test_data_without_anything_to_train_on_is_found(tokenizer) -> None:
    checks = check(tokenizer, rows=[chat("Only a question.")])
    name = "every row has something to train on"
    assert failed(checks) == {name}
    assert checks[name].consequence == "there is nothing to train"


def test_a_row_without_anything_to_train_on_is_found(tokenizer) -> None:
    dataset = encode_rows(ROWS[:2], tokenizer)
    dataset.table.columns["supervised"][1] = np.uint32(0)
    checks = check(tokenizer, dataset=dataset)
    name = "every row has something to train on"
    assert failed(checks) == {name}
    assert "NaN" in checks[name].consequence


def test_a_loss_that_is_not_reported_is_found(tokenizer) -> None:
    checks = check(tokenizer, change=lambda report: replace(report, tokens_lost=0))
    name = "truncation is reported in full"
    assert failed(checks) == {name}
    assert "counted again" in checks[name].fact


def test_a_wrong_stop_token_is_found(tokenizer, monkeypatch) -> None:
    name = "the saved model stops where answers end"
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "stop_ids", (0,))
        checks = check(tokenizer)
        assert name in failed(checks)
        assert "talk on" in checks[name].consequence
    monkeypatch.setattr(tokenizer, "pad_id", tokenizer.end_id)
    checks = check(tokenizer)
    assert name in failed(checks)
    assert "pad_token_id 2 is among the stop tokens" in checks[name].fact


def test_a_template_that_gives_other_ids_is_found(tokenizer, monkeypatch) -> None:
    pytest.importorskip("transformers")
    other = chatml.CHAT_TEMPLATE.replace("'\\n' }}{% endfor %}", "'' }}{% endfor %}")
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
    pytest.importorskip("transformers")
    rows = [chat("What does <|im_end|> do?", "It ends a turn.")]
    assert check(tokenizer, rows)[TEMPLATE].outcome == "not checked"
    nothing = check(tokenizer, [])
    assert {nothing[name].outcome for name in (MASK, STOP, PREFIX, CUT)} == {"not checked"}


def test_a_package_that_transformers_needs_is_told(tokenizer, monkeypatch) -> None:
    pytest.importorskip("transformers")

    def lacking(*_: object) -> None:
        raise ImportError("apply_chat_template requires jinja2")

    monkeypatch.setattr(preflight, "_render", lacking)
    found = check(tokenizer)[TEMPLATE]
    assert found.outcome == "not checked"
    assert "lacks a package: apply_chat_template requires jinja2" in found.fact


def test_many_rows_are_sampled_and_it_is_said(tokenizer, monkeypatch) -> None:
    monkeypatch.setattr(preflight, "SAMPLE_ROWS", 2)
    assert check(tokenizer)[MASK].fact == "2 rows, drawn from 4"
