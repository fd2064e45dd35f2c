"""A Dataset gives back what went in, in any choice of rows, and its hash tells what it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data.conversation import Conversation, Message
from minimind.data.dataset import COLUMNS, Dataset, Example
from minimind.data.masking import encode_conversation, encode_rows
from minimind.data.storage import DatasetWriter, hash_of
from minimind.tokenizer import Tokenizer
from tests.support.strategies import conversations


def test_the_columns_of_a_row_say_what_training_reads(tokenizer: Tokenizer) -> None:
    turns = [Message("user", "a"), Message("assistant", "b"), Message("user", "c" * 50)]
    examples = [
        encode_conversation(turns, tokenizer),
        Example([], []),
        Example([5, 6, 7], [False, False, False]),
        Example([5, 6, 7], [True, False, False]),  # nothing stands before a first token
        Example([5, 6, 7], [True, True, False]),
        Example([], []),
    ]
    dataset = Dataset.from_examples(examples)
    last = len(examples[0]) - 1 - examples[0].loss_mask[::-1].index(True)
    assert dataset.column("input_length").tolist() == [last, 0, 0, 0, 1, 0]
    assert dataset.column("supervised").tolist() == [2, 0, 0, 0, 1, 0]
    assert dataset.column("length").tolist() == [len(examples[0]), 0, 3, 3, 3, 0]


def test_rows_can_be_selected_and_indexed(tokenizer: Tokenizer) -> None:
    examples = [Example([i, i + 1, i + 2], [False, i % 2 == 0, True]) for i in range(6)]
    dataset = Dataset.from_examples(examples)
    assert list(dataset) == examples
    assert dataset[-1] == examples[-1]
    assert list(dataset.select(np.array([4, 1]))) == [examples[4], examples[1]]
    odd = np.arange(6) % 2 == 1
    assert list(dataset.select(odd).select(np.array([-1]))) == [examples[5]]
    for index in (6, -7):
        with pytest.raises(IndexError, match=f"row {index}: the dataset has 6 rows"):
            dataset[index]


Change = Callable[[list[Example]], list[Example]]


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[::-1],
        lambda rows: rows[:-1],
        lambda rows: [Example([9, 2, 3], rows[0].loss_mask), *rows[1:]],
        lambda rows: [Example(rows[0].input_ids, [False, False, True]), *rows[1:]],
        lambda rows: [
            Example(rows[0].input_ids, rows[0].loss_mask, [0.0, 0.5, 1.0]),
            *rows[1:],
        ],
        lambda rows: [Example([1, 2], [False, True]), Example([3], [True]), *rows[1:]],
    ],
    ids=["order", "fewer", "ids", "mask", "weights", "where a row ends"],
)
def test_the_hash_tells_any_change_of_what_is_trained(change: Change) -> None:
    rows = [Example([1, 2, 3], [False, True, True]), Example([4, 5], [False, True])]
    before = hash_of(Dataset.from_examples(rows))
    assert hash_of(Dataset.from_examples(list(rows))) == before
    assert hash_of(Dataset.from_examples(change(rows))) != before


def test_a_hash_is_kept_in_the_datasets_folder_for_each_choice_of_rows(
    tmp_path: Path,
) -> None:
    rows = [Example([number, 1, 2], [False, True, True]) for number in range(50)]
    dataset = Dataset.from_examples(rows)
    choices = [dataset, dataset.select(np.arange(49)), dataset.select(np.arange(1, 50))]
    expected = [hash_of(choice) for choice in choices]
    assert len(set(expected)) == 3
    DatasetWriter(tmp_path, 100).finish({})  # a dataset's folder
    assert [hash_of(choice, tmp_path) for choice in choices] == expected
    dataset.input_ids[:] = 7  # no token is read again
    assert [hash_of(choice, tmp_path) for choice in choices] == expected
    other = dataset.select(np.arange(2, 50))
    assert hash_of(other, tmp_path) == hash_of(other) not in expected


@settings(max_examples=40)
@given(rows=st.lists(conversations(max_exchanges=2), max_size=4))
def test_what_goes_in_comes_out(rows: list[Conversation], tokenizer: Tokenizer) -> None:
    examples = [encode_conversation(row, tokenizer) for row in rows]
    dataset = Dataset.from_examples(examples)
    assert list(dataset) == examples
    assert list(encode_rows(rows, tokenizer)) == examples


# Choices of rows


def numbered(rows: int) -> Dataset:
    """Every column counts its rows, each from another number on."""
    columns = {name: np.zeros(rows, dtype) for name, dtype in COLUMNS.items()}
    for first, name in enumerate(COLUMNS):
        columns[name][:] = np.arange(rows) + 100 * first
    return Dataset(np.zeros(0, np.uint16), np.zeros(0, np.bool_), None, columns)


@given(st.integers(1, 20), st.data())
def test_choosing_rows_again_and_again_is_choosing_in_each_column(
    rows: int, data: st.DataObject
) -> None:
    dataset = numbered(rows)
    expected = {name: dataset.column(name) for name in COLUMNS}
    for _ in range(data.draw(st.integers(0, 3))):
        if data.draw(st.booleans()):
            booleans = st.lists(st.booleans(), min_size=len(dataset), max_size=len(dataset))
            chosen = np.array(data.draw(booleans), bool)
        else:
            numbers = st.integers(0, len(dataset) - 1) if len(dataset) else st.nothing()
            chosen = np.array(data.draw(st.lists(numbers)), int)
        dataset = dataset.select(chosen)
        expected = {name: column[chosen] for name, column in expected.items()}
        assert len(dataset) == len(expected["length"])
    for name, column in expected.items():
        assert dataset.column(name).tolist() == column.tolist()
        assert dataset.column(name).dtype == COLUMNS[name]
        backwards = np.arange(len(dataset))[::-1]
        assert dataset.take(name, backwards).tolist() == column[::-1].tolist()
        assert dataset.take(name, slice(1, 3)).tolist() == column[1:3].tolist()


def test_choosing_rows_copies_no_column() -> None:
    dataset = numbered(8)
    chosen = dataset.select(np.arange(8) % 2 == 0)
    assert chosen.rows is not None
    assert chosen.rows.tolist() == [0, 2, 4, 6]
    assert all(chosen.columns[name] is dataset.columns[name] for name in COLUMNS)
