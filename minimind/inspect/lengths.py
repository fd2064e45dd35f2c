"""Count rows by their tokens, and draw the counts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

BARS, WIDTH = 10, 30  # of the drawing, in lines and in characters


def count_lengths(lengths: Sequence[int], max_length: int) -> list[tuple[int, int, int]]:
    """Rows by their tokens: (from, to, rows) for ten equal spans up to `max_length`, and the rest.

    Where no row is as long as that the spans end with the longest row.
    """
    found = np.array(lengths)
    if not len(found):
        return []
    longest = int(found.max())
    top = min(longest, max_length)
    step = max(-(-top // BARS), 1)
    edges = [*range(0, top, step), top, *([longest] if longest > top else [])]
    return [
        (low + 1, high, int(((found > low) & (found <= high)).sum()))
        for low, high in pairwise(edges)
    ]


def draw_lengths(lengths: Sequence[int], max_length: int) -> list[str]:
    """`count_lengths` as bars, and a line at the most that is kept."""
    counts = count_lengths(lengths, max_length)
    most = max((count for *_, count in counts), default=0)
    lines = ["tokens per row, before truncation:"]
    for low, high, count in counts:
        if low == max_length + 1:
            lines.append(f"    {'':-<{WIDTH}} --max-length {max_length:,}")
        bar = "█" * -(-WIDTH * count // most)
        lines.append(f"    {bar:{WIDTH}} {low:,} to {high:,}: {count:,}")
    return lines
