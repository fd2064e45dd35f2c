"""Look over a data set's rows: what they are, what of them trains, and which deserve a look.

One pass over the files, block by block; memory grows by a few numbers per row. Counts what
becomes of rows on its own, so that it can be held against what the dataset reports.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice

from minimind.data.build import DataOptions
from minimind.data.conversation import Conversation, irregularities
from minimind.data.dataset import Example
from minimind.data.masking import encode_rows, truncate
from minimind.text.look_alike import LOOK_ALIKE
from minimind.text.scripts import main_script
from minimind.tokenizer import Tokenizer

BLOCK_ROWS = 512
PER_REASON = 3  # rows shown for each reason to look at them
DRAWN = 200  # rows drawn by chance
SHOWN = 5  # of these, shown
MOST_TOKENS = 5000  # shown of a row; a person scrolls no further, and a browser chokes on millions
PICKED = ("chosen", "longest", "shortest", "drawn by chance")  # reasons that mean no harm


@dataclass(slots=True)
class ShownRow:
    """A row as the model would see it.

    Attributes:
        number: among all rows that were read, from 1.
        conversation: what it says, and where it stands.
        example: all of its tokens.
        kept: how many of them are left after truncation.
        reasons: why it is shown.
    """

    number: int
    conversation: Conversation
    example: Example
    kept: int
    reasons: list[str]

    @property
    def place(self) -> str:
        """FILE:LINE"""
        return f"{self.conversation.path}:{self.conversation.line}"

    def part(self) -> tuple[Example, str]:
        """What of a very long row is shown, and a sentence about the rest; all of a chosen one."""
        rest = len(self.example) - MOST_TOKENS
        if rest <= 0 or "chosen" in self.reasons:
            return self.example, ""
        ids, mask = self.example.input_ids[:MOST_TOKENS], self.example.loss_mask[:MOST_TOKENS]
        return Example(ids, mask), f"… {rest:,} more tokens; --rows {self.place} shows them"


@dataclass(slots=True)
class Survey:
    """What was found; counts are of rows unless they say otherwise.

    Attributes:
        rows: legal ones that were read.
        shapes: by the name of their shape.
        messages: by how many messages a row has.
        roles: messages by role.
        turns: legal but unusual orders of turns, by name.
        languages: by the scripts of the last question and its answer, such as "hangul > latin".
        look_alikes: by text that looks like a control token.
        lengths: tokens of each row, before truncation.
        trained: supervised tokens of each row, before truncation.
        duplicates: rows whose messages stood before.
        unsupervised: dropped, as nothing in them is trained.
        truncated: lost supervised tokens to truncation, the dropped ones too.
        dropped_long: of these, rows of which nothing is left.
        tokens_lost: supervised tokens that truncation takes.
        drawn: rows drawn by chance.
        shown: rows to look at, in the order of the files.
    """

    rows: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    messages: Counter[int] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    look_alikes: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("I"))
    trained: array[int] = field(default_factory=lambda: array("I"))
    duplicates: int = 0
    unsupervised: int = 0
    truncated: int = 0
    dropped_long: int = 0
    tokens_lost: int = 0
    drawn: list[Conversation] = field(default_factory=list)
    shown: list[ShownRow] = field(default_factory=list)


def survey(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    options: DataOptions,
    chosen: Iterable[str] = (),
) -> Survey:
    """Look over rows.

    Args:
        conversations: as the files have them.
        tokenizer: decides the ids.
        options: what becomes of the rows.
        chosen: places, FILE:LINE, of rows to show besides those that deserve it.
    """
    found = Survey()
    picks = _Picks(set(chosen))
    seen: set[int] = set()
    source = iter(conversations)
    while block := list(islice(source, BLOCK_ROWS)):
        rows = encode_rows(block, tokenizer, train_on=options.train_on)
        for conversation, example in zip(block, rows, strict=True):
            kept = len(truncate(example, options.max_length, tokenizer, options.truncation))
            reasons = _count(found, conversation, example, kept)
            key = _key(conversation)
            if key in seen:
                found.duplicates += 1
                reasons.append("duplicate")
            seen.add(key)
            picks.consider(ShownRow(found.rows, conversation, example, kept, reasons))
    found.drawn = [row.conversation for row in picks.drawn]
    found.shown = picks.rows()
    return found


def _count(found: Survey, conversation: Conversation, example: Example, kept: int) -> list[str]:
    """Count a row in; say what is remarkable about it."""
    reasons = irregularities(conversation)
    found.turns.update(reasons)
    found.rows += 1
    found.shapes[conversation.shape] += 1
    found.messages[len(conversation.messages)] += 1
    found.roles.update([message.role for message in conversation.messages])
    wanted, trained = sum(example.loss_mask), sum(example.loss_mask[:kept])
    found.lengths.append(len(example))
    found.trained.append(wanted)
    found.unsupervised += wanted == 0
    found.tokens_lost += wanted - trained
    if trained < wanted:
        found.truncated += 1
        found.dropped_long += trained == 0
        reasons.append("truncated" if trained else "too long, dropped")
    spelled = {
        text for message in conversation.messages for text in LOOK_ALIKE.findall(message.content)
    }
    found.look_alikes.update(spelled)
    reasons += [f"content spells {text}" for text in sorted(spelled)]
    scripts = _scripts(conversation)
    if scripts:
        found.languages[" > ".join(scripts)] += 1
        if scripts[0] != scripts[1] and "none" not in scripts:
            reasons.append("another script than the question's")
    return reasons


def _scripts(conversation: Conversation) -> tuple[str, str] | None:
    """The main scripts of the last answer's question and of the answer."""
    roles = [message.role for message in conversation.messages]
    for answer in range(len(roles) - 1, 0, -1):
        if roles[answer] == "assistant" and "user" in roles[:answer]:
            question = max(i for i in range(answer) if roles[i] == "user")
            return (
                main_script(conversation.messages[question].content) or "none",
                main_script(conversation.messages[answer].content) or "none",
            )
    return None


