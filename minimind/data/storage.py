"""Keep datasets in folders of a cache: written block by block, and mapped.

CACHE/KEY/             KEY is a hash of the files' content and of all settings
    input_ids.bin      the arrays of a Dataset
    loss_mask.bin
    weights.bin        only if some weights aren't 0 or 1
    table.NAME.bin     its columns
    report.json        counts of the rows; written last: a folder that has it is complete
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
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minimind.atomic_io import sha256_of
from minimind.data.dataset import COLUMNS, Array, Dataset
from minimind.data.reader import changed_file, open_bytes

FORMAT = 4  # raised whenever the same input would give other ids, masks or files
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
    """Yield names that can be read several times; standard input and pipes are copied to `root`."""
    files = list(names)
    streams = [index for index, name in enumerate(names) if _is_stream(name)]
    with working_folder(root) if streams else nullcontext(root) as scratch:
        for index in streams:
            files[index] = str(scratch / f"input-{index}")
            with open_bytes(names[index], unpack=False) as stream, open(files[index], "wb") as file:
                shutil.copyfileobj(stream, file)
        yield files


def _is_stream(name: str) -> bool:
    there = os.path.exists(name)
    return name == "-" or (there and not os.path.isfile(name) and not os.path.isdir(name))


@contextmanager
def working_folder(root: Path, prefix: str = _BUILDING) -> Iterator[Path]:
    """A new folder in `root`, removed at the end; so are old ones that killed processes left."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as folder:
        yield Path(folder)


def content_hash(name: str) -> str:
    """The SHA-256 of a file, or "" if it can't be read: then the reader says why."""
    with suppress(OSError):
        return sha256_of(name)
    return ""


def build_once(
    root: Path,
    settings: Sequence[object],
    files: Sequence[tuple[str, str]],
    write: Callable[[Path], None],
) -> Path:
    """The folder in `root` for what is in files, filled by `write` if it isn't there yet.

    It appears complete or not at all, whatever other processes do. The key is a hash of FORMAT,
    `settings` (JSON values) and the files' content; `files` has (path, name in errors) pairs.

    Raises:
        DataError: a file changed meanwhile.
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
    """Appends rows, block by block, to an empty folder that `read_dataset` maps."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder, self._tokens = folder, 0
        self._dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        for name in ("input_ids", "loss_mask", *map("table.{}".format, COLUMNS)):
            (folder / f"{name}.bin").touch()

    def add(self, rows: Dataset) -> None:
        """Append all rows of a Dataset; they must lie end to end."""
        arrays = {"input_ids": rows.input_ids.astype(self._dtype), "loss_mask": rows.loss_mask}
        arrays |= {f"table.{name}": column for name, column in rows.columns.items()}
        arrays["table.start"] = rows.columns["start"] + np.uint64(self._tokens)
        weights = self._folder / "weights.bin"
        if rows.weights is not None and not weights.exists():
            marks = _map(self._folder / "loss_mask.bin", np.bool_)
            with weights.open("wb") as file:  # of the rows before: 1 where a token is trained
                for start in range(0, len(marks), 2**20):
                    marks[start : start + 2**20].astype(np.float32).tofile(file)
        if weights.exists():
            factors = rows.loss_mask if rows.weights is None else rows.weights
            arrays["weights"] = factors.astype(np.float32)
        for name, data in arrays.items():
            with open(self._folder / f"{name}.bin", "ab") as file:
                data.tofile(file)
        self._tokens += len(rows.input_ids)

    def finish(self, report: Mapping[str, object]) -> None:
        """Write the report, without which the folder counts as unfinished."""
        weighted = (self._folder / "weights.bin").exists()
        head = {"dtype": self._dtype.__name__, "weighted": weighted, "report": dict(report)}
        (self._folder / HEAD).write_text(json.dumps(head, indent=1), encoding="utf-8")


def read_dataset(folder: Path) -> tuple[Dataset, dict[str, Any]]:
    """Map a DatasetWriter's dataset, and return it with its report."""
    head = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    dataset = Dataset(
        _map(folder / "input_ids.bin", head["dtype"]),
        _map(folder / "loss_mask.bin", np.bool_),
        _map(folder / "weights.bin", np.float32) if head["weighted"] else None,
        {name: _map(folder / f"table.{name}.bin", dtype) for name, dtype in COLUMNS.items()},
    )
    return dataset, head["report"]


def _map(path: Path, dtype: npt.DTypeLike) -> Array:
    if path.stat().st_size == 0:  # an empty file can't be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype=dtype, mode="r")


def hash_of(dataset: Dataset, folder: Path | None = None) -> str:
    """SHA-256 over all rows' lengths, ids, masks and weights; kept in `folder`, the dataset's."""
    if folder is not None:
        rows = dataset.rows
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
    for first in range(0, len(dataset), 512):
        block = slice(first, first + 512)
        lengths = dataset.take("length", block).astype(np.int64)
        starts = dataset.take("start", block).astype(np.int64)
        offsets = np.repeat(starts - (np.cumsum(lengths) - lengths), lengths)
        tokens = offsets + np.arange(len(offsets))
        marks = dataset.loss_mask[tokens]
        digest.update(lengths.astype("<u4").tobytes())
        digest.update(dataset.input_ids[tokens].astype("<u4").tobytes())
        digest.update(marks.tobytes())
        if dataset.weights is not None and ((weights := dataset.weights[tokens]) != marks).any():
            digest.update(weights.tobytes())
    return digest.hexdigest()
