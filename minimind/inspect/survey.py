"""Look over a data set's rows: what they are, and which deserve a look.

One pass over the files, block by block; memory grows by a few numbers per row.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

from minimind.data.blocks import blocks, characters
from minimind.data.build import DataOptions, DataReport
from minimind.data.chatml import TrainOn, render
from minimind.data.conversation import Conversation, irregularities
from minimind.data.dataset import Example
from minimind.data.masking import encode_rows, truncate
from minimind.data.rounds import split_rounds
from minimind.text.look_alike import LOOK_ALIKE
from minimind.text.scripts import main_script
from minimind.tokenizer import Tokenizer

ROWS_PER_REASON = 3  # shown
SAMPLE_ROWS = 200  # of the random sample
SAMPLE_ROWS_SHOWN = 5
MAX_TOKENS_SHOWN = 5000  # of a row; more would make the page too large for a browser
HARMLESS = ("chosen", "longest", "shortest", "random sample")  # reasons to show a sound row


@dataclass(slots=True)
class ShownRow:
    """A row as the model would see it.

    Attributes:
        number: among all rows that were read, from 1.
        conversation: what it says, and its place.
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

    def first_tokens(self) -> tuple[Example, str]:
        """The tokens to show, and a sentence about the rest; a chosen row is shown whole."""
        rest = len(self.example) - MAX_TOKENS_SHOWN
        if rest <= 0 or "chosen" in self.reasons:
            return self.example, ""
        ids = self.example.input_ids[:MAX_TOKENS_SHOWN]
        mask = self.example.loss_mask[:MAX_TOKENS_SHOWN]
        return Example(ids, mask), f"… {rest:,} more tokens; --rows {self.place} shows them"


@dataclass(slots=True)
class Survey:
    """What was found beyond what the DataReport counts.

    Attributes:
        messages: rows by how many messages they have.
        roles: messages by role.
        scripts: rows by the scripts of the last question and its answer, as "hangul > latin".
        look_alikes: rows by text in them that looks like a control token.
        lengths: tokens of each row, before truncation.
        duplicates: rows with the same messages as an earlier row.
        mismatches: rows whose trained ids decode to something else than the answers.
        first_mismatch: place and fact of the first of them.
        not_stored: rows that the dataset has otherwise; None if there was none to compare with.
        sample: a random sample of the rows.
        shown: rows to look at, in the order of the files.
    """

    messages: Counter[int] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    look_alikes: Counter[str] = field(default_factory=Counter)
    lengths: array[int] = field(default_factory=lambda: array("I"))
    duplicates: int = 0
    mismatches: int = 0
    first_mismatch: str = ""
    not_stored: int | None = None
    sample: list[Conversation] = field(default_factory=list)
    shown: list[ShownRow] = field(default_factory=list)


def survey(
    conversations: Iterable[Conversation],
    tokenizer: Tokenizer,
    options: DataOptions,
    chosen: Iterable[str] = (),
    stored: Iterable[Example] | None = None,
) -> Survey:
    """Look over rows.

    Args:
        conversations: the files' rows.
        tokenizer: decides the ids, and whether rows are framed.
        options: how rows become Examples.
        chosen: places, FILE:LINE, of rows to show in any case.
        stored: the dataset that was made of these rows.
    """
    found = Survey()
    picks = _Picks(set(chosen))
    seen: set[int] = set()
    others = 0
    rest = None if stored is None else iter(stored)
    split = (part for row in conversations for part in split_rounds(row, options.train_on))
    for block in blocks(split, characters):
        rows = encode_rows(block, tokenizer, train_on=options.train_on)
        for conversation, example in zip(block, rows, strict=True):
            part = truncate(example, options.limit, tokenizer, options.truncation)
            if rest is not None and any(part.loss_mask):
                others += next(rest, None) != part
            kept = len(part)
            reasons = _count(found, conversation, example, kept)
            if fact := decoding_mismatch(conversation, example, tokenizer, options.train_on):
                found.mismatches += 1
                found.first_mismatch = (
                    found.first_mismatch or f"{conversation.path}:{conversation.line}: {fact}"
                )
                reasons.append("decodes to other text")
            key = _message_hash(conversation)
            if key in seen:
                found.duplicates += 1
                reasons.append("duplicate")
            seen.add(key)
            picks.consider(ShownRow(len(found.lengths), conversation, example, kept, reasons))
    found.not_stored = None if rest is None else others + sum(1 for _ in rest)
    found.sample = [row.conversation for row in picks.sample]
    found.shown = picks.rows()
    return found


