"""Choose what is trained and what is validated on, from files.

Inspection gives the hash of what fine-tuning trains: both call `select_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimind.data.build import DataOptions, DataReport, build_dataset
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which rows are used, and which of them validate."""

    limit: int | None = None
    """Use only the first N rows."""
    val_data: str | None = None
    """A file of conversations to validate on; rows with its prompts are left out of training."""
    val_fraction: float = 0.05
    """Share of the rows to validate on, chosen by their prompt's text; 0 for none."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; use a positive number")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; use 0 to less than 1")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows in the order of their files; no prompt is in both parts."""

    training: Dataset
    validation: Dataset
    reports: list[DataReport]  # of the training files, and of the validation file if there is one
    folders: list[Path]  # for each report, the folder of the rejected rows
    removed: int = 0  # rows left out of training: their prompt is in the validation file


def split_by_prompt(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off about `fraction` of the rows by what their prompt says.

    Rows with the same prompt are on the same side, and a row's side doesn't depend on other rows:
    shuffling or appending rows moves none.
    """
    chosen = dataset.column("key") < math.ceil(fraction * 2**53) << 11
    return dataset.select(~chosen), dataset.select(chosen)


def select_rows(
    files: Sequence[str],
    tokenizer: Tokenizer,
    options: DataOptions,
    split: SplitOptions,
    names: Sequence[str] | None = None,
    verify: bool = False,
) -> Selection:
    """Read and tokenize files, called by `names` in errors, and separate training from validation.

    See `build_dataset` for `verify`.

    Raises:
        DataError: a file or a row can't be used, or `split.val_data` has no row to validate on.
    """
    dataset, report, folder = build_dataset(files, tokenizer, options, names=names, verify=verify)
    if split.limit:
        dataset = dataset.select(np.arange(min(split.limit, len(dataset))))
    if split.val_data is None:
        return Selection(*split_by_prompt(dataset, split.val_fraction), [report], [folder])
    validation, val_report, val_folder = build_dataset(
        [split.val_data], tokenizer, options, verify=verify
    )
    if not len(validation):
        fact = "no row has an answer that can be scored"
        raise DataError("no_rows", fact, "use other rows", split.val_data)
    training = dataset.select(~np.isin(dataset.column("key"), validation.column("key")))
    removed = len(dataset) - len(training)
    return Selection(training, validation, [report, val_report], [folder, val_folder], removed)
