"""Keep datasets in folders of a cache: written block by block, and mapped.

CACHE/KEY/             KEY is a hash of the files' content and of all settings
    input_ids.bin      the arrays of a Dataset
    loss_mask.bin
    weights.bin        only if some weights aren't 0 or 1
    table.NAME.bin     its columns
    report.json        what became of the rows; written last: a folder that has it is complete
CACHE/building-*       work in progress
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from minimind.data.dataset import COLUMNS, Array, Dataset, Table
from minimind.data.reader import changed_file, open_bytes

FORMAT = 3  # raised whenever the same input would give other ids, masks or files
HEAD = "report.json"
ABANDONED_SECONDS = 7 * 24 * 3600  # age of a building-* folder that a killed process left
_BUILDING = "building-"


def cache_directory() -> Path:
    """`$MINIMIND_CACHE`, or `minimind` in the user's cache folder."""
    if named := os.environ.get("MINIMIND_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind"


@contextmanager
def readable_again(names: Sequence[str], root: Path) -> Iterator[list[str]]:
    """Give for each name a file that can be read as often as needed.

    Standard input and pipes are copied into the folder `root`, until the context ends.
    """
    if not any(map(_is_stream, names)):
        yield list(names)
        return
    with working_folder(root) as scratch:
        files = []
        for index, name in enumerate(names):
            if _is_stream(name):
                files.append(str(scratch / f"input-{index}"))
                with open_bytes(name, unpack=False) as stream, open(files[-1], "wb") as file:
                    shutil.copyfileobj(stream, file)
            else:
                files.append(name)
        yield files


def _is_stream(name: str) -> bool:
    if name == "-":
        return True
    return os.path.exists(name) and not (os.path.isfile(name) or os.path.isdir(name))


@contextmanager
def working_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root`, removed at the end; so are old ones that killed processes left."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{_BUILDING}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=root, prefix=_BUILDING) as folder:
        yield Path(folder)


def content_hash(name: str) -> str:
    """The SHA-256 of a file, or "" if it can't be read: then the reader says why."""
    digest = hashlib.sha256()
    with suppress(OSError), open(name, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
        return digest.hexdigest()
    return ""


def build_once(
    root: Path,
    settings: Sequence[object],
    files: Sequence[tuple[str, str]],
    write: Callable[[Path], None],
) -> Path:
    """The folder in `root` for what is in files, filled by `write` if it isn't there yet.

    It appears complete or not at all, whatever other processes do.

    Args:
        root: the cache.
        settings: JSON values; with FORMAT and the files' content they are the folder's key.
        files: each with its name in errors; a DataError if one changes meanwhile.
        write: fills a new folder, the report last.
    """
    hashes = [content_hash(file) for file, _ in files]
    key = hashlib.sha256(json.dumps([FORMAT, *settings, hashes]).encode())
    folder = root / key.hexdigest()[:32]
    if (folder / HEAD).exists():
        return folder
    with working_folder(root) as scratch:
        built = scratch / "dataset"
        built.mkdir()
        collecting = gc.isenabled()
        gc.disable()  # rows have no reference cycles; looking for some takes a fifth of the time
        try:
            write(built)
        finally:
            if collecting:
                gc.enable()
        for (file, name), before in zip(files, hashes, strict=True):
            if content_hash(file) != before:  # the key would name other rows
                raise changed_file(name)
        if not (folder / HEAD).exists():
            shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process was first
            built.rename(folder)
    return folder


class DatasetWriter:
    """Writes rows, block by block, to an empty folder that `read_dataset` maps; a context manager.

    The size of the vocabulary decides the ids' type.
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

    def add(self, rows: Dataset) -> None:
        """Append all rows of a Dataset; they must lie end to end."""
        if rows.weights is not None and not self._weighted:
            self._weighted = True
            self._masks.flush()
            _write_ones(self._folder / "loss_mask.bin", self._weights)
        rows.input_ids.astype(self._dtype).tofile(self._ids)
        rows.loss_mask.tofile(self._masks)
        if self._weighted:
            weights = rows.loss_mask if rows.weights is None else rows.weights
            weights.astype(np.float32).tofile(self._weights)
        for name, file in self._columns.items():
            column = rows.table[name]
            if name == "start":
                column = column + np.uint64(self._tokens)
            column.tofile(file)
        self._tokens += len(rows.input_ids)

    def finish(self, report: Mapping[str, object]) -> None:
        """Write the report, without which the folder counts as unfinished."""
        if not self._weighted:
            (self._folder / "weights.bin").unlink()
        head = {"dtype": self._dtype.__name__, "weighted": self._weighted, "report": dict(report)}
        (self._folder / HEAD).write_text(json.dumps(head, indent=1), encoding="utf-8")


def _write_ones(masks: Path, weights: BinaryIO) -> None:
    """Weights for the rows before the first row that has some: 1 where a token is trained."""
    marks = _map(masks, np.bool_)
    for start in range(0, len(marks), 2**20):
        marks[start : start + 2**20].astype(np.float32).tofile(weights)


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


def hash_of(dataset: Dataset, folder: Path | None = None) -> str:
    """SHA-256 over lengths, ids, masks and weights of all rows, in order.

    Args:
        dataset: all rows of a folder, or a choice of them; or rows in memory.
        folder: the dataset's, where the hash is kept: reading all tokens takes long.
    """
    if folder is not None:
        rows = dataset.table.rows
        choice = "all" if rows is None else hashlib.sha256(rows.tobytes()).hexdigest()[:32]
        kept = folder / f"hash-{choice}.txt"
        if kept.exists():
            return kept.read_text(encoding="utf-8")
        found, scratch = hash_of(dataset), kept.with_suffix(f".{os.getpid()}")
        with suppress(OSError):  # a folder that belongs to others
            scratch.write_text(found, encoding="utf-8")
            scratch.replace(kept)
        return found
    digest = hashlib.sha256()
    for block in dataset.blocks(512):
        lengths = dataset.table.take("length", block).astype(np.int64)
        starts = dataset.table.take("start", block).astype(np.int64)
        offsets = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        tokens = offsets + np.arange(len(offsets))
        marks = dataset.loss_mask[tokens]
        digest.update(lengths.astype("<u4").tobytes())
        digest.update(dataset.input_ids[tokens].astype("<u4").tobytes())
        digest.update(marks.tobytes())
        if dataset.weights is not None and ((weights := dataset.weights[tokens]) != marks).any():
            digest.update(weights.tobytes())
    return digest.hexdigest()


def _column(folder: Path, name: str) -> Path:
    return folder / f"table.{name}.bin"


def _map(path: Path, dtype: npt.DTypeLike) -> Array:
    if path.stat().st_size == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")
