"""Keep Examples as flat arrays: in memory, or tokenized once to a folder and memory-mapped.

    input_ids   row 0 ......|row 1 ...|row 2 ..........     uint16 or uint32
    loss_mask   0000 1111 ..|...                            bool
    table       12, ...     | 9, ...  | 19, ...             columns, an entry per row

Knows no steps, no batches and no model.
"""

from __future__ import annotations

import copy
import gc
import hashlib
import json
import os
import re
import shutil
import unicodedata
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import compress, islice
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt

from minimind.data.chatml import CHAT_TEMPLATE, TrainOn
from minimind.data.conversation import Conversation, DataError, irregularities
from minimind.data.masking import EncodedRows, Example, Truncation, encode_rows, truncate
from minimind.data.reader import changed_file, read_conversations
from minimind.data.row_options import RowOptions
from minimind.data.sources import content_hash, readable_again, working_folder
from minimind.data.table import COLUMNS, Array, Table
from minimind.tokenizer import Tokenizer

FORMAT = 2  # raised whenever the same input would give other ids, masks or files
BLOCK_ROWS = 512
REJECTED = "rejected.jsonl"
HEAD = "report.json"  # written last: a folder that has it is whole


class Dataset(Sequence[Example]):
    """A sequence of Examples over flat arrays.

    Attributes:
        table: what is known of each row.
    """

    def __init__(
        self, input_ids: Array, loss_mask: Array, weights: Array | None, table: Table
    ) -> None:
        self.input_ids, self.loss_mask, self.weights = input_ids, loss_mask, weights
        self.table = table

    @classmethod
    def from_examples(cls, examples: Iterable[Example]) -> Dataset:
        """Copy Examples into memory."""
        rows = list(examples)
        input_ids = _flat("I", [row.input_ids for row in rows])
        loss_mask = _flat("I", [row.loss_mask for row in rows]).astype(np.bool_)
        weights = None
        if any(row.weights is not None for row in rows):
            marks_or_weights = [w.loss_mask if w.weights is None else w.weights for w in rows]
            weights = _flat("f", marks_or_weights)
        lengths = np.array([len(row) for row in rows], np.int64)
        return cls(input_ids, loss_mask, weights, _table(loss_mask, np.cumsum(lengths)))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Example:  # type: ignore[override]
        span = self._span(index)
        weights = None if self.weights is None else self.weights[span].tolist()
        return Example(self.input_ids[span].tolist(), self.loss_mask[span].tolist(), weights)

    def select(self, rows: Array) -> Dataset:
        """The same arrays, only these rows (indices or a mask)."""
        out = copy.copy(self)
        out.table = self.table.select(rows)
        return out

    def split(self, fraction: float) -> tuple[Dataset, Dataset]:
        """Split off about `fraction` of the rows by what their prompt says.

        Rows with the same prompt go the same way, and a row's side doesn't depend on the others:
        shuffling or appending rows moves none.
        """
        chosen = np.zeros(len(self), np.bool_)
        for first in range(0, len(self), 2**16):  # in blocks: rows may be many
            block = slice(first, first + 2**16)
            keys = self.table.take("key", block)
            chosen[block] = keys >> np.uint64(11) < fraction * 2**53  # exact in a float64
        return self.select(~chosen), self.select(chosen)

    def without_prompts_of(self, other: Dataset) -> Dataset:
        """Only the rows whose prompt doesn't stand in `other`."""
        return self.select(~np.isin(self.table["key"], other.table["key"]))

    def hash(self, memory: Path | None = None) -> str:
        """SHA-256 over lengths, ids, masks and weights of all rows, in order.

        Args:
            memory: the dataset's folder, where the hash is kept: reading all tokens takes long.
        """
        if memory is None:
            return self._hash()
        kept = memory / f"hash-{self._choice()}.txt"
        if kept.exists():
            return kept.read_text(encoding="utf-8")
        found, scratch = self._hash(), kept.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a folder that others own
            scratch.write_text(found, encoding="utf-8")
            scratch.replace(kept)
        return found

    def _hash(self) -> str:
        digest = hashlib.sha256()
        for first in range(0, len(self), BLOCK_ROWS):
            block = slice(first, first + BLOCK_ROWS)
            lengths = self.table.take("length", block).astype(np.int64)
            starts = self.table.take("start", block).astype(np.int64)
            offsets = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
            tokens = offsets + np.arange(len(offsets))
            digest.update(lengths.astype("<u4").tobytes())
            digest.update(self.input_ids[tokens].astype("<u4").tobytes())
            digest.update(self.loss_mask[tokens].tobytes())
            if self.weights is not None:
                digest.update(self.weights[tokens].tobytes())
        return digest.hexdigest()

    def _choice(self) -> str:
        """A hash of where the rows lie: it tells one choice of rows from another."""
        digest = hashlib.sha256()
        for first in range(0, len(self), 2**16):
            block = slice(first, first + 2**16)
            digest.update(self.table.take("start", block).tobytes())
            digest.update(self.table.take("length", block).tobytes())
        return digest.hexdigest()[:32]

    def _span(self, index: int) -> slice:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index}: the dataset has {len(self)} rows")
        row = np.array([index])
        start, length = (int(self.table.take(name, row)[0]) for name in ("start", "length"))
        return slice(start, start + length)


