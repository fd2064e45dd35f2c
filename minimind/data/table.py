"""What is known of each row of a dataset, column by column. Knows no tokens."""

from __future__ import annotations

from collections.abc import Mapping
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


class Table:
    """Columns of equal length, in memory or mapped, and perhaps a choice of their rows.

    Each column is an array of its own, so that reading one leaves the others on disk; a choice is
    an index, so that choosing copies none. Memory then hardly grows with rows.

    Attributes:
        columns: every column of COLUMNS, whole.
        rows: (chosen rows,) uint32 indices into the columns, or None for all rows.
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
        """(rows,) one column of all chosen rows; a copy where there is a choice."""
        column = self.columns[name]
        return column if self.rows is None else column[self.rows]

    def take(self, name: str, rows: Array | slice) -> Array:
        """One column at some of the chosen rows."""
        return self.columns[name][rows if self.rows is None else self.rows[rows]]

    def select(self, rows: Array) -> Table:
        """Only these of the chosen rows: indices, or a mask."""
        every = np.arange(len(self), dtype=np.uint32) if self.rows is None else self.rows
        return Table(self.columns, every[rows])
