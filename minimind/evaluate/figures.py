"""Turn what was measured of each row into figures, and compare models by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RESAMPLES = 2000
LARGEST_EXPONENT = 700  # e to the power of more is too large for a float
PER_TOKEN = ("loss", "accuracy")
SCORED = (*PER_TOKEN, "bits_per_byte")  # figures of the row's text, not of the model's answer


@dataclass(slots=True)
class Record:
    """A row and what was measured of it.

    Attributes:
        path, line: where the row is.
        question: the last message before the answer.
        expected: the row's answer, if it has one.
        answer: the model's answer; None if it gave none.
        sums: per figure a sum and a count, such as nats and tokens. A figure of several rows is
            the sum of their sums over the sum of their counts.
        cut: whether a part of the row's answers is beyond the model's context and isn't scored.
    """

    path: str
    line: int
    question: str
    expected: str | None
    answer: str | None = None
    sums: dict[str, tuple[float, float]] = field(default_factory=dict)
    cut: bool = False


def compare(records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """Everything that is known, ready for JSON: figures, differences from the first model, rows.

    Args:
        records: per model the Records of the same rows.
    """
    (first, of_first), *others = records.items()
    return {
        "models": [_summarize(model, of_model) for model, of_model in records.items()],
        "differences": [
            {"model": model, "from": first, "figures": _differences(of_model, of_first)}
            for model, of_model in others
        ],
        "rows": [
            {
                "path": row[0].path,
                "line": row[0].line,
                "question": row[0].question,
                "expected": row[0].expected,
                "answers": [{"answer": record.answer, "sums": record.sums} for record in row],
            }
            for row in zip(*records.values(), strict=True)
        ],
    }


def _summarize(model: str, records: Sequence[Record]) -> dict[str, Any]:
    paths = list(dict.fromkeys(record.path for record in records))
    by_path = {path: figures([r for r in records if r.path == path]) for path in paths}
    return {
        "model": model,
        "rows": len(records),
        "answered": sum(record.answer is not None for record in records),
        "scored": sum("loss" in record.sums for record in records),
        "cut": sum(record.cut for record in records),
        "figures": figures(records),
        "sources": by_path if len(paths) > 1 else {},
    }


def describe_counts(model: dict[str, Any]) -> str:
    """How many rows the figures of one of the results' models are over."""
    counts = f"{model['rows']:,} rows, {model['answered']:,} answered, {model['scored']:,} scored"
    cut = f"; in {model['cut']:,} of them, what exceeds the context isn't scored"
    return f"{model['model']}: {counts}{cut if model['cut'] else ''}"


def _differences(
    ours: Sequence[Record], theirs: Sequence[Record]
) -> dict[str, tuple[float, float, float]]:
    """Per figure the difference and its interval, over rows for which both models have the figure.

    Scores must be of the same text: rows that a context cuts are left out, and so are figures per
    token if the models' tokens differ.
    """
    differences = {}
    uncut = np.array([not (a.cut or b.cut) for a, b in zip(ours, theirs, strict=True)])
    for name in _names(ours):
        a, b = _sums(ours, name), _sums(theirs, name)
        both = (a[1] > 0) & (b[1] > 0) & (uncut | (name not in SCORED))
        if name in PER_TOKEN and (a[1] != b[1])[both].any():
            continue
        if both.any():
            differences[name] = paired_bootstrap(a[:, both], b[:, both])
    return differences


def figures(records: Sequence[Record]) -> dict[str, float]:
    """Each figure that some of the records have, over those that have it."""
    found: dict[str, float] = {}
    for name in _names(records):
        total, count = _sums(records, name).sum(1)
        found[name] = float(total / count)
        if name == "loss" and found[name] < LARGEST_EXPONENT:
            found["perplexity"] = math.exp(found[name])
    return found


def _names(records: Sequence[Record]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record.sums)
    return sorted(names, key=lambda name: name not in SCORED)


def _sums(records: Sequence[Record], name: str) -> Floats:
    """(2, rows): sums and counts of a figure; zeros where a row doesn't have it."""
    sums = [record.sums.get(name, (0.0, 0.0)) for record in records]
    return np.array(list(zip(*sums, strict=True)))


def paired_bootstrap(ours: Floats, theirs: Floats, seed: int = 0) -> tuple[float, float, float]:
    """The difference of a figure between two models, ours minus theirs, on the same rows.

    Args:
        ours, theirs: (2, rows), each row's sum and count.
        seed: of the draws.

    Returns:
        The difference, and its 2.5% and 97.5% quantiles over rows drawn with replacement.

    Source: Koehn 2004, W04-3250.
    """
    columns = np.concatenate([ours, theirs])  # (4, rows)
    rows = columns.shape[1]
    generator = np.random.default_rng(seed)
    sums = [columns.sum(1)]
    for _ in range(RESAMPLES):
        sums.append(columns[:, generator.integers(rows, size=rows)].sum(1))
    total, count, their_total, their_count = np.array(sums).T  # (1 + RESAMPLES,) each
    differences = total / count - their_total / their_count
    low, high = np.quantile(differences[1:], [0.025, 0.975])
    return float(differences[0]), float(low), float(high)