@dataclass(frozen=True, kw_only=True)
class DataOptions(RowOptions):
    """How rows become Examples. All of it is part of the cache's key.

    Attributes:
        max_length: tokens of a row; longer ones are truncated.
        truncation: what becomes of longer rows: turns drops their last whole turns, tokens cuts
            wherever the limit is, drop leaves them out.
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
    trained: int = 0


def build_dataset(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    options: DataOptions,
    cache: Path | None = None,
) -> tuple[Dataset, DataReport, Path]:
    """Tokenize files once; the second time, map what the first time wrote.

    The key is made of the files' content, the tokenizer, the template and the options. A file whose
    size and times haven't changed isn't read for it. Standard input and pipes are copied first.

    Args:
        paths: JSONL, gzipped JSONL or JSON array files; "-" is standard input.
        tokenizer: decides the ids.
        options: how rows become Examples.
        cache: folder of cached datasets; default `cache_directory()`.

    Returns:
        The dataset, what became of the rows, and the folder (with rejected.jsonl if rows were bad).

    Raises:
        DataError: a file can't be used or changes meanwhile; or, unless `options.on_bad_row` is
            "skip", a row can't be used.
    """
    names = [os.fspath(path) for path in paths]
    root = cache or cache_directory()
    settings: list[Any] = [CHAT_TEMPLATE, tokenizer.fingerprint, asdict(options)]
    if options.on_bad_row == "skip":
        settings.append(names)  # they stand in rejected.jsonl
    with readable_again(names, root) as files:
        named = list(zip(files, names, strict=True))

        def write(built: Path) -> None:
            _write(files, dict(named), tokenizer, options, built)

        folder = build_once(root, settings, named, write)
    dataset, report = read_dataset(folder)
    for name in ("shapes", "turns", "bad"):
        report[name] = Counter(report[name])
    return dataset, DataReport(**report), folder


def build_once(
    root: Path,
    settings: Sequence[object],
    files: Sequence[tuple[str, str]],
    write: Callable[[Path], None],
) -> Path:
    """The folder in `root` for what files hold, filled by `write` if it isn't there.

    It appears whole or not at all, whatever other processes do.

    Args:
        root: the cache.
        settings: JSON values; with FORMAT and the files' content they are the folder's key.
        files: each with the name that stands in errors.
        write: fills a new folder, the report last.

    Raises:
        DataError: a file changes meanwhile.
    """
    hashes = [content_hash(file, root) for file, _ in files]
    key = hashlib.sha256(json.dumps([FORMAT, *settings, hashes]).encode())
    folder = root / key.hexdigest()[:32]
    if not (folder / HEAD).exists():
        with working_folder(root) as scratch:
            built = scratch / "dataset"
            built.mkdir()
            with _without_garbage_collection():
                write(built)
            for (file, name), before in zip(files, hashes, strict=True):
                if content_hash(file, root) != before:  # the key would name other rows
                    raise changed_file(name)
            if not (folder / HEAD).exists():
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # another process was first
                built.rename(folder)
    return folder


class DatasetWriter:
    """Writes rows, block by block, to a new folder that `read_dataset` maps; a context manager.

    Args:
        folder: exists and is empty.
        vocab_size: decides the ids' type.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder = folder
        self._dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        self._weighted, self._tokens = False, 0
        with ExitStack() as stack:
            names = ("input_ids", "loss_mask", "weights")
            self._ids, self._masks, self._weights = (
                stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in names
            )
            self._columns = {
                name: stack.enter_context(open(_column(folder, name), "wb")) for name in COLUMNS
            }
            self._files = stack.pop_all()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def add(self, input_ids: Array, weights: Array, table: Table) -> None:
        """Append rows that stand end to end; the table's starts are within this block."""
        if not self._weighted and not np.isin(weights, (0, 1)).all():
            self._weighted = True
            _write_ones(self._folder / "loss_mask.bin", self._weights)
        table["start"][:] += np.uint64(self._tokens)
        self._tokens += len(input_ids)
        input_ids.astype(self._dtype).tofile(self._ids)
        (weights > 0).tofile(self._masks)
        if self._weighted:
            weights.astype(np.float32).tofile(self._weights)
        for name, file in self._columns.items():
            table[name].tofile(file)

    def finish(self, report: Mapping[str, object]) -> None:
        """Write the report, without which the folder counts as unfinished."""
        if not self._weighted:
            (self._folder / "weights.bin").unlink()
        head = {"dtype": self._dtype.__name__, "weighted": self._weighted, "report": dict(report)}
        (self._folder / HEAD).write_text(json.dumps(head, indent=1), encoding="utf-8")


