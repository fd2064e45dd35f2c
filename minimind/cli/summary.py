"""Say in words and pictures what a run trains and what came of it. Prints nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from minimind.data.build import REJECTED, DataReport
from minimind.data.dataset import Dataset
from minimind.data.plan import Steps
from minimind.data.selection import Selection

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


def describe_tokens(training: Dataset, validation: Dataset) -> list[str]:
    """What will be trained."""
    table = training.table
    tokens, trained = int(table["length"].sum()), int(table["supervised"].sum())
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
