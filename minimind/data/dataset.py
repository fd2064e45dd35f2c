"""Keep rows as flat arrays, end to end, and what is known of each row as columns.

    input_ids   row 0 ......|row 1 ...|row 2 ..........     uint16 or uint32
    loss_mask   0000 1111 ..|...                            bool
    weights     0000 1111 ..|...                            float32, only if some aren't 0 or 1
    table       12, ...     | 9, ...  | 19, ...             columns, an entry per row

The arrays are in memory or mapped from files; memory hardly grows with the rows of the latter.
"""

from __future__ import annotations

import copy
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = "npt.NDArray[Any]"

COLUMNS: dict[str, np.dtype[Any]] = {
    "start": np.dtype("<u8"),  # where the row begins in the flat arrays
    "length": np.dtype("<u4"),  # tokens
    "input_length": np.dtype("<u4"),  # tokens before the last trained one: what training reads
    "supervised": np.dtype("<u4"),  # trained tokens
    "key": np.dtype("<u8"),  # equal for rows whose prompt is the same text
    "file": np.dtype("<u2"),  # index among the files
    "line": np.dtype("<u4"),
}


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready to train on.

    Attributes:
        input_ids: token ids.
        loss_mask: True where the token is trained (predicted from those before it).
        weights: the loss's factor per token, or None where every trained token counts 1.
    """

    input_ids: Sequence[int]
    loss_mask: Sequence[bool]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        assert len(self.input_ids) == len(self.loss_mask)

    def __len__(self) -> int:
        return len(self.input_ids)


class Table:
    """Columns of equal length, and perhaps a choice of their rows.

    Each column is an array of its own, and a choice is an index, (chosen rows,) uint32: reading a
    column leaves the others on disk, and choosing copies none.
    """

    def __init__(self, columns: Mapping[str, Array], rows: Array | None = None) -> None:
        self.columns, self.rows = columns, rows

    @classmethod
    def zeros(cls, rows: int) -> Table:
        """A table to be filled in."""
        return cls({name: np.zeros(rows, dtype) for name, dtype in COLUMNS.items()})

    def __len__(self) -> int:
        return len(self.columns["length"] if self.rows is None else self.rows)

    def __getitem__(self, name: str) -> Array:
        """(rows,) one column of all chosen rows; a copy if there is a choice."""
        column = self.columns[name]
        return column if self.rows is None else column[self.rows]

    def take(self, name: str, rows: Array | slice) -> Array:
        """One column at some of the chosen rows."""
        return self.columns[name][rows if self.rows is None else self.rows[rows]]

    def select(self, rows: Array) -> Table:
        """Only these of the chosen rows: indices, or a mask."""
        every = np.arange(len(self), dtype=np.uint32) if self.rows is None else self.rows
        return Table(self.columns, every[rows])


class Dataset(Sequence[Example]):
    """A sequence of Examples over flat arrays.

    Args:
        input_ids: (tokens,) unsigned integers.
        loss_mask: (tokens,) bool.
        weights: (tokens,) float32, the loss's factor, 0 where a token isn't trained; or None if
            every trained token counts 1.
        table: where each row is in the arrays, and what else is known of it.
    """

    def __init__(
        self, input_ids: Array, loss_mask: Array, weights: Array | None, table: Table
    ) -> None:
        self.input_ids, self.loss_mask, self.weights = input_ids, loss_mask, weights
        self.table = table

    @classmethod
    def from_flat(
        cls, input_ids: Array, loss_mask: Array, weights: Array | None, ends: Array
    ) -> Dataset:
        """Rows that lie end to end; `ends` is (rows,) where each one ends."""
        table = Table.zeros(len(ends))
        lengths = np.diff(ends, prepend=0)
        starts = ends - lengths
        marked = np.flatnonzero(loss_mask)
        marked = marked[~np.isin(marked, starts[lengths > 0])]  # nothing predicts a first token
        before, after = np.searchsorted(marked, starts), np.searchsorted(marked, ends)
        some = after > before
        table["start"][:] = starts
        table["length"][:] = lengths
        table["supervised"][:] = after - before
        table["input_length"][some] = marked[after[some] - 1] - starts[some]
        return cls(input_ids, loss_mask, weights, table)

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> Dataset:
        """Copy Examples into memory."""
        rows = list(examples)
        input_ids = _flat("I", [row.input_ids for row in rows])
        loss_mask = _flat("B", [row.loss_mask for row in rows]).astype(np.bool_)
        weights = None
        if any(row.weights is not None for row in rows):
            weights = _flat("f", [r.loss_mask if r.weights is None else r.weights for r in rows])
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls.from_flat(input_ids, loss_mask, weights, ends)

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index}: the dataset has {len(self)} rows")
        row = np.array([index])
        start, length = (int(self.table.take(name, row)[0]) for name in ("start", "length"))
        span = slice(start, start + length)
        weights = None if self.weights is None else self.weights[span].tolist()
        if weights is not None and {0.0, 1.0}.issuperset(weights):
            weights = None
        return Example(self.input_ids[span].tolist(), self.loss_mask[span].tolist(), weights)

    def select(self, rows: Array) -> Dataset:
        """The same arrays, only these rows (indices or a mask)."""
        out = copy.copy(self)
        out.table = self.table.select(rows)
        return out

    def blocks(self, rows: int) -> Iterator[slice]:
        """Slices of so many rows, to look at a few columns or tokens at a time."""
        return (slice(first, first + rows) for first in range(0, len(self), rows))


def _flat(code: str, parts: Iterable[Sequence[Any]]) -> Array:
    flat = array(code)  # takes a list ten times as fast as NumPy
    for part in parts:
        flat.fromlist(part if isinstance(part, list) else list(part))
    return np.frombuffer(flat, flat.typecode) if flat else np.zeros(0, flat.typecode)