def read_dataset(folder: Path) -> tuple[Dataset, dict[str, Any]]:
    """Map what a DatasetWriter wrote; and its report."""
    head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    dataset = Dataset(
        _map(folder / "input_ids.bin", head["dtype"]),
        _map(folder / "loss_mask.bin", np.bool_),
        _map(folder / "weights.bin", np.float32) if head["weighted"] else None,
        Table({name: _map(_column(folder, name), dtype) for name, dtype in COLUMNS.items()}),
    )
    return dataset, head["report"]


def cache_directory() -> Path:
    """`$MINIMIND_CACHE`, or `minimind` in the user's cache folder."""
    if named := os.environ.get("MINIMIND_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind"


def prompt_key_of(conversation: Conversation) -> int:
    """64 bits of a hash over all that stands before the first answer, normalized.

    Normalized: Unicode NFKC, case-folded, white space and punctuation left out, so that "Hi!" and
    "hi" are one prompt. Where no user speaks before the first answer, all messages count.
    """
    messages = conversation.messages
    roles = [message.role for message in messages]
    first_answer = roles.index("assistant") if "assistant" in roles else len(roles)
    prompt = messages[:first_answer] if "user" in roles[:first_answer] else messages
    parts = []
    for message in prompt:
        text = unicodedata.normalize("NFKC", message.content).casefold()
        parts.append(f"{message.role}\0{''.join(_ALPHANUMERIC.findall(text)) or text}\0")
    spelled = "".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(spelled, digest_size=8).digest(), "big")


_ALPHANUMERIC = re.compile(r"[^\W_]+")
_T = TypeVar("_T")
_R = TypeVar("_R")


def _write(
    files: list[str],
    names: dict[str, str],
    tokenizer: Tokenizer,
    options: DataOptions,
    folder: Path,
) -> None:
    """Stream files through the data chain into flat arrays: memory doesn't grow with rows.

    Errors call each file by its name: a copy of standard input is called "-".
    """
    report = DataReport()
    index_of = {file: index for index, file in reversed(list(enumerate(files)))}
    with (
        DatasetWriter(folder, tokenizer.vocab_size) as writer,
        # What UTF-8 can't write, such as bytes in a file's name, JSON spells with a backslash too.
        open(folder / REJECTED, "w", encoding="utf-8", errors="backslashreplace") as rejected,
    ):

        def on_error(error: DataError) -> None:
            report.bad[error.kind] += 1
            entry = {"path": names[error.path], "line": error.line, "kind": error.kind}
            entry |= {"fact": error.fact, "remedy": error.remedy, "excerpt": error.excerpt}
            entry["row"] = error.row
            rejected.write(json.dumps(entry, ensure_ascii=False) + "\n")

        conversations = _read_as(
            names,
            files,
            prompt_key=options.prompt_key,
            answer_key=options.answer_key,
            system=options.system,
            on_error=on_error if options.on_bad_row == "skip" else None,
        )
        for sources, block in _blocks(conversations, tokenizer, options, report):
            table = _table(block.weights > 0, block.ends)
            table["key"][:] = [prompt_key_of(source) for source in sources]
            table["file"][:] = [index_of[source.path] for source in sources]
            table["line"][:] = [source.line for source in sources]
            writer.add(block.input_ids, block.weights, table)
    if not report.bad:
        (folder / REJECTED).unlink()
    writer.finish(vars(report))


