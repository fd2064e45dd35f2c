"""A table's choices of rows are those of its columns."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.dataset import COLUMNS, Table


def numbered(rows: int) -> Table:
    """Every column counts its rows, each from another number on."""
    table = Table.zeros(rows)
    for first, name in enumerate(COLUMNS):
        table[name][:] = np.arange(rows) + 100 * first
    return table


@given(st.integers(1, 20), st.data())
def test_choosing_rows_again_and_again_is_choosing_in_each_column(
    rows: int, data: st.DataObject
) -> None:
    table = numbered(rows)
    expected = {name: table[name] for name in COLUMNS}
    for _ in range(data.draw(st.integers(0, 3))):
        if data.draw(st.booleans()):
            booleans = st.lists(st.booleans(), min_size=len(table), max_size=len(table))
            chosen = np.array(data.draw(booleans), bool)
        else:
            numbers = st.integers(0, len(table) - 1) if len(table) else st.nothing()
            chosen = np.array(data.draw(st.lists(numbers)), int)
        table = table.select(chosen)
        expected = {name: column[chosen] for name, column in expected.items()}
        assert len(table) == len(expected["length"])
    for name, column in expected.items():
        assert table[name].tolist() == column.tolist()
        assert table[name].dtype == COLUMNS[name]
        backwards = np.arange(len(table))[::-1]
        assert table.take(name, backwards).tolist() == column[::-1].tolist()
        assert table.take(name, slice(1, 3)).tolist() == column[1:3].tolist()


def test_choosing_rows_copies_no_column() -> None:
    table = numbered(8)
    chosen = table.select(np.arange(8) % 2 == 0)
    assert chosen.rows is not None
    assert chosen.rows.tolist() == [0, 2, 4, 6]
    assert all(chosen.columns[name] is table[name] for name in COLUMNS)
