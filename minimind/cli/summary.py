"""Describe in words what a run will train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from minimind.data.build import REJECTED, DataReport
from minimind.data.dataset import Dataset
from minimind.data.errors import printable
from minimind.data.plan import Steps
from minimind.data.selection import Selection, SplitOptions
from minimind.training.environment import peak_memory
from minimind.training.fit import RunResult
from minimind.training.run_folder import CHECKPOINTS, LAST, bytes_of

SPELLED = "they are trained as letters; the model learns to write those, not the base's tokens"


def describe_rows(report: DataReport, rejected: Path, context: int | None = None) -> list[str]:
    counts = ", ".join(f"{count:,} {shape}" for shape, count in report.shapes.most_common())
    lines = [f"rows: {report.rows:,} read ({counts})"]
    if report.bad:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.bad.most_common())
        lines.append(f"rejected: {kinds}; listed in {rejected}")
    if report.turns:
        kinds = ", ".join(f"{count:,} {name}" for name, count in report.turns.most_common())
        lines.append(f"unusual turns, kept: {kinds}")
    if report.spelling:
        lines.append(f"{describe_spelled(report)}: {SPELLED}")
    lines += report.describe()
    lines += _describe_thinking(report)
    if report.unsupervised:
        lines.append(f"dropped: {report.unsupervised:,} rows with nothing to train on")
    if report.truncated:
        lines.append(_describe_truncation(report, context))
    return lines


def _describe_thinking(report: DataReport) -> list[str]:
    lines = []
    if report.framed:
        lines.append(
            f"framed: each answer has a <think> block; {report.reasoned:,} of {report.finals:,} "
            f"last answers have reasoning, so prompts ask for {'it' if report.thinking else 'none'}"
            " unless they say otherwise"
        )
    if report.split:
        lines.append(
            f"split: {report.split:,} conversations with reasoning in several turns became "
            f"{report.parts:,} rows"
        )
    if report.tags:
        lines.append(f"added to the base, since rows need them: {' '.join(report.tags)}")
    return lines


def _describe_truncation(report: DataReport, context: int | None) -> str:
    """What rows lose to --max-length, and which length loses less; a warning where it is much."""
    words = (
        f"truncated: {report.truncated:,} rows lose {report.tokens_lost:,} supervised tokens "
        f"({report.dropped_long:,} of them are dropped)"
    )
    if not report.loses_much:
        up_to = f", up to the model's context of {context:,}" if context else ""
        return f"{words}; raise --max-length to keep them{up_to}"
    rows = report.truncated / (report.examples - report.unsupervised)
    tokens = report.tokens_lost / (report.supervised + report.tokens_lost)
    words = f"warning: {words}, {rows:.0%} of the rows and {tokens:.0%} of the tokens"
    ample = report.suggested_max_length
    if context is None or ample <= context:
        return f"{words}; --max-length {ample} keeps 99% of both"
    return (
        f"{words}; 99% of both take --max-length {ample} and a --model that reads as much: this "
        f"one's context is {context:,}"
    )


def describe_spelled(report: DataReport) -> str:
    most = report.spelled.most_common(8)
    tokens = ", ".join(f"{count:,} {printable(name)}" for name, count in most)
    return f"{report.spelling:,} of {report.answers:,} answers spell the base's tokens ({tokens})"


def describe_selection(
    selection: Selection, split: SplitOptions, files: Sequence[str], context: int | None
) -> list[str]:
    """What became of the rows, and of the split; `context` is the model's, where it is known."""
    lines: list[str] = []
    for report, folder in zip(selection.reports, selection.folders, strict=True):
        lines += describe_rows(report, folder / REJECTED, context)
    if selection.removed:
        lines.append(
            f"{selection.removed:,} rows left out of training: their prompts are in "
            f"{split.val_data}"
        )
    if selection.left_out:
        lines.append(
            f"{selection.left_out:,} rows left out of validation: training rows answer their "
            "prompts"
        )
    training, validation = selection.training, selection.validation
    if split.val_data is None:
        lines += describe_share(training, validation, split.val_fraction, files)
    if len(training) and len(np.unique(validation.column("key"))) < 2:
        lines.append(_describe_best(len(validation)))
    return lines


