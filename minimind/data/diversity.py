"""Tell in figures how varied rows are; what is too little is for people to say."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from minimind.data.conversation import Conversation
from minimind.data.ngrams import ngrams

OPENING_WORDS = 2
OPENINGS = 5  # the commonest that are told


@dataclass(slots=True)
class Diversity:
    """Counts over the answers of rows; memory grows with their different words.

    Attributes:
        rows: taken.
        lengths: characters of each answer.
        openings: answers by their first two words.
        grams: for n = 1 and 2, the n-grams of words; how many there are, and the different ones.
    """

    rows: int = 0
    lengths: list[int] = field(default_factory=list)
    openings: Counter[str] = field(default_factory=Counter)
    grams: dict[int, tuple[int, set[int]]] = field(
        default_factory=lambda: {1: (0, set()), 2: (0, set())}
    )

    def add(self, conversation: Conversation) -> None:
        """Take a row's answers in."""
        self.rows += 1
        for message in conversation.messages:
            if message.role == "assistant":
                words = message.content.casefold().split()
                self.lengths.append(len(message.content))
                self.openings[" ".join(words[:OPENING_WORDS])] += 1
                for n, (count, different) in self.grams.items():
                    found = ngrams(words, n)
                    different.update(map(hash, found))
                    self.grams[n] = (count + len(found), different)

    def figures(self) -> dict[str, float | dict[str, float]]:
        """distinct-n, openings by their share, and the spread of lengths; empty without answers.

        Source: distinct-n, Li et al. 2016, N16-1014: different n-grams over all n-grams.
        """
        if not self.lengths:
            return {}
        out: dict[str, float | dict[str, float]] = {
            f"distinct-{n}": len(different) / count
            for n, (count, different) in self.grams.items()
            if count
        }
        percentiles = np.percentile(self.lengths, [5, 50, 95])
        for name, value in zip(("5%", "median", "95%"), percentiles, strict=True):
            out[f"answer characters, {name}"] = float(value)
        out["openings"] = {
            opening: count / len(self.lengths)
            for opening, count in self.openings.most_common(OPENINGS)
        }
        return out
