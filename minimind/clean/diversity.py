"""Describe in figures how varied rows are. Whether that is too little is for people to judge."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from minimind.data.conversation import Conversation
from minimind.text.ngrams import LONGEST, ngrams

OPENING_WORDS = 2
OPENING_CHARACTERS = 40  # of these words; a text without spaces is one word
OPENINGS = 5  # the most common ones, which are reported
MAX_HASHES = 2**18


@dataclass(slots=True)
class DistinctCounter:
    """Counts distinct items by their hashes, in bounded memory.

    Exact up to MAX_HASHES. Beyond that, only hashes that end in `zeros` zero bits are kept, and
    each stands for 2**zeros items: the error is about 0.2%.

    Source: adaptive sampling, Flajolet 1990, Computing 43.
    """

    hashes: set[int] = field(default_factory=set)
    zeros: int = 0

    def update(self, hashes: Iterable[int]) -> None:
        mask = (1 << self.zeros) - 1
        self.hashes.update(value for value in hashes if not value & mask)
        if len(self.hashes) > MAX_HASHES:
            self.zeros += 1
            kept, self.hashes = self.hashes, set()
            self.update(kept)

    def count(self) -> int:
        return len(self.hashes) << self.zeros


@dataclass(slots=True)
class Diversity:
    """Counts over the answers of rows; memory grows by some bytes an answer, and its opening.

    Attributes:
        lengths: characters of each answer.
        openings: answers by their first two words.
        ngrams: for n = 1 and 2, how many n-grams of words there are.
        distinct: for each n, how many distinct ones.
    """

    lengths: array[int] = field(default_factory=lambda: array("I"))
    openings: Counter[str] = field(default_factory=Counter)
    ngrams: Counter[int] = field(default_factory=Counter)
    distinct: dict[int, DistinctCounter] = field(
        default_factory=lambda: {1: DistinctCounter(), 2: DistinctCounter()}
    )

    def add(self, conversation: Conversation) -> None:
        for message in conversation.messages:
            if message.role == "assistant":
                self.lengths.append(len(message.content))
                words = message.content[:LONGEST].casefold().split()
                self.openings[" ".join(words[:OPENING_WORDS])[:OPENING_CHARACTERS]] += 1
                # Python's hashes of strings change from run to run, those of numbers don't.
                ids = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
                for n, distinct in self.distinct.items():
                    found = ngrams(ids, n)
                    self.ngrams[n] += len(found)
                    distinct.update(map(hash, found))

    def figures(self) -> dict[str, float | dict[str, float]]:
        """distinct-n, the shares of openings, and the spread of lengths; empty without answers.

        Source: distinct-n, Li et al. 2016, N16-1014: distinct n-grams over all n-grams.
        """
        if not self.lengths:
            return {}
        figures: dict[str, float | dict[str, float]] = {
            f"distinct-{n}": distinct.count() / self.ngrams[n]
            for n, distinct in self.distinct.items()
            if self.ngrams[n]
        }
        percentiles = np.percentile(self.lengths, [5, 50, 95]).tolist()
        for name, value in zip(("5%", "median", "95%"), percentiles, strict=True):
            figures[f"answer characters, {name}"] = value
        figures["openings"] = {
            opening: count / len(self.lengths)
            for opening, count in self.openings.most_common(OPENINGS)
        }
        return figures