def _key(conversation: Conversation) -> int:
    spelled = "\0".join(f"{m.role}\0{m.content}" for m in conversation.messages)
    digest = hashlib.blake2b(spelled.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _Picks:
    """A few rows for each reason, the longest and the shortest, and some drawn by chance."""

    def __init__(self, chosen: set[str]) -> None:
        self._chosen = chosen
        self._by_reason: dict[str, list[ShownRow]] = {}
        self._ranks: dict[str, list[int]] = {}
        self.drawn: list[ShownRow] = []
        self._random = random.Random(0)

    def consider(self, row: ShownRow) -> None:
        for reason in row.reasons:
            rows = self._by_reason.setdefault(reason.partition(" spells ")[0], [])
            if len(rows) < PER_REASON:
                rows.append(row)
        if row.place in self._chosen:
            self._by_reason.setdefault("chosen", []).append(row)
        self._extreme("longest", row, -len(row.example))
        self._extreme("shortest", row, len(row.example))
        # Each row is among the drawn ones with equal chance: reservoir sampling.
        if len(self.drawn) < DRAWN:
            self.drawn.append(row)
        elif (place := self._random.randrange(row.number)) < DRAWN:
            self.drawn[place] = row

    def _extreme(self, name: str, row: ShownRow, rank: int) -> None:
        """Keep the rows of the lowest ranks; of equals the first."""
        ranks, rows = self._ranks.setdefault(name, []), self._by_reason.setdefault(name, [])
        place = bisect_right(ranks, rank)
        if place < PER_REASON:
            ranks.insert(place, rank)
            rows.insert(place, row)
            del ranks[PER_REASON:], rows[PER_REASON:]

    def rows(self) -> list[ShownRow]:
        """All of them, each once, with all reasons."""
        some = self._random.sample(self.drawn, min(SHOWN, len(self.drawn)))
        self._by_reason["drawn by chance"] = some
        found: dict[int, ShownRow] = {}
        for reason, rows in self._by_reason.items():
            for row in rows:
                found[row.number] = row
                if reason in PICKED:
                    row.reasons.append(reason)
        return [found[number] for number in sorted(found)]