def _describe_best(validating: int) -> str:
    """What chooses the best weights where no two prompts do."""
    if not validating:
        return "no row validates: the last weights are kept, whether or not they are the best"
    if validating == 1:
        return 'one row validates: it alone decides which weights are "best"'
    return f'the {validating:,} rows that validate ask alike: one prompt decides which are "best"'


def describe_share(
    training: Dataset,
    validation: Dataset,
    fraction: float,
    files: Sequence[str],
    rows: str = "rows",
    alike: str = "rows that ask alike",
) -> list[str]:
    """Say where the share that validates isn't what was asked for, and what is in the way.

    That is where it is none, all, or off by more than a factor of 2.
    """
    held_back, total = len(validation), len(training) + len(validation)
    share = held_back / total if total else fraction
    if not fraction or (0 < share < 1 and fraction / 2 <= share <= 2 * fraction):
        return []
    fact = f"warning: {held_back:,} of {total:,} {rows} ({share:.1%}) validate, and --val-fraction "
    fact += f"is {fraction:g}: "
    side = validation if share > fraction else training
    _, firsts, sizes = np.unique(side.column("key"), return_index=True, return_counts=True)
    largest = int(sizes.argmax())
    if sizes[largest] == 1:
        return [f"{fact}among so few it is chance; --val-data names rows to validate on"]
    row = int(firsts[largest])
    place, line = files[int(side.take("file", row))], int(side.take("line", row))
    place += f":{line}" if line else ""  # a text file is one document
    group = f"{alike} stay together, and the largest such group has {sizes[largest]:,}"
    return [f"{fact}{group} (from {place})"]


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
    mean = round(steps.tokens_per_epoch / steps.steps_per_epoch)
    return (
        f"steps: {len(steps):,} of about {mean:,} tokens (each row up to its last trained one), "
        f"{steps.steps_per_epoch:,} an epoch, at most {steps.tokens_per_batch:,} in memory at once"
    )


def describe_losses(result: RunResult) -> str:
    """Validation losses, each with the step at which it was measured."""
    if result.best_loss is None or result.first_loss is None or result.last_loss is None:
        return "no validation data"
    before = f"{result.first_loss:.4f} before"
    how = f" ({result.rounded})" if result.rounded else ""
    if is_measured_at_stop(result):
        where = f"step {result.steps}, where it was stopped"
        return f"{before}, {result.best_loss:.4f} at {where}{how}"
    at = f"step {result.last_loss_step}, its last validation"
    return (
        f"{before}, {result.best_loss:.4f} at its best (step {result.best_step}), "
        f"{result.last_loss:.4f} at {'the end' if result.last_loss_step == result.steps else at}"
        f"{how}"
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


def describe_speed(result: RunResult, unit: str) -> list[str]:
    """What a run's steps did besides training, its speed in `unit` a second, and its memory."""
    lines = []
    if result.skipped:
        lines.append(f"{result.skipped} steps skipped: their fp16 gradients overflowed")
    if result.eager_batches:
        lines.append(f"{result.eager_batches} batches were larger than planned: they ran eagerly")
    if result.finished and not result.supervised_per_second:
        lines.append("nothing was left to train; more --epochs add steps")
    speed = f"{result.supervised_per_second:,.0f} {unit}/s"
    return [*lines, f"{speed}; peak memory {peak_memory()}"]


def describe_folder(out: Path, finished: bool) -> str:
    """What a run's folder takes on the disk, and what of it may be deleted."""
    total = bytes_of(out)
    checkpoints = total - bytes_of(out, without=out / CHECKPOINTS)  # what deleting them frees
    words = f"{out} takes {_size(total)}, {_size(checkpoints)} of it in {CHECKPOINTS}/"
    if finished:
        return f"{words}; delete {CHECKPOINTS}/ unless you add epochs, and {LAST}/ if unused"
    return f"{words}, which resuming needs"


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
