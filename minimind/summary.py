"""Say in words and pictures what a run trains and what came of it. Prints nothing itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.conversation import printable
from minimind.data.corpus import CorpusReport
from minimind.data.dataset import REJECTED, DataReport, Dataset
from minimind.data.masking import Example
from minimind.data.packing import Steps
from minimind.data.selection import Selection
from minimind.tokenizer import Tokenizer

GREEN, RESET = "\033[32m", "\033[0m"
BARS, WIDTH = 10, 30  # of a drawing of lengths, in lines and in characters


def describe_rows(report: DataReport, rejected: Path) -> list[str]:
    """What became of the rows of the files."""
    counts = ", ".join(f"{count:,} {shape}" for shape, count in report.shapes.most_common())
    lines = [f"rows: {report.rows:,} read ({counts})"]
    if report.bad:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.bad.most_common())
        lines.append(f"rejected: {kinds}; listed in {rejected}")
    if report.turns:
        kinds = ", ".join(f"{count:,} {name}" for name, count in report.turns.most_common())
        lines.append(f"unusual turns, kept: {kinds}")
    if report.unsupervised:
        lines.append(f"dropped: {report.unsupervised:,} rows with nothing to train on")
    if report.truncated:
        lines.append(
            f"truncated: {report.truncated:,} rows lose {report.tokens_lost:,} supervised tokens "
            f"({report.dropped_long:,} of them wholly); raise --max-length to keep them"
        )
    return lines


def describe_selection(selection: Selection, val_data: str | None) -> list[str]:
    """What became of all files' rows."""
    lines = [
        line
        for source in selection.sources
        for line in describe_rows(source.report, source.folder / REJECTED)
    ]
    if selection.removed:
        lines.append(
            f"{selection.removed} rows left out of training: their prompts stand in {val_data}"
        )
    return lines


def describe_corpus(report: CorpusReport) -> list[str]:
    """What became of the documents of the files."""
    out = f"{report.empty:,} empty, {report.duplicates:,} duplicates"
    if report.near_duplicates is not None:
        out += f", {report.near_duplicates:,} near duplicates"
    lines = [f"documents: {report.documents:,} read, {report.kept:,} kept; left out: {out}"]
    if report.near_duplicates is None:
        lines.append(
            "near duplicates: not checked (needs datasketch: pip install 'minimind-sft[clean]')"
        )
    return lines


def describe_mix(steps: Steps, names: Sequence[str]) -> list[str]:
    """How much of each file is trained."""
    whole = np.bincount(steps.dataset.table["file"], steps.lengths, minlength=len(names))
    planned = np.zeros(len(names))
    by_file = steps.tokens_by_file()
    planned[: len(by_file)] = by_file
    lines = []
    for index, name in enumerate(names):
        asked = "" if steps.shares is None else f", {steps.shares[index]:.2%} asked"
        passes = planned[index] / whole[index] if whole[index] else 0.0
        lines.append(
            f"{name}: {planned[index]:,.0f} tokens, {passes:.2f} times its text, "
            f"{planned[index] / planned.sum():.2%} of the training{asked}"
        )
    return lines


def describe_tokens(training: Dataset, validation: Dataset) -> list[str]:
    """What will be trained."""
    table = training.table
    tokens, trained = int(table["length"].sum()), int(table["trained"].sum())
    share = trained / tokens if tokens else 0.0
    lines = [
        f"training: {len(training):,} rows, {tokens:,} tokens, {trained:,} supervised "
        f"({share:.0%}); validation: {len(validation):,} rows"
    ]
    if tokens:
        low, middle, high, top = np.percentile(table["length"], [5, 50, 95, 100])
        lines.append(
            f"tokens per row: {low:.0f} (5%), {middle:.0f} (median), {high:.0f} (95%), "
            f"{top:.0f} (max)"
        )
    return lines


