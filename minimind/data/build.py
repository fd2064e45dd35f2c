"""Tokenize files of conversations once to a folder, and count what became of their rows."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from minimind.data.blocks import BLOCK_ROWS, blocks, characters
from minimind.data.chatml import CHAT_TEMPLATE, TrainOn
from minimind.data.conversation import Conversation, irregularities
from minimind.data.dataset import Array, Dataset
from minimind.data.errors import DataError
from minimind.data.masking import Truncation, encode_rows, truncate
from minimind.data.normal_form import normalize
from minimind.data.reader import read_conversations
from minimind.data.row_options import RowOptions
from minimind.data.storage import (
    DatasetWriter,
    build_once,
    cache_directory,
    read_dataset,
    readable_again,
)
from minimind.tokenizer import Tokenizer

REJECTED = "rejected.jsonl"
_ALPHANUMERIC = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class DataOptions(RowOptions):
    """How rows become Examples. All of it is part of the cache's key.

    Attributes:
        max_length: tokens of a row; longer ones are truncated.
        truncation: of longer rows: turns drops whole trailing turns, tokens cuts at the limit, drop
            leaves out rows whose trained tokens don't all fit.
        train_on: every assistant message, or the last one.
    """

    max_length: int = 512
    truncation: Truncation = "turns"
    train_on: TrainOn = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; use a positive number")


@dataclass(kw_only=True)
class DataReport:
    """What became of the rows of the files, by count."""

    rows: int = 0  # legal rows read
    kept: int = 0
    shapes: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)  # legal but unusual orders
    bad: Counter[str] = field(default_factory=Counter)  # rejected rows by kind
    unsupervised: int = 0  # dropped: nothing in them is trained
    truncated: int = 0  # rows that lost trained tokens, dropped ones included
    dropped_long: int = 0  # of these, rows of which nothing was left
    tokens_lost: int = 0  # trained tokens lost to truncation
    tokens: int = 0
    supervised: int = 0


def build_dataset(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    options: DataOptions,
    cache: Path | None = None,
    names: Sequence[str] | None = None,
    verify: bool = False,
) -> tuple[Dataset, DataReport, Path]:
    """Tokenize files once; the second time, map what the first time wrote.

    With `verify` the cached files' sums are read, whatever their sizes and times.

    The third value is the dataset's folder in the cache, with rejected.jsonl if rows were bad. Its
    key is made of the files' content, the tokenizer, the template and the options. Errors and
    rejected.jsonl call the files by `names`, by default their paths.

    Raises:
        DataError: a file can't be used or changes meanwhile; or, unless `options.on_bad_row` is
            "skip", a row can't be used.
    """
    files = [os.fspath(path) for path in paths]
    names = list(names or files)
    root = cache or cache_directory()
    settings: list[Any] = [CHAT_TEMPLATE, tokenizer.fingerprint, asdict(options)]
    if options.on_bad_row == "skip":
        settings.append(names)  # rejected.jsonl has them
    with readable_again(files, root) as files:
        named = list(zip(files, names, strict=True))
        write = partial(_write, named, tokenizer, options)
        folder = build_once(root, settings, named, write, verify)
    dataset, report = read_dataset(folder)
    for name in ("shapes", "turns", "bad"):
        report[name] = Counter(report[name])
    return dataset, DataReport(**report), folder


def prompt_key_of(conversation: Conversation) -> int:
    """64 bits of a hash over all messages before the first answer, normalized.

    Normalized: Unicode NFKC, case-folded, without white space and punctuation, so that "Hi!" and
    "hi" are one prompt. If there is no user message before the first answer, all messages count.
    """
    messages = conversation.messages
    roles = [message.role for message in messages]
    first_answer = roles.index("assistant") if "assistant" in roles else len(roles)
    prompt = messages[:first_answer] if "user" in roles[:first_answer] else messages
    parts = []
    for message in prompt:
        text = normalize("NFKC", message.content).casefold()
        parts.append(f"{message.role}\0{''.join(_ALPHANUMERIC.findall(text)) or text}\0")
    spelled = "".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(spelled, digest_size=8).digest(), "big")


def _write(
    named: Sequence[tuple[str, str]], tokenizer: Tokenizer, options: DataOptions, folder: Path
) -> None:
    """Stream files, each with its name in errors, through the data chain into a folder."""
    report = DataReport()
    files, names = [file for file, _ in named], dict(named)
    index_of = {file: index for index, file in reversed(list(enumerate(files)))}
    writer = DatasetWriter(folder, tokenizer.vocab_size)
    # What UTF-8 can't write, such as bytes in a file's name, is escaped as in JSON.
    with open(folder / REJECTED, "w", encoding="utf-8", errors="backslashreplace") as rejected:

        def on_error(error: DataError) -> None:
            error.path = names[error.path]
            if options.on_bad_row == "stop" or error.rest_unread:
                raise error
            report.bad[error.kind] += 1
            keys = ("path", "line", "kind", "fact", "remedy", "excerpt", "row")
            entry = {key: getattr(error, key) for key in keys}
            rejected.write(json.dumps(entry, ensure_ascii=False) + "\n")

        conversations = read_conversations(
            files,
            prompt_key=options.prompt_key,
            answer_key=options.answer_key,
            system=options.system,
            on_error=on_error,
        )
        for sources, rows in _blocks(conversations, tokenizer, options, report):
            rows.columns["key"][:] = [prompt_key_of(source) for source in sources]
            rows.columns["file"][:] = [index_of[source.path] for source in sources]
            rows.columns["line"][:] = [source.line for source in sources]
            writer.add(rows)
    if not report.bad:
        (folder / REJECTED).unlink()
    writer.finish(vars(report))


def _blocks(
    conversations: Iterator[Conversation],
    tokenizer: Tokenizer,
    options: DataOptions,
    report: DataReport,
) -> Iterator[tuple[list[Conversation], Dataset]]:
    """Yield the rows that train, some hundred at a time, and their tokens; count all rows."""
    for sources, rows in _encoded(conversations, tokenizer, options.train_on):
        report.rows += len(sources)
        report.shapes.update([source.shape for source in sources])
        report.turns.update([name for source in sources for name in irregularities(source)])
        starts, lengths, before = (
            rows.column(name).astype(np.int64) for name in ("start", "length", "supervised")
        )
        for index in np.flatnonzero((lengths > options.max_length) & (before > 0)).tolist():
            row = truncate(rows[index], options.max_length, tokenizer, options.truncation)
            lengths[index] = len(row)
        supervised = np.append(0, np.cumsum(rows.loss_mask))
        after = supervised[starts + lengths] - supervised[starts]
        lengths[after == 0] = 0
        report.unsupervised += int((before == 0).sum())
        report.truncated += int((after < before).sum())
        report.tokens_lost += int((before - after).sum())
        report.dropped_long += int(((after == 0) & (before > 0)).sum())
        report.kept += int((after > 0).sum())
        report.tokens += int(lengths.sum())
        report.supervised += int(after.sum())
        yield list(compress(sources, lengths.tolist())), _cut(rows, lengths)


def _cut(rows: Dataset, lengths: Array) -> Dataset:
    """Only the first `lengths[i]` tokens of each row i; without the rows of length 0."""
    starts, whole = rows.column("start").astype(np.int64), rows.column("length")
    if np.array_equal(lengths, whole):
        return rows
    places = np.arange(len(rows.input_ids)) - np.repeat(starts, whole)
    kept = places < np.repeat(lengths, whole)
    weights = None if rows.weights is None else rows.weights[kept]
    ends = np.cumsum(lengths[lengths > 0])
    return Dataset.from_flat(rows.input_ids[kept], rows.loss_mask[kept], weights, ends)


def _encoded(
    conversations: Iterator[Conversation], tokenizer: Tokenizer, train_on: TrainOn
) -> Iterator[tuple[list[Conversation], Dataset]]:
    """Yield some hundred rows at a time, and their tokens; meanwhile the next rows are read.

    The tokenizer releases Python's lock while it works, so both happen at once.
    """
    encode = partial(encode_rows, tokenizer=tokenizer, train_on=train_on)
    with ThreadPoolExecutor(1) as worker:
        cut = blocks(conversations, characters, count=BLOCK_ROWS)
        started = ((block, worker.submit(encode, block)) for block in cut)
        waiting = next(started, None)
        while waiting:
            following = next(started, None)
            yield waiting[0], waiting[1].result()
            waiting = following
