"""Describe in words what pretraining reads and trains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from minimind.data.plan import Steps
from minimind.pretrain.corpus import CorpusReport


def describe_corpus(report: CorpusReport) -> list[str]:
    """How many documents were read, kept and left out."""
    out = f"{report.empty:,} empty, {report.duplicates:,} duplicates"
    lines = []
    if report.near_duplicates is None:
        remedy = "needs datasketch: pip install 'minimind-sft[clean]'"
        lines = [f"near duplicates: not checked ({remedy})"]
    else:
        out += f", {report.near_duplicates:,} near duplicates"
    return [f"documents: {report.documents:,} read, {report.kept:,} kept; left out: {out}", *lines]


def describe_mix(steps: Steps, names: Sequence[str]) -> list[str]:
    """How much of each file is trained."""
    files = steps.dataset.column("file")
    tokens = np.bincount(files, steps.lengths, len(names))
    planned = np.zeros(len(names))
    for index in range(len(steps)):
        rows = steps.rows_of(index)
        planned += np.bincount(files[rows], steps.lengths[rows], len(names))
    lines = []
    for index, name in enumerate(names):
        requested = "" if steps.shares is None else f", {steps.shares[index]:.2%} requested"
        passes = planned[index] / tokens[index] if tokens[index] else 0.0
        lines.append(
            f"{name}: {planned[index]:,.0f} tokens, {passes:.2f} times its text, "
            f"{planned[index] / planned.sum():.2%} of the training{requested}"
        )
    return lines