def count_lengths(lengths: Sequence[int], max_length: int) -> list[tuple[int, int, int]]:
    """Rows by their tokens: (from, to, rows) for ten equal spans up to `max_length`, and the rest.

    Where no row is as long as that the spans end with the longest row.
    """
    found = np.array(lengths)
    if not len(found):
        return []
    longest = int(found.max())
    top = min(longest, max_length)
    step = max(-(-top // BARS), 1)
    edges = [*range(0, top, step), top, *([longest] if longest > top else [])]
    return [
        (low + 1, high, int(((found > low) & (found <= high)).sum()))
        for low, high in pairwise(edges)
    ]


def draw_lengths(lengths: Sequence[int], max_length: int) -> list[str]:
    """`count_lengths` as bars, and a line at the most that is kept."""
    counts = count_lengths(lengths, max_length)
    most = max((count for *_, count in counts), default=0)
    lines = ["tokens per row, before truncation:"]
    for low, high, count in counts:
        if low == max_length + 1:
            lines.append(f"    {'':-<{WIDTH}} --max-length {max_length:,}")
        bar = "█" * -(-WIDTH * count // most)
        lines.append(f"    {bar:{WIDTH}} {low:,} to {high:,}: {count:,}")
    return lines


def describe_plan(steps: Steps) -> str:
    """In how many steps it will be trained."""
    return (
        f"steps: {len(steps):,} of about {steps.tokens_per_step:,} tokens, "
        f"{steps.steps_per_epoch:,} an epoch"
    )


def show_row(example: Example, tokenizer: Tokenizer, colour: bool) -> str:
    """One row as the model sees it; what is trained in green, or between ⟦ ⟧."""
    left, right = (GREEN, RESET) if colour else ("⟦", "⟧")
    parts: list[str] = []
    start = 0
    ids, mask = list(example.input_ids), list(example.loss_mask)
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or mask[stop] != mask[start]:
            text = tokenizer.decode(ids[start:stop])
            parts.append(left + text + right if mask[start] else text)
            start = stop
    return "".join(parts)


def show_tokens(example: Example, kept: int, tokenizer: Tokenizer, colour: bool) -> str:
    """One row token by token: a │ between two, ✂ where truncation cuts; see `show_row`.

    A character of several tokens stands in the last of them; those before it are a ‥ each.
    """
    left, right = (GREEN, RESET) if colour else ("⟦", "⟧")
    shown, inside = "", False
    decoder = tokenizer.stream_decoder()
    for at, (id, trained) in enumerate(zip(example.input_ids, example.loss_mask, strict=True)):
        trained = trained and at < kept
        border = ("" if at == 0 else "│") + ("✂" if at == kept else "")
        turn = "" if trained == inside else left if trained else right
        text = decoder.push(id) or "‥"
        shown += border + turn + "⏎\n".join(map(printable, text.split("\n")))
        inside = trained
    return shown + (right if inside else "")


def prompt_of(example: Example) -> list[int]:
    """The ids before a row's first trained token."""
    return list(example.input_ids[: list(example.loss_mask).index(True)])


def model_card(record: dict[str, Any]) -> str:
    """A README for the run's folder, from what run.json holds."""
    options, outcome, identity = record["options"], record["outcome"], record["identity"]
    base = options["model"] or "minimind's embedded base"
    losses = "no validation data"
    if outcome["best_loss"] is not None:
        losses = (
            f"{outcome['first_loss']:.4f} before, {outcome['best_loss']:.4f} at its best "
            f"(step {outcome['best_step']}), {outcome['last_loss']:.4f} at the end"
        )
    return (
        f"# A chat model fine-tuned with minimind {record['versions']['minimind']}\n\n"
        f"- base: {base}\n"
        f"- data: {', '.join(options['files'])} (SHA-256 of ids and mask: {identity['data']})\n"
        f"- validation loss per supervised token: {losses}\n"
        f"- command: `{shlex.join(record['command'])}`\n"
        f"- format: ChatML; stops at `<|im_end|>`\n\n"
        "Options and versions are in run.json, losses by step in metrics.jsonl.\n"
    )


def loss_plot(metrics: Path, picture: Path) -> None:
    """Draw the losses by step, if the `plot` extra is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    axes.set(xlabel="optimizer step", ylabel="loss per supervised token")
    axes.legend()
    figure.savefig(picture)