def tables(report: DataReport, found: Survey) -> dict[str, Mapping[Any, int]]:
    """All counts by title; empty ones left out."""
    counts: dict[str, Mapping[Any, int]] = {
        "shape": report.shapes,
        "messages in a row": found.messages,
        "role": found.roles,
        "unusual turns": report.turns,
        "script of question > answer": found.scripts,
        "looks like a control token": found.look_alikes,
        "answers that spell a token of the base": report.spelled,
    }
    return {title: table for title, table in counts.items() if table}


def decoding_mismatch(
    conversation: Conversation, example: Example, tokenizer: Tokenizer, train_on: TrainOn
) -> str | None:
    """Decode a row's trained ids and compare them with the answers, each with its end token.

    They differ where a base's tokenizer changes text (its case, its Unicode form) or can't write
    it. None if they are equal.
    """
    segments = render(
        conversation.messages, train_on, tools=conversation.tools, framed=tokenizer.framed
    )
    expected = "".join(segment.text for segment in segments if segment.weight)
    ids = compress(example.input_ids, example.loss_mask)
    decoded = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    if decoded == expected:
        return None
    pairs = enumerate(zip(decoded, expected, strict=False))
    first = next((at for at, (ours, theirs) in pairs if ours != theirs), 0)
    part = slice(max(0, first - 20), first + 60)
    return f"trains {decoded[part]!r} where the assistant says {expected[part]!r}"


def _count(found: Survey, conversation: Conversation, example: Example, kept: int) -> list[str]:
    """Count a row, and return what is suspicious about it."""
    reasons = irregularities(conversation)
    found.messages[len(conversation.messages)] += 1
    found.roles.update([message.role for message in conversation.messages])
    found.lengths.append(len(example))
    if any(example.loss_mask[kept:]):
        reasons.append("truncated" if any(example.loss_mask[:kept]) else "too long, dropped")
    spelled = {
        text for message in conversation.messages for text in LOOK_ALIKE.findall(message.content)
    }
    found.look_alikes.update(spelled)
    reasons += [f"content spells {text}" for text in sorted(spelled)]
    if scripts := _question_and_answer_scripts(conversation):
        found.scripts[" > ".join(scripts)] += 1
        if scripts[0] != scripts[1] and "none" not in scripts:
            reasons.append("question and answer in different scripts")
    return reasons


def _question_and_answer_scripts(conversation: Conversation) -> tuple[str, str] | None:
    """The main scripts of the last answer's question and of that answer."""
    question: str | None = None
    pair = None
    for message in conversation.messages:
        if message.role == "user":
            question = message.content
        elif message.role == "assistant" and question is not None:
            pair = question, message.content
    return pair and (main_script(pair[0]) or "none", main_script(pair[1]) or "none")


def _message_hash(conversation: Conversation) -> int:
    messages = conversation.messages
    spelled = "\0".join(f"{m.role}\0{m.content}" for m in messages)
    if conversation.tools or any(m.reasoning or m.calls for m in messages):
        spelled += repr([conversation.tools, [(m.reasoning, m.calls) for m in messages]])
    digest = hashlib.blake2b(spelled.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


class _Picks:
    """A few rows for each reason, the longest and the shortest, and a random sample."""

    def __init__(self, chosen: set[str]) -> None:
        self._chosen = chosen
        self._by_reason: dict[str, list[ShownRow]] = {}
        self.sample: list[ShownRow] = []
        self._random = random.Random(0)

    def consider(self, row: ShownRow) -> None:
        for reason in row.reasons:
            rows = self._by_reason.setdefault(reason.partition(" spells ")[0], [])
            if len(rows) < ROWS_PER_REASON:
                rows.append(row)
        if row.place in self._chosen:
            self._by_reason.setdefault("chosen", []).append(row)
        self._keep_first("longest", row, lambda kept: -len(kept.example))
        self._keep_first("shortest", row, lambda kept: len(kept.example))
        # Reservoir sampling: each row is drawn with equal chance.
        if len(self.sample) < SAMPLE_ROWS:
            self.sample.append(row)
        elif (place := self._random.randrange(row.number)) < SAMPLE_ROWS:
            self.sample[place] = row

    def _keep_first(self, reason: str, row: ShownRow, rank: Callable[[ShownRow], int]) -> None:
        rows = self._by_reason.setdefault(reason, [])
        rows.append(row)
        rows.sort(key=rank)
        del rows[ROWS_PER_REASON:]

    def rows(self) -> list[ShownRow]:
        """All of them, each once, with all reasons."""
        shown = self._random.sample(self.sample, min(SAMPLE_ROWS_SHOWN, len(self.sample)))
        self._by_reason["random sample"] = shown
        found: dict[int, ShownRow] = {}
        for reason, rows in self._by_reason.items():
            for row in rows:
                found[row.number] = row
                if reason in HARMLESS:
                    row.reasons.append(reason)
        return [found[number] for number in sorted(found)]
