"""Choose what is trained and what is validated on, from files.

Inspection gives the hash of what fine-tuning trains: both call `select_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from minimind.data.build import DataOptions, DataReport, build_dataset
from minimind.data.dataset import Array, Dataset
from minimind.data.errors import DataError
from minimind.data.storage import read_prompts
from minimind.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """Which rows are used, and which of them validate."""

    limit: int | None = None
    """Use only the first N rows."""
    val_data: str | None = None
    """A file of conversations to validate on; rows that answer its prompts aren't trained."""
    val_fraction: float = 0.05
    """Without --val-data: share of the rows to validate on, chosen by what they ask; 0 for none."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; use a positive number")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; use 0 to less than 1")


@dataclass(frozen=True, slots=True)
class Selection:
    """Rows in the order of their files. No prompt that is validated on is trained."""

    training: Dataset
    validation: Dataset
    reports: list[DataReport]  # of the training files, and of the validation file if there is one
    folders: list[Path]  # for each report, the folder of the rejected rows
    tokenizer: Tokenizer  # with the tags that the rows need, and framed as they are
    removed: int = 0  # rows left out of training: they answer a prompt of the validation file
    left_out: int = 0  # rows left out of validation: a training row answers their prompt


def split_by_prompt(dataset: Dataset, fraction: float) -> tuple[Dataset, Dataset]:
    """Split off about `fraction` of the rows by what they ask.

    Rows that ask alike are on the same side, and a row's side doesn't depend on other rows:
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
    tokenizer = tokenizer.with_tags(report.tags)
    if split.val_data is not None:
        held = [split.val_data]
        validation, val_report, val_folder = build_dataset(held, tokenizer, options, verify=verify)
        tokenizer = tokenizer.with_tags(val_report.tags)
        if report.framed != val_report.framed:  # one frame for both
            options = replace(options, thinking="on")
            dataset, report, folder = build_dataset(
                files, tokenizer, options, names=names, verify=verify
            )
            validation, val_report, val_folder = build_dataset(
                held, tokenizer, options, verify=verify
            )
    tokenizer = tokenizer.with_framing(report.framed, report.thinking)
    if split.limit:
        dataset = dataset.select(np.arange(min(split.limit, len(dataset))))
    if split.val_data is None:
        training, validation = split_by_prompt(dataset, split.val_fraction)
        asked = _are_trained(validation, training, folder)
        kept, left_out = validation.select(~asked), int(asked.sum())
        return Selection(training, kept, [report], [folder], tokenizer, left_out=left_out)
    if not len(validation):
        fact = "no row has an answer that can be scored"
        raise DataError("no_rows", fact, "use other rows", split.val_data)
    held_back = _whole_prompts(validation, val_folder)
    rows, prompts = _listed_prompts(dataset, folder)
    removed = np.isin(dataset.column("key"), held_back)
    removed[rows[np.isin(prompts, held_back)]] = True
    return Selection(
        dataset.select(~removed),
        validation,
        [report, val_report],
        [folder, val_folder],
        tokenizer,
        removed=int(removed.sum()),
    )


def _listed_prompts(dataset: Dataset, folder: Path) -> tuple[Array, Array]:
    """The prompts of rows whose key isn't all that they answer: each one's row, and its key."""
    listed = read_prompts(folder)
    rows, prompts = listed["row"], listed["key"]
    if dataset.rows is None or not len(rows) or not len(dataset):
        return (rows, prompts) if len(dataset) else (rows[:0], prompts[:0])
    places = np.searchsorted(dataset.rows, rows)  # chosen rows are in the file's order
    chosen = dataset.rows[np.minimum(places, len(dataset) - 1)] == rows
    return places[chosen], prompts[chosen]


def _whole_prompts(dataset: Dataset, folder: Path) -> Array:
    """(rows,) the key of all that is asked before each row's last answer that is left."""
    whole = np.array(dataset.column("key"))
    rows, prompts = _listed_prompts(dataset, folder)
    whole[rows] = prompts  # of several the last
    return whole


def _are_trained(validation: Dataset, training: Dataset, folder: Path) -> Array:
    """(validation rows,) True where a training row answers all that the row asks."""
    whole = _whole_prompts(validation, folder)
    trained = np.isin(whole, _listed_prompts(training, folder)[1])
    # The two parts share no key, so keys are looked for only if a row isn't whole.
    if (whole != validation.column("key")).any():
        trained |= np.isin(whole, training.column("key"))
    return trained
