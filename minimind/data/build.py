"""Tokenize files of conversations once to a folder, and count what became of their rows."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minimind.data.blocks import BLOCK_ROWS, blocks, characters
from minimind.data.chatml import TrainOn
from minimind.data.conversation import Conversation, irregularities
from minimind.data.dataset import PROMPTS, Array, Dataset
from minimind.data.errors import SHOWN_ROWS, BadRowsError, DataError
from minimind.data.masking import MissingTagsError, Truncation, encode_rows, truncate
from minimind.data.prompts import prompt_keys_of, trained_prompts
from minimind.data.reader import read_conversations
from minimind.data.report import DataReport as DataReport
from minimind.data.rounds import has_reasoning, split_rounds
from minimind.data.row_options import RowOptions
from minimind.data.storage import (
    DatasetWriter,
    build_once,
    cache_directory,
    read_dataset,
    readable_again,
)
from minimind.data.template import CHAT_TEMPLATE
from minimind.tokenizer import Tokenizer

Thinking = Literal["auto", "on", "off"]
LONGEST = 4096  # tokens of a row by default, where the model's context is longer
KEPT_SHARE = 0.99  # of rows and tokens: kept by the length that is proposed
REJECTED = "rejected.jsonl"


@dataclass(frozen=True, kw_only=True)
class DataOptions(RowOptions):
    """How rows become Examples. All of it is part of the cache's key.

    Without a `max_length` rows are kept whole; commands call `for_context` first.

    Attributes:
        max_length: tokens of a row; longer ones are truncated; default: the model's context, 4096
            at most.
        truncation: of longer rows: turns drops whole trailing turns, tokens cuts at the limit, drop
            leaves out rows whose trained tokens don't all fit.
        train_on: every assistant message, or the last one.
        thinking: whether each answer has a <think> block, an empty one if it has no reasoning;
            auto: if a row has reasoning, or the base's own template has a block.
    """

    max_length: int | None = None
    truncation: Truncation = "turns"
    train_on: TrainOn = "all"
    thinking: Thinking = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(f"max_length is {self.max_length}; use a positive number")

    @property
    def limit(self) -> int:
        """`max_length` as a number."""
        return sys.maxsize if self.max_length is None else self.max_length

    def for_context(self, context: int | None) -> DataOptions:
        """These options for a model that reads so many tokens: without a length of their own, its.

        The same on every device. Of a model whose context isn't known, LONGEST.
        """
        if self.max_length is not None:
            return self
        return replace(self, max_length=min(context or LONGEST, LONGEST))


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
    if options.thinking == "auto" and tokenizer.framed:
        options = replace(options, thinking="on")
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
    counts: dict[str, Any] = {
        name: Counter(x) if isinstance(x, dict) else x for name, x in report.items()
    }
    return dataset, DataReport(**counts), folder


class _NeedsFrameError(Exception):
    """The first row with reasoning, where nothing says whether the run is framed."""


def _write(
    named: Sequence[tuple[str, str]], tokenizer: Tokenizer, options: DataOptions, folder: Path
) -> None:
    """Stream files through the data chain; begin again if a row needs a frame, or tags."""
    framed, tags = options.thinking == "on", list[str]()
    while True:
        try:
            report = DataReport(framed=framed, tags=tags)
            _write_as(named, tokenizer.with_tags(tags), options, folder, report)
        except _NeedsFrameError:
            framed = True
        except MissingTagsError as missing:
            tags += missing.tags
        else:
            return
        for file in folder.iterdir():
            file.unlink()


def _write_as(
    named: Sequence[tuple[str, str]],
    tokenizer: Tokenizer,
    options: DataOptions,
    folder: Path,
    report: DataReport,
) -> None:
    """Stream files, each with its name in errors, through the data chain into a folder."""
    files, names = [file for file, _ in named], dict(named)
    index_of = {file: index for index, file in reversed(list(enumerate(files)))}
    writer = DatasetWriter(folder, tokenizer.vocab_size)
    first_bad: list[DataError] = []  # where bad rows stop the building
    # What UTF-8 can't write, such as bytes in a file's name, is escaped as in JSON.
    with open(folder / REJECTED, "w", encoding="utf-8", errors="backslashreplace") as rejected:

        def on_error(error: DataError) -> None:
            error.path = names[error.path]
            if error.rest_unread and not first_bad:
                raise error
            report.bad[error.kind] += 1
            if options.on_bad_row == "stop":
                first_bad.append(error)
                if error.rest_unread:
                    raise _bad_rows(first_bad, report)
                del first_bad[SHOWN_ROWS:]
                return
            keys = ("path", "line", "kind", "fact", "remedy", "excerpt", "row")
            entry = {key: getattr(error, key) for key in keys}
            rejected.write(json.dumps(entry, ensure_ascii=False) + "\n")

        conversations = read_conversations(
            files,
            prompt_key=options.prompt_key,
            answer_key=options.answer_key,
            system=options.system,
            ignore_keys=options.ignore_keys,
            on_error=on_error,
        )
        conversations = _good_rows(conversations, first_bad, options, report, on_error)
        for sources, rows in _blocks(conversations, tokenizer, options, report):
            keys = [prompt_keys_of(source) for source in sources]
            rows.columns["key"][:] = [row[-1] for row in keys]
            rows.columns["file"][:] = [index_of[source.path] for source in sources]
            rows.columns["line"][:] = [source.line for source in sources]
            first = report.kept - len(rows)
            writer.add(rows, _listed_prompts(sources, keys, rows, options.train_on, first))
    if first_bad:
        raise _bad_rows(first_bad, report)
    if not report.bad:
        (folder / REJECTED).unlink()
    writer.finish(vars(report))


def _good_rows(
    conversations: Iterator[Conversation],
    first_bad: Sequence[DataError],
    options: DataOptions,
    report: DataReport,
    on_error: Callable[[DataError], None],
) -> Iterator[Conversation]:
    """All rows, as parts where they are split; after a bad one that stops they are only counted."""
    for conversation in conversations:
        reasons = has_reasoning(conversation.messages)
        if reasons and options.thinking == "off":
            fact, remedy = "the row has reasoning, and --thinking is off", "use --thinking auto"
            path, line = conversation.path, conversation.line
            on_error(DataError("not_framed", fact, remedy, path, line))
            continue
        report.rows += 1
        if first_bad:
            continue
        if reasons and not report.framed:
            raise _NeedsFrameError
        report.shapes[conversation.shape] += 1
        report.turns.update(irregularities(conversation))
        report.count_keys(len(conversation.messages), conversation.unread, conversation.read_as)
        answers = [message for message in conversation.messages if message.role == "assistant"]
        if answers and answers[-1].weight:
            report.finals += 1
            report.reasoned += has_reasoning(answers[-1:])
        parts = split_rounds(conversation, options.train_on) if reasons else [conversation]
        if len(parts) > 1:
            report.split += 1
            report.parts += len(parts)
        yield from parts


def _bad_rows(first_bad: Sequence[DataError], report: DataReport) -> DataError:
    bad = report.bad.total()
    return BadRowsError(first_bad, bad, report.rows + bad)


def _listed_prompts(
    sources: Sequence[Conversation],
    keys: Sequence[list[int]],
    rows: Dataset,
    train_on: TrainOn,
    first: int,
) -> Array:
    """(listed,) PROMPTS: what each trained answer answers, of rows where that isn't just the key.

    `keys` are the rows' `prompt_keys_of`; rows count from `first`.
    """
    marks = rows.loss_mask
    begins = np.flatnonzero(marks & ~np.append(False, marks[:-1]))  # of the answers that are left
    starts = rows.column("start")
    counts = np.diff(np.searchsorted(begins, np.append(starts, len(marks))))
    listed: list[tuple[int, int]] = []
    for row, (source, answers) in enumerate(zip(sources, keys, strict=True), first):
        prompts = answers
        if len(answers) > 1:  # those of a part's rest are its key's
            prompts = trained_prompts(source, answers, train_on)[: counts[row - first]]
        if prompts != answers[-1:]:
            listed += [(row, prompt) for prompt in prompts]
    return np.array(listed, PROMPTS)


def _blocks(
    conversations: Iterator[Conversation],
    tokenizer: Tokenizer,
    options: DataOptions,
    report: DataReport,
) -> Iterator[tuple[list[Conversation], Dataset]]:
    """Yield the rows that train, some hundred at a time, and their tokens; count all rows."""
    long_rows: Counter[int] = Counter()  # above the limit, by the length that keeps them whole
    long_tokens: Counter[int] = Counter()  # their trained tokens
    systems: set[str | None] = set()
    for sources, rows in _encoded(conversations, tokenizer, options.train_on, report.framed):
        found = {_system_of(source) for source in sources}
        # Of a file whose rows have many, two and the option's are enough to know it.
        systems |= found if len(systems) < 2 else found & {options.system}
        for source in sources:
            count_spelled(source, tokenizer, options.train_on, report)
        starts, lengths, before = (
            rows.column(name).astype(np.int64) for name in ("start", "length", "supervised")
        )
        needed = (rows.column("input_length").astype(np.int64) + 1).tolist()
        for index in np.flatnonzero((lengths > options.limit) & (before > 0)).tolist():
            row = truncate(rows[index], options.limit, tokenizer, options.truncation)
            lengths[index] = len(row)
            long_rows[needed[index]] += 1
            long_tokens[needed[index]] += int(before[index])
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
    report.suggested_max_length = _ample_length(long_rows, long_tokens, report)
    common = systems if len(systems) == 1 else systems & {options.system}
    report.system = next(iter(common), None)


def _ample_length(
    long_rows: Mapping[int, int], long_tokens: Mapping[int, int], report: DataReport
) -> int:
    """The least length that keeps KEPT_SHARE of the rows whole, and so many of all trained tokens.

    Rows above the limit and their trained tokens are given by the length that each row needs.
    """
    rows = (1 - KEPT_SHARE) * (report.examples - report.unsupervised)
    tokens = (1 - KEPT_SHARE) * (report.supervised + report.tokens_lost)
    for length in sorted(long_rows, reverse=True):
        rows -= long_rows[length]
        tokens -= long_tokens[length]
        if rows < 0 or tokens < 0:
            return int(length)
    return 0


def count_spelled(
    row: Conversation, tokenizer: Tokenizer, train_on: TrainOn, report: DataReport
) -> None:
    answers = [message for message in row.messages if message.role == "assistant"]
    for answer in answers[-1:] if train_on == "last" else answers:
        if answer.weight:
            report.answers += 1
            said = " ".join((answer.reasoning, answer.content, *(c.text for c in answer.calls)))
            if spelled := dict.fromkeys(tokenizer.control_tokens_in(said)):
                report.spelling += 1
                report.spelled.update(spelled.keys())


def _system_of(conversation: Conversation) -> str | None:
    first = conversation.messages[0]
    return first.content if first.role == "system" else None


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
    conversations: Iterator[Conversation], tokenizer: Tokenizer, train_on: TrainOn, framed: bool
) -> Iterator[tuple[list[Conversation], Dataset]]:
    """Yield some hundred rows at a time, and their tokens; meanwhile the next rows are read.

    The tokenizer releases Python's lock while it works, so both happen at once.
    """
    encode = partial(encode_rows, tokenizer=tokenizer, train_on=train_on, framed=framed)
    with ThreadPoolExecutor(1) as worker:
        cut = blocks(conversations, characters, count=BLOCK_ROWS)
        started = ((block, worker.submit(encode, block)) for block in cut)
        waiting = next(started, None)
        while waiting:
            following = next(started, None)
            yield waiting[0], waiting[1].result()
            waiting = following
