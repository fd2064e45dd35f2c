"""Choose what is trained and what is validated on, from files.

What fine-tuning trains is what inspection shows: both call `select_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimind.data.build import DataOptions, DataReport, build_dataset
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Source:
    """What became of some files' rows, and the folder that holds the rejected ones."""

    report: DataReport
    folder: Path


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows in the order of their files.

    Attributes:
        training: what an epoch trains.
        validation: what is held back; no prompt is in both.
        sources: the training files', then the validation file's if there is one.
        removed: rows left out of training because their prompt is in the validation file.
    """

    training: Dataset
    validation: Dataset
    sources: tuple[Source, ...]
    removed: int = 0


def split(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off about `fraction` of the rows by what their prompt says.

    Rows with the same prompt are on the same side, and a row's side doesn't depend on other rows:
    shuffling or appending rows moves none.
    """
    chosen = np.zeros(len(dataset), np.bool_)
    for block in dataset.blocks(2**16):
        keys = dataset.table.take("key", block)
        chosen[block] = keys >> np.uint64(11) < fraction * 2**53  # exact in a float64
    return dataset.select(~chosen), dataset.select(chosen)


def without_prompts_of(dataset: Dataset, other: Dataset) -> Dataset:
    """Only the rows whose prompt no row of `other` has."""
    return dataset.select(~np.isin(dataset.table["key"], other.table["key"]))


def select_rows(
    files: Sequence[str],
    tokenizer: Tokenizer,
    options: DataOptions,
    *,
    limit: int | None = None,
    val_data: str | None = None,
    val_fraction: float = 0.0,
) -> Selection:
    """Read and tokenize files, and separate training from validation.

    Args:
        files: of conversations.
        tokenizer: decides the ids.
        options: how rows become Examples.
        limit: use only this many rows, the first ones.
        val_data: a file to validate on. It must have a row with an answer.
        val_fraction: without `val_data`, share of the rows to validate on, chosen by their prompt.
    """
    dataset, report, folder = build_dataset(files, tokenizer, options)
    source = Source(report, folder)
    if limit:
        dataset = dataset.select(np.arange(min(limit, len(dataset))))
    if val_data is None:
        return Selection(*split(dataset, val_fraction), (source,))
    validation, val_report, val_folder = build_dataset([val_data], tokenizer, options)
    if not len(validation):
        raise DataError(
            "no_rows", "no row has an answer that can be scored", "use other rows", val_data
        )
    training = without_prompts_of(dataset, validation)
    sources = (source, Source(val_report, val_folder))
    return Selection(training, validation, sources, len(dataset) - len(training))
