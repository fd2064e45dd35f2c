"""Describe in words what a run will train."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from minimind.data.build import REJECTED, DataReport
from minimind.data.dataset import Dataset
from minimind.data.plan import Steps
from minimind.data.selection import Selection
from minimind.training.fit import RunResult
from minimind.training.run_folder import CHECKPOINTS, LAST, bytes_of


def describe_rows(report: DataReport, rejected: Path) -> list[str]:
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


def describe_losses(result: RunResult) -> str:
    """Validation losses, each with the step at which it was measured."""
    if result.best_loss is None or result.first_loss is None or result.last_loss is None:
        return "no validation data"
    before = f"{result.first_loss:.4f} before"
    if is_measured_at_stop(result):
        return f"{before}, {result.best_loss:.4f} at step {result.steps}, where it was stopped"
    at = f"step {result.last_loss_step}, its last validation"
    return (
        f"{before}, {result.best_loss:.4f} at its best (step {result.best_step}), "
        f"{result.last_loss:.4f} at {'the end' if result.last_loss_step == result.steps else at}"
    )


def describe_weights(result: RunResult) -> str:
    """Which weights lie in a run's folder itself."""
    if result.best_loss is None:
        return f"the last weights, of step {result.steps}: there is no validation data"
    if is_measured_at_stop(result):
        why = "where it was stopped before its first scheduled validation"
        return f"the weights of step {result.steps}, {why}"
    return f"the best weights, of step {result.best_step}"


def is_measured_at_stop(result: RunResult) -> bool:
    return not result.finished and result.last_loss_step == result.steps


def describe_folder(out: Path, finished: bool) -> str:
    """What a run's folder takes on the disk, and what of it may be deleted."""
    checkpoints = bytes_of(out / CHECKPOINTS)
    words = f"{out} takes {_size(bytes_of(out))}, {_size(checkpoints)} of it in {CHECKPOINTS}/"
    if finished:
        return f"{words}; delete {CHECKPOINTS}/ unless you add epochs, and {LAST}/ if unused"
    return f"{words}, which resuming needs"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
