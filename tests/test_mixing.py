"""Files keep their shares of the tokens, wherever one looks, and repeat as little as they must."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.mixing import mixed_order

Files = list[tuple[np.ndarray, np.ndarray]]


def files_of(*lengths: list[int]) -> Files:
    files, first = [], 0
    for of_file in lengths:
        rows = np.arange(first, first + len(of_file), dtype=np.uint32)
        files.append((rows, np.array(of_file, np.uint32)))
        first += len(of_file)
    return files


def tokens_of(files: Files, order: np.ndarray) -> list[int]:
    return [int(lengths[order[np.isin(order, rows)] - rows[0]].sum()) for rows, lengths in files]


def shares_of(weights: list[float]) -> list[float]:
    return [weight / sum(weights) for weight in weights]


some_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@given(
    lengths=st.lists(some_lengths, min_size=1, max_size=4),
    weights=st.lists(st.floats(0.01, 10), min_size=4, max_size=4),
    seed=st.integers(0, 5),
    cut=st.floats(0, 1),
)
def test_every_prefix_of_an_epoch_has_the_shares_to_within_a_row(
    lengths: list[list[int]], weights: list[float], seed: int, cut: float
) -> None:
    files = files_of(*lengths)
    shares = shares_of(weights[: len(lengths)])
    order = mixed_order(files, shares, seed, epoch=1)
    tokens = np.array(tokens_of(files, order[: round(cut * len(order))]))
    expected = np.array(shares) * tokens.sum()
    # Each file may be a row ahead or behind, and so may the others that the sum is made of.
    assert np.abs(tokens - expected).max() <= 2 * 40 * len(files)


@given(lengths=st.lists(some_lengths, min_size=1, max_size=3), seed=st.integers(0, 5))
def test_no_row_is_taken_twice_more_than_another_of_its_file(
    lengths: list[list[int]], seed: int
) -> None:
    files = files_of(*lengths)
    shares = shares_of([1.0, 5.0, 0.3][: len(lengths)])
    taken = Counter(row for epoch in range(4) for row in mixed_order(files, shares, seed, epoch))
    for rows, _ in files:
        counts = [taken[row] for row in rows]
        assert max(counts) - min(counts) <= 1


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    files = files_of([3] * 50, [5] * 10)
    first = mixed_order(files, [0.5, 0.5], 0, 2).tolist()
    assert first == mixed_order(files, [0.5, 0.5], 0, 2).tolist()
    assert first != mixed_order(files, [0.5, 0.5], 1, 2).tolist()
    assert first != mixed_order(files, [0.5, 0.5], 0, 3).tolist()


def test_a_small_file_goes_round_and_a_large_one_goes_on_where_it_was() -> None:
    files = files_of([1] * 10, [1] * 90)
    orders = [mixed_order(files, [0.5, 0.5], 0, epoch) for epoch in (0, 1)]
    small = [Counter(order[order < 10].tolist()) for order in orders]
    assert all(set(counts.values()) == {5} and len(counts) == 10 for counts in small)
    first, second = (order[order >= 10].tolist() for order in orders)
    assert len(first) == len(second) == 50
    assert len(set(first)) == 50
    assert set(first + second) == set(range(10, 100))  # 40 that were left, then 10 once more
