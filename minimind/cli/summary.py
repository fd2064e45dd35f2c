"""Describe in words what a run will train."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minimind.data.build import REJECTED, DataReport
from minimind.data.dataset import Dataset
from minimind.data.plan import Steps
from minimind.data.selection import Selection


def describe_rows(report: DataReport, rejected: Path) -> list[str]:
    counts = ", ".join(f"{count:,} {shape}" for shape, count in report.shapes.most_common())
    lines = [f"rows: {report.rows:,} read ({counts})"]
    if report.bad:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.bad.most_common())
        lines.append(f"rejected: {kinds}; listed in {rejected}")
    if report.turns:
        kinds = ", ".join(f"{count:,} {name}" for name, count in report.turns.most_common())
        lines.append(f"unusual turns, kept: {kinds}")
    lines += report.describe()
    if report.unsupervised:
        lines.append(f"dropped: {report.unsupervised:,} rows with nothing to train on")
    if report.truncated:
        lines.append(
            f"truncated: {report.truncated:,} rows lose {report.tokens_lost:,} supervised tokens "
            f"({report.dropped_long:,} of them are dropped); raise --max-length to keep them"
        )
    return lines


def describe_selection(selection: Selection, val_data: str | None) -> list[str]:
    lines: list[str] = []
    for report, folder in zip(selection.reports, selection.folders, strict=True):
        lines += describe_rows(report, folder / REJECTED)
    if selection.removed:
        lines.append(
            f"{selection.removed} rows left out of training: their prompts are in {val_data}"
        )
    return lines


def describe_tokens(training: Dataset, validation: Dataset) -> list[str]:
    lengths = training.column("length")
    tokens, trained = int(lengths.sum()), int(training.column("supervised").sum())
    share = trained / tokens if tokens else 0.0
    lines = [
        f"training: {len(training):,} rows, {tokens:,} tokens, {trained:,} supervised "
        f"({share:.0%}); validation: {len(validation):,} rows"
    ]
    if tokens:
        low, middle, high, top = np.percentile(lengths, [5, 50, 95, 100])
        lines.append(
            f"tokens per row: {low:.0f} (5%), {middle:.0f} (median), {high:.0f} (95%), "
            f"{top:.0f} (max)"
        )
    return lines


def describe_plan(steps: Steps) -> str:
    return (
        f"steps: {len(steps):,} of about {steps.tokens_per_step:,} tokens, "
        f"{steps.steps_per_epoch:,} an epoch"
    )