def _read_as(names: dict[str, str], files: list[str], **options: Any) -> Iterator[Conversation]:
    """`read_conversations`, but an error that it raises has the file's name."""
    try:
        yield from read_conversations(files, **options)
    except DataError as error:
        error.path = names.get(error.path, error.path)
        raise


def _write_ones(masks: Path, weights: BinaryIO) -> None:
    """The weights of the rows before the first that has some: 1 where a token is trained."""
    marks = _map(masks, np.bool_)
    for start in range(0, len(marks), 2**20):
        marks[start : start + 2**20].astype(np.float32).tofile(weights)


def _blocks(
    conversations: Iterator[Conversation],
    tokenizer: Tokenizer,
    options: DataOptions,
    report: DataReport,
) -> Iterator[tuple[list[Conversation], EncodedRows]]:
    """Yield the rows that train, some thousand at a time, with what they encode to; count all."""
    blocks = iter(lambda: list(islice(conversations, BLOCK_ROWS)), [])
    encode = partial(encode_rows, tokenizer=tokenizer, train_on=options.train_on)
    for sources, whole in _ahead(blocks, encode):
        report.rows += len(sources)
        report.shapes.update([source.shape for source in sources])
        report.turns.update([name for source in sources for name in irregularities(source)])
        lengths = np.diff(whole.ends, prepend=0)
        starts = whole.ends - lengths
        trained_before = np.append(0, np.cumsum(whole.weights > 0))
        wanted = trained_before[whole.ends] - trained_before[starts]
        for index in np.flatnonzero((lengths > options.max_length) & (wanted > 0)).tolist():
            row = truncate(whole[index], options.max_length, tokenizer, options.truncation)
            lengths[index] = len(row)
        trained = trained_before[starts + lengths] - trained_before[starts]
        lengths[trained == 0] = 0
        report.unsupervised += int((wanted == 0).sum())
        report.truncated += int((trained < wanted).sum())
        report.tokens_lost += int((wanted - trained).sum())
        report.dropped_long += int(((trained == 0) & (wanted > 0)).sum())
        report.kept += int((trained > 0).sum())
        report.tokens += int(lengths.sum())
        report.trained += int(trained.sum())
        yield list(compress(sources, lengths.tolist())), whole.cut(lengths)


def _ahead(blocks: Iterable[_T], work: Callable[[_T], _R]) -> Iterator[tuple[_T, _R]]:
    """Yield each block and what `work` makes of it; the next is read while this one is worked on.

    The tokenizer leaves Python's lock while it works, so that both go on at once.
    """
    waiting: deque[tuple[_T, Future[_R]]] = deque()
    with ThreadPoolExecutor(1) as worker:
        for block in blocks:
            waiting.append((block, worker.submit(work, block)))
            if len(waiting) > 1:
                ready, future = waiting.popleft()
                yield ready, future.result()
        for ready, future in waiting:
            yield ready, future.result()


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Rows hold no cycles, and to look for some in all of them takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _table(loss_mask: Array, ends: Array) -> Table:
    """What is known of rows that stand end to end, without their prompts and places."""
    table = Table.zeros(len(ends))
    lengths = np.diff(ends, prepend=0)
    starts = ends - lengths
    marked = np.flatnonzero(loss_mask)
    marked = marked[~np.isin(marked, starts[lengths > 0])]  # nothing stands before a first token
    before, after = np.searchsorted(marked, starts), np.searchsorted(marked, ends)
    some = after > before
    table["start"][:] = starts
    table["length"][:] = lengths
    table["supervised"][:] = after - before
    table["input_length"][some] = marked[after[some] - 1] - starts[some]
    return table


def _flat(code: str, parts: Iterable[Sequence[Any]]) -> Array:
    flat = array(code)  # takes a list ten times as fast as NumPy
    for part in parts:
        flat.fromlist(part if isinstance(part, list) else list(part))
    return np.frombuffer(flat, flat.typecode) if flat else np.zeros(0, flat.typecode)


def _column(folder: Path, name: str) -> Path:
    return folder / f"table.{name}.bin"


def _map(path: Path, dtype: npt.DTypeLike) -> Array:
    if path.stat().st_size == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
