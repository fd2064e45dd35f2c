"""Keep rows as flat arrays, end to end, and what is known of each row as columns.

    input_ids   row 0 ......|row 1 ...|row 2 ..........     uint16 or uint32
    loss_mask   0000 1111 ..|...                            bool
    weights     0000 1111 ..|...                            float32, only if some aren't 0 or 1
    table       12, ...     | 9, ...  | 19, ...             columns, an entry per row

The arrays are in memory or mapped from files; memory hardly grows with the rows of the latter.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
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
    "key": np.dtype("<u8"),  # equal for rows that ask alike: see prompts.py
    "file": np.dtype("<u2"),  # index among the files
    "line": np.dtype("<u4"),
}

PROMPTS = np.dtype([("row", "<u4"), ("key", "<u8")])  # a trained answer's prompt, beside the row's


@dataclass(frozen=True, slots=True)
class Example:
    """One row, ready to train on.

    Attributes:
        input_ids: (tokens,) token ids.
        loss_mask: (tokens,) True where the token is trained (predicted from those before it).
        weights: (tokens,) the loss's factor, 0 where untrained; None if trained tokens count 1.

    Raises:
        ValueError: they differ in length.
    """

    input_ids: Sequence[int]
    loss_mask: Sequence[bool]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        parts = (
            self.input_ids,
            self.loss_mask,
            self.input_ids if self.weights is None else self.weights,
        )
        if len({len(part) for part in parts}) > 1:
            raise ValueError("an Example's lists differ in length; give an entry per token")

    def __len__(self) -> int:
        return len(self.input_ids)


class Dataset(Sequence[Example]):
    """A sequence of Examples over flat arrays: all rows, or a choice of them.

    Each column is an array of its own: reading one leaves the others on disk. A choice of rows is
    an index, and copies no column.

    Args:
        input_ids: (tokens,) unsigned integers.
        loss_mask: (tokens,) bool.
        weights: (tokens,) float32, the loss's factor, 0 where a token isn't trained; or None if
            every trained token counts 1.
        columns: each of COLUMNS, an entry per row.
        rows: (chosen rows,) uint32; None for all rows.
    """

    def __init__(
        self,
        input_ids: Array,
        loss_mask: Array,
        weights: Array | None,
        columns: Mapping[str, Array],
        rows: Array | None = None,
    ) -> None:
        self.input_ids, self.loss_mask, self.weights = input_ids, loss_mask, weights
        self.columns, self.rows = columns, rows

    @classmethod
    def from_flat(
        cls, input_ids: Array, loss_mask: Array, weights: Array | None, ends: Array
    ) -> Dataset:
        """Rows that lie end to end; `ends` is (rows,) where each one ends."""
        columns = {name: np.zeros(len(ends), dtype) for name, dtype in COLUMNS.items()}
        lengths = np.diff(ends, prepend=0)
        starts = ends - lengths
        marked = np.flatnonzero(loss_mask)
        marked = marked[~np.isin(marked, starts[lengths > 0])]  # nothing predicts a first token
        before, after = np.searchsorted(marked, starts), np.searchsorted(marked, ends)
        some = after > before
        columns["start"][:] = starts
        columns["length"][:] = lengths
        columns["supervised"][:] = after - before
        columns["input_length"][some] = marked[after[some] - 1] - starts[some]
        return cls(input_ids, loss_mask, weights, columns)

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> Dataset:
        rows = list(examples)
        if wrong := [row for row in rows if not isinstance(row, Example)]:
            kind = type(wrong[0]).__name__
            raise TypeError(f"examples: has a {kind}; give Examples, as encode_conversation makes")
        input_ids = flat("I", [row.input_ids for row in rows])
        loss_mask = flat("B", [row.loss_mask for row in rows]).astype(np.bool_)
        weights = None
        if any(row.weights is not None for row in rows):
            weights = flat("f", [r.loss_mask if r.weights is None else r.weights for r in rows])
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls.from_flat(input_ids, loss_mask, weights, ends)

    def __len__(self) -> int:
        return len(self.columns["length"] if self.rows is None else self.rows)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index}: the dataset has {len(self)} rows")
        start = int(self.take("start", index))
        span = slice(start, start + int(self.take("length", index)))
        weights = None if self.weights is None else self.weights[span].tolist()
        if weights is not None and {0.0, 1.0}.issuperset(weights):
            weights = None
        return Example(self.input_ids[span].tolist(), self.loss_mask[span].tolist(), weights)

    def column(self, name: str) -> Array:
        """(rows,) one column of all chosen rows; a copy if there is a choice."""
        return self.columns[name] if self.rows is None else self.columns[name][self.rows]

    def take(self, name: str, rows: Array | slice | int) -> Array:
        """One column at some of the chosen rows."""
        return self.columns[name][rows if self.rows is None else self.rows[rows]]

    def select(self, rows: Array) -> Dataset:
        """The same arrays, only these of the chosen rows: indices, or a mask."""
        every = np.arange(len(self), dtype=np.uint32) if self.rows is None else self.rows
        return Dataset(self.input_ids, self.loss_mask, self.weights, self.columns, every[rows])


def flat(code: str, parts: Iterable[Sequence[Any]]) -> Array:
    """Lists end to end, of one of the types of Python's arrays: "I" for uint32."""
    numbers = array(code)  # takes a list ten times as fast as NumPy
    for part in parts:
        numbers.fromlist(part if isinstance(part, list) else list(part))
    return np.frombuffer(numbers, code) if numbers else np.zeros(0, code)
