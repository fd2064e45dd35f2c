"""What became of the rows of files, by count."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from minimind.data.keys import KeyCounts

MUCH = 0.02  # lost to truncation


@dataclass(kw_only=True)
class DataReport(KeyCounts):
    """What became of the rows of the files, by count."""

    rows: int = 0  # legal rows read
    kept: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)  # legal but unusual orders
    bad: Counter[str] = field(default_factory=Counter)  # rejected rows by kind
    answers: int = 0  # messages to train
    spelling: int = 0  # of these, messages that spell a control token, which is trained as letters
    spelled: Counter[str] = field(default_factory=Counter)  # such messages by token
    unsupervised: int = 0  # dropped: nothing in them is trained
    truncated: int = 0  # rows that lost trained tokens, dropped ones included
    dropped_long: int = 0  # of these, rows of which nothing was left
    tokens_lost: int = 0  # trained tokens lost to truncation
    suggested_max_length: int = 0  # keeps 99% of rows and trained tokens; 0 if these are kept
    tokens: int = 0
    supervised: int = 0
    system: str | None = None  # the message that --system or every row has, where rows have it
    framed: bool = False  # each answer has a <think> block
    tags: list[str] = field(default_factory=list)  # added to the base, since rows need them
    finals: int = 0  # conversations whose last answer is trained
    reasoned: int = 0  # of these, those whose last answer has reasoning
    split: int = 0  # conversations that became several rows, since several rounds have reasoning
    parts: int = 0  # the rows that they became

    @property
    def examples(self) -> int:
        """Rows after conversations were split."""
        return self.rows - self.split + self.parts

    @property
    def thinking(self) -> bool:
        """Whether most of the last answers have reasoning."""
        return self.framed and 2 * self.reasoned > self.finals

    @property
    def loses_much(self) -> bool:
        """Truncation takes more than MUCH of the rows or of the trained tokens."""
        rows, tokens = self.examples - self.unsupervised, self.supervised + self.tokens_lost
        return self.truncated > MUCH * rows or self.tokens_lost > MUCH * tokens
