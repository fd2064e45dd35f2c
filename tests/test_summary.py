"""What a person reads before and after a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.data.dataset import DataReport, Dataset
from minimind.data.masking import encode_conversation
from minimind.data.packing import make_steps
from minimind.summary import (
    GREEN,
    RESET,
    describe_plan,
    describe_rows,
    describe_tokens,
    loss_plot,
    prompt_of,
    show_row,
    show_tokens,
)
from minimind.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "안녕하세요!"}]


def test_the_shown_row_marks_just_the_trained_span(tokenizer: Tokenizer) -> None:
    example = encode_conversation(CHAT, tokenizer)
    prompt, answer = (
        "<|im_start|>user\n안녕?<|im_end|>\n<|im_start|>assistant\n",
        "안녕하세요!<|im_end|>",
    )
    assert show_row(example, tokenizer, colour=False) == f"{prompt}⟦{answer}⟧\n"
    assert show_row(example, tokenizer, colour=True) == f"{prompt}{GREEN}{answer}{RESET}\n"


def test_every_token_is_shown_with_its_border_and_where_truncation_cuts(tokenizer) -> None:
    example = encode_conversation(CHAT, tokenizer)
    kept = len(example) - 2  # without <|im_end|> and the newline after it
    shown = show_tokens(example, kept, tokenizer, colour=False)
    assert shown.endswith("│✂⟧<|im_end|>│⏎\n")
    assert shown.count("│") == len(example) - 1
    assert (shown.count("⟦"), shown.count("⟧"), shown.count("✂")) == (1, 1, 1)


def test_a_terminal_is_not_disturbed_by_what_a_row_says(tokenizer) -> None:
    chat = [{"role": "user", "content": "\x1b[2J\x07"}, {"role": "assistant", "content": "ok"}]
    shown = show_tokens(encode_conversation(chat, tokenizer), 99, tokenizer, colour=False)
    assert "\\x1b" in shown
    assert not {"\x1b", "\x07"} & set(shown)


def test_the_prompt_of_a_row_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    example = encode_conversation(CHAT, tokenizer)
    assert tokenizer.decode(prompt_of(example)).endswith("<|im_start|>assistant\n")


def test_the_summary_names_every_loss(tokenizer: Tokenizer) -> None:
    dataset = Dataset.from_examples([encode_conversation(CHAT, tokenizer)] * 4)
    report = DataReport(rows=9, kept=4, unsupervised=2, truncated=3, dropped_long=1, tokens_lost=70)
    report.shapes["messages"] = 9
    report.bad["unknown_role"] = 5
    report.turns["trailing_prompt"] = 2
    steps = make_steps(dataset, tokens_per_step=30, epochs=2)
    lines = describe_rows(report, Path("rejected.jsonl"))
    lines += [*describe_tokens(dataset, dataset.select([0])), describe_plan(steps)]
    text = "\n".join(lines)
    assert "rows: 9 read (9 messages)" in text
    assert "rejected: 5 unknown_role; listed in rejected.jsonl" in text
    assert "unusual turns, kept: 2 trailing_prompt" in text
    assert "dropped: 2 rows with nothing to train on" in text
    assert "truncated: 3 rows lose 70 supervised tokens (1 of them wholly)" in text
    trained = 4 * sum(encode_conversation(CHAT, tokenizer).loss_mask)
    assert f"training: 4 rows, {4 * len(dataset[0])} tokens, {trained} supervised" in text
    assert "validation: 1 rows" in text


def test_the_loss_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra isn't installed: loss.png not checked")
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 2.0}, {"step": 1, "validation_loss": 2.5}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss_plot(metrics, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
