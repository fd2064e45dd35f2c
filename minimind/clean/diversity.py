"""Tell in figures how varied rows are; what is too little is for people to say."""

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
OPENING_LETTERS = 40  # of them; a text without spaces is one word
OPENINGS = 5  # the commonest that are told
DISTINCT = 2**18  # different things that are counted one by one


@dataclass(slots=True)
class Distinct:
    """Counts different things by their hashes, in bounded memory.

    Exact up to DISTINCT. Beyond it only hashes that end in ever more zeros are remembered, and
    stand for the others: the error is about 0.2%.

    Source: adaptive sampling, Flajolet 1990, Computing 43.
    """

    remembered: set[int] = field(default_factory=set)
    zeros: int = 0

    def update(self, hashes: Iterable[int]) -> None:
        """Take things in."""
        mask = (1 << self.zeros) - 1
        self.remembered.update(value for value in hashes if not value & mask)
        while len(self.remembered) > DISTINCT:
            self.zeros += 1
            mask = (1 << self.zeros) - 1
            self.remembered = {value for value in self.remembered if not value & mask}

    def count(self) -> int:
        """How many different ones there were."""
        return len(self.remembered) << self.zeros


@dataclass(slots=True)
class Diversity:
    """Counts over the answers of rows; memory grows by some bytes an answer, and its opening.

    Attributes:
        rows: taken.
        lengths: characters of each answer.
        openings: answers by their first two words.
        grams: for n = 1 and 2, how many n-grams of words there are.
        different: and how many different ones.
    """

    rows: int = 0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    openings: Counter[str] = field(default_factory=Counter)
    grams: Counter[int] = field(default_factory=Counter)
    different: dict[int, Distinct] = field(default_factory=lambda: {1: Distinct(), 2: Distinct()})

    def add(self, conversation: Conversation) -> None:
        """Take a row's answers in."""
        self.rows += 1
        for message in conversation.messages:
            if message.role == "assistant":
                self.lengths.append(len(message.content))
                words = message.content[:LONGEST].casefold().split()
                self.openings[" ".join(words[:OPENING_WORDS])[:OPENING_LETTERS]] += 1
                # Python's hashes of texts change from run to run, those of numbers don't.
                ids = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for word in words]
                for n, different in self.different.items():
                    found = ngrams(ids, n)
                    self.grams[n] += len(found)
                    different.update(map(hash, found))

    def figures(self) -> dict[str, float | dict[str, float]]:
        """distinct-n, openings by their share, and the spread of lengths; empty without answers.

        Source: distinct-n, Li et al. 2016, N16-1014: different n-grams over all n-grams.
        """
        if not self.lengths:
            return {}
        out: dict[str, float | dict[str, float]] = {
            f"distinct-{n}": different.count() / self.grams[n]
            for n, different in self.different.items()
            if self.grams[n]
        }
        percentiles = np.percentile(self.lengths, [5, 50, 95])
        for name, value in zip(("5%", "median", "95%"), percentiles, strict=True):
            out[f"answer characters, {name}"] = float(value)
        out["openings"] = {
            opening: count / len(self.lengths)
            for opening, count in self.openings.most_common(OPENINGS)
        }
        return out
