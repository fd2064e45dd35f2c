"""Count what a text repeats.

Words are what white space separates, in Korean as in English. A text without white space is one
word: look for repetitions of its characters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")
LONGEST = 100_000  # characters of a text in which repetitions are looked for


def ngrams(items: Sequence[Item], n: int) -> list[tuple[Item, ...]]:
    """All runs of n items, in order; none if there are fewer items."""
    return list(zip(*(items[start:] for start in range(n)), strict=False))


def repeated_share(items: Sequence[str], n: int) -> float:
    """Share of a text's n-grams that repeat an earlier one; 0 if there are none.

    a b a b a b, n = 2   ->   ab ba ab ba ab: 3 of 5
    """
    grams = ngrams(items, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
