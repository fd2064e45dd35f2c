"""Order rows so that files keep given shares of the tokens. Knows no steps and no tokens' values.

    file a, share 2/3    a3 a1 a0 a2 | a1 a2 a0 a3 | ...     its rows, shuffled again each time
    file b, share 1/3    b5 b0 b3 b1 b4 b2 | ...
                         ---- epoch 0 ----|---- epoch 1 ...  as many tokens as all files have
    epoch 0              a3 b5 a1 b0 a0 a2 b3 a1 ...         the shares hold everywhere in it

A small file with a large share goes round several times in an epoch; of a large one with a small
share an epoch takes a part, and the next epoch goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minimind.data.dataset import Array


def mixed_order(
    files: Sequence[tuple[Array, Array]], shares: Sequence[float], seed: int, epoch: int
) -> Array:
    """The rows of one epoch: a pure function of its arguments.

    Each of `files` is its rows' indices, and how many tokens each row has: at least one. In any
    part of the order each file has its share of the tokens to within a row.
    """
    total = sum(int(lengths.sum()) for _, lengths in files)
    chosen, places = [], []
    for file, ((rows, lengths), share) in enumerate(zip(files, shares, strict=True)):
        size = int(lengths.sum())
        low, high = (math.floor(end * share * total) for end in (epoch, epoch + 1))
        for turn in range(low // size, -(-high // size)):
            order = np.random.default_rng([seed, file, turn]).permutation(len(rows))
            starts = turn * size + np.cumsum(lengths[order], dtype=np.int64) - lengths[order]
            inside = (low <= starts) & (starts < high)
            chosen.append(rows[order[inside]])
            places.append((starts[inside] - low) / (high - low))
    return np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")]
