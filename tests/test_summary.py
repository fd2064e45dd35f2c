"""What a person reads before and after a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.cli.summary import describe_folder, describe_plan, describe_rows, describe_tokens
from minimind.data.build import DataReport
from minimind.data.dataset import Dataset, Example
from minimind.data.masking import encode_conversation
from minimind.data.plan import make_steps
from minimind.data.show import GREEN, RESET, show_row
from minimind.inspect.lengths import count_lengths, draw_lengths
from minimind.inspect.tokens import show_tokens
from minimind.pretrain.corpus import CorpusReport
from minimind.pretrain.summary import describe_corpus, describe_mix
from minimind.sft.record import loss_plot
from minimind.tokenizer import Tokenizer
from minimind.training.run_folder import bytes_of

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
    assert "truncated: 3 rows lose 70 supervised tokens (1 of them are dropped)" in text
    trained = 4 * sum(encode_conversation(CHAT, tokenizer).loss_mask)
    assert f"training: 4 rows, {4 * len(dataset[0])} tokens, {trained} supervised" in text
    assert "validation: 1 rows" in text


LOST = "truncated: 3 rows lose 70 supervised tokens (1 of them are dropped)"


@pytest.mark.parametrize(
    ("rows", "supervised", "context", "before", "after"),
    [
        (200, 9000, None, "", "; raise --max-length to keep them"),
        (200, 9000, 64, "", "; raise --max-length to keep them, up to the model's context of 64"),
        (
            *(150, 9000, 4096, "warning: "),
            ", 2% of the rows and 1% of the tokens; --max-length 2345 keeps 99% of both",
        ),
        (
            *(200, 1000, None, "warning: "),
            ", 2% of the rows and 7% of the tokens; --max-length 2345 keeps 99% of both",
        ),
        (
            *(12, 70, 1024, "warning: "),
            ", 30% of the rows and 50% of the tokens; 99% of both take --max-length 2345 and a "
            "--model that reads as much: this one's context is 1,024",
        ),
    ],
)
def test_a_loss_to_length_above_2_percent_is_a_warning_with_the_length_that_helps(
    rows: int, supervised: int, context: int | None, before: str, after: str
) -> None:
    report = DataReport(rows=rows, supervised=supervised, truncated=3, dropped_long=1)
    report.tokens_lost, report.unsupervised, report.suggested_max_length = 70, 2, 2345
    assert describe_rows(report, Path("rejected.jsonl"), context)[-1] == before + LOST + after


@pytest.mark.parametrize("max_length", [5, 64, 100, 300])
def test_every_row_is_drawn_once_by_its_length(max_length: int) -> None:
    lengths = [1, 5, 6, 64, 65, 90, 100, 100]
    counts = count_lengths(lengths, max_length)
    assert sum(count for *_, count in counts) == len(lengths)
    for low, high, count in counts:
        assert count == sum(low <= length <= high for length in lengths)
        assert high <= max_length or low == max_length + 1  # no span crosses the line
    drawn = [line for line in draw_lengths(lengths, max_length) if "--max-length" in line]
    assert len(drawn) == (max_length < max(lengths))


def test_of_no_rows_no_lengths_are_drawn() -> None:
    assert count_lengths([], 512) == []


def test_the_loss_is_drawn_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the plot extra isn't installed: loss.png not checked")
    metrics = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 2.0}, {"step": 1, "validation_loss": 2.5}]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    loss_plot(metrics, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_what_became_of_documents_is_counted_and_what_was_not_looked_for_is_said() -> None:
    report = CorpusReport(documents=10, kept=6, empty=1, duplicates=2, near_duplicates=1)
    assert describe_corpus(report) == [
        "documents: 10 read, 6 kept; left out: 1 empty, 2 duplicates, 1 near duplicates"
    ]
    report.near_duplicates = None
    counted, missing = describe_corpus(report)
    assert counted.endswith("left out: 1 empty, 2 duplicates")
    assert missing.startswith("near duplicates: not checked (needs datasketch")


def test_the_mix_is_told_as_planned_and_as_asked() -> None:
    rows = Dataset.from_examples([Example([1, 2, 3], [False, True, True])] * 6)
    rows.columns["file"][:] = [0, 0, 0, 0, 1, 1]
    plan = make_steps(rows, tokens_per_step=4)
    assert describe_mix(plan, ["a", "b", "c"]) == [
        "a: 8 tokens, 1.00 times its text, 66.67% of the training",
        "b: 4 tokens, 1.00 times its text, 33.33% of the training",
        "c: 0 tokens, 0.00 times its text, 0.00% of the training",
    ]
    mixed = make_steps(rows, tokens_per_step=4, mix=[1, 1])
    assert describe_mix(mixed, ["a", "b"])[1] == (
        "b: 6 tokens, 1.50 times its text, 50.00% of the training, 50.00% requested"
    )


def test_what_a_runs_folder_takes_is_said_with_what_may_be_deleted(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "tensors").write_bytes(bytes(3_000_000))
    (tmp_path / "weights").write_bytes(bytes(1_000_000))
    (tmp_path / "checkpoints" / "link").hardlink_to(tmp_path / "weights")  # takes nothing more
    assert bytes_of(tmp_path) == 4_000_000
    words = f"{tmp_path} takes 4.0 MB, 3.0 MB of it in checkpoints/"
    assert describe_folder(tmp_path, finished=False) == f"{words}, which resuming needs"
    end = "; delete checkpoints/ unless you add epochs, and last/ if unused"
    assert describe_folder(tmp_path, finished=True) == words + end
