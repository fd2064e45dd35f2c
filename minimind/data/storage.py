"""Keep datasets in folders of a cache: written block by block, and mapped.

CACHE/KEY/             KEY is a hash of the files' content and of all settings
    input_ids.bin      the arrays of a Dataset
    loss_mask.bin
    weights.bin        only if some weights aren't 0 or 1
    table.NAME.bin     its columns
    prompts.bin        of rows that answer more than their key says: row and key of each prompt
    report.json        counts of the rows; size, time and sum of each file; written last
CACHE/building-*       work in progress

A folder whose files differ from its report.json is made again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minimind.atomic_io import folder_lock, sha256_of, sync
from minimind.data.dataset import COLUMNS, PROMPTS, Array, Dataset
from minimind.data.reader import changed_file, open_bytes

FORMAT = 7  # raised whenever the same input would give other ids, masks or files
HEAD = "report.json"
ABANDONED_SECONDS = 7 * 24 * 3600  # age of a building-* folder that a killed process left
_BUILDING = "building-"


def cache_directory() -> Path:
    """`$MINIMIND_CACHE`, or `minimind` in the user's cache folder.

    Raises:
        CacheError: there is no such folder, as in a container without a home.
    """
    if named := os.environ.get("MINIMIND_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind"
    except RuntimeError:
        fact = "there is no home folder for the cache of tokenized rows"
        raise CacheError(f"{fact}; set MINIMIND_CACHE to a folder") from None


class CacheError(OSError):
    """The cache can't be used."""


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Name the cache in each OSError inside."""
    try:
        yield
    except CacheError:
        raise
    except OSError as error:
        fact = f"the cache of tokenized rows can't be written ({error.strerror or error})"
        remedy = "make room or allow it, or set MINIMIND_CACHE to another folder"
        raise CacheError(f"{root}: {fact}; {remedy}") from error


@contextmanager
def readable_again(names: Sequence[str], root: Path | None = None) -> Iterator[list[str]]:
    """Yield names that can be read several times: standard input and pipes are copied.

    The copies are in `root`, by default the cache.
    """
    files = list(names)
    streams = [index for index, name in enumerate(names) if _is_stream(name)]
    if not streams:
        yield files
        return
    root = root or cache_directory()
    with ExitStack() as stack:
        with cache_errors(root):
            scratch = stack.enter_context(working_folder(root))
            for index in streams:
                files[index] = str(scratch / f"input-{index}")
                with (
                    open_bytes(names[index], unpack=False) as stream,
                    open(files[index], "wb") as file,
                ):
                    shutil.copyfileobj(stream, file)
        yield files


def _is_stream(name: str) -> bool:
    there = os.path.exists(name)
    return name == "-" or (there and not os.path.isfile(name) and not os.path.isdir(name))


@contextmanager
def working_folder(root: Path, prefix: str = _BUILDING, mode: int = 0o700) -> Iterator[Path]:
    """A new folder in `root`, removed at the end; so are old ones that killed processes left.

    `mode` is that of `root`, if it is made here.
    """
    root.mkdir(mode, parents=True, exist_ok=True)
    for left in root.glob(f"{prefix}*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > ABANDONED_SECONDS:
                with _locked(left):  # by none: whoever works in it holds its lock
                    shutil.rmtree(left)
    with tempfile.TemporaryDirectory(dir=root, prefix=prefix) as folder, _locked(Path(folder)):
        yield Path(folder)


@contextmanager
def _locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a folder where its file system can.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    with ExitStack() as stack:
        try:
            if sys.platform != "win32":  # there a lock is a file that stays
                stack.enter_context(folder_lock(folder, wait))
        except BlockingIOError:
            raise
        except OSError:  # some network's: renaming is enough, but for work done twice
            pass
        yield


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
    verify: bool = False,
) -> Path:
    """The folder in `root` for what is in files, filled by `write` if it isn't there yet.

    It appears complete or not at all, whatever other processes do; a damaged one is made again,
    which a warning tells. The key is a hash of FORMAT, `settings` (JSON values) and the files'
    content; `files` has (path, name in errors) pairs. With `verify` every file's sum is read, else
    those of the files whose time isn't the one of their writing.

    Raises:
        CacheError: the folder can't be written.
        DataError: a file changed meanwhile.
    """
    hashes = [content_hash(file) for file, _ in files]
    key = hashlib.sha256(json.dumps([FORMAT, *settings, hashes]).encode())
    folder = root / key.hexdigest()[:32]
    if _is_sound(folder, verify):
        return folder
    with cache_errors(root), working_folder(root) as scratch:
        built = scratch / "dataset"
        built.mkdir(0o700)
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
        with _locked(root, wait=True):
            if not _is_sound(folder, verify):  # or another process was first
                damaged = (folder / HEAD).exists()
                if folder.exists():
                    folder.rename(scratch / "damaged")
                built.rename(folder)
                sync(root)
                if damaged:
                    warnings.warn(f"{folder}: was damaged; its rows are read again", stacklevel=2)
    return folder


def _is_sound(folder: Path, verify: bool) -> bool:
    """Whether a dataset's files are those that were written; see `build_once` for `verify`."""
    try:
        head = _read_head(folder)
        known = {name: list(facts) for name, facts in head["files"].items()}
        for name, facts in known.items():
            status = (folder / name).stat()
            size, written, sha256 = facts
            if status.st_size != size:
                return False
            if verify or status.st_mtime_ns != written:
                if sha256_of(folder / name) != sha256:
                    return False
                facts[1] = status.st_mtime_ns
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if known != head["files"]:  # a copy of the cache: the next start needn't read the sums
        _write_aside(folder / HEAD, _sealed(head | {"files": known}))
    return True


def _sealed(head: Mapping[str, object]) -> str:
    """The text of a report.json, with its own sum."""
    return json.dumps({"head": head, "sha256": _sha256(json.dumps(head))}, indent=1)


def _read_head(folder: Path) -> dict[str, Any]:
    sealed = json.loads((folder / HEAD).read_text(encoding="utf-8"))
    head: dict[str, Any] = sealed["head"]
    if _sha256(json.dumps(head)) != sealed["sha256"]:
        raise ValueError(f"{folder / HEAD}: damaged; delete the folder")
    return head


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write_aside(path: Path, text: str) -> None:
    """Replace a file whole, or not at all where its folder belongs to others."""
    with suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        aside = Path(folder) / path.name
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)


class DatasetWriter:
    """Appends rows, block by block, to an empty folder that `read_dataset` maps."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._folder, self._tokens = folder, 0
        self._dtype = np.uint16 if vocab_size <= 2**16 else np.uint32
        for name in ("input_ids", "loss_mask", "prompts", *map("table.{}".format, COLUMNS)):
            (folder / f"{name}.bin").touch()

    def add(self, rows: Dataset, prompts: Array | None = None) -> None:
        """Append all rows of a Dataset, which must lie end to end, and some PROMPTS."""
        arrays = {"input_ids": rows.input_ids.astype(self._dtype), "loss_mask": rows.loss_mask}
        arrays |= {f"table.{name}": column for name, column in rows.columns.items()}
        arrays["table.start"] = rows.columns["start"] + np.uint64(self._tokens)
        if prompts is not None:
            arrays["prompts"] = prompts
        weights = self._folder / "weights.bin"
        if rows.weights is not None and not weights.exists():
            marks = _map(self._folder / "loss_mask.bin", np.bool_)
            with weights.open("wb") as file:  # of the rows before: 1 where a token is trained
                for start in range(0, len(marks), 2**20):
                    file.write(marks[start : start + 2**20].astype(np.float32).data)
        if weights.exists():
            factors = rows.loss_mask if rows.weights is None else rows.weights
            arrays["weights"] = factors.astype(np.float32)
        for name, data in arrays.items():
            with open(self._folder / f"{name}.bin", "ab") as file:
                file.write(np.ascontiguousarray(data).data)  # tofile hides why it fails
        self._tokens += len(rows.input_ids)

    def finish(self, report: Mapping[str, object]) -> None:
        """Wait for the disk, and write the report, without which the folder is unfinished."""
        weighted = (self._folder / "weights.bin").exists()
        files = {}
        for path in sorted(self._folder.iterdir()):
            if path.name == HEAD:
                continue
            sync(path)
            status = path.stat()
            files[path.name] = [status.st_size, status.st_mtime_ns, sha256_of(path)]
        head = {"dtype": self._dtype.__name__, "weighted": weighted, "files": files}
        (self._folder / HEAD).write_text(_sealed(head | {"report": dict(report)}), encoding="utf-8")
        sync(self._folder / HEAD)
        sync(self._folder)


def read_dataset(folder: Path) -> tuple[Dataset, dict[str, Any]]:
    """Map a DatasetWriter's dataset, and return it with its report."""
    head = _read_head(folder)
    dataset = Dataset(
        _map(folder / "input_ids.bin", head["dtype"]),
        _map(folder / "loss_mask.bin", np.bool_),
        _map(folder / "weights.bin", np.float32) if head["weighted"] else None,
        {name: _map(folder / f"table.{name}.bin", dtype) for name, dtype in COLUMNS.items()},
    )
    return dataset, head["report"]


def read_prompts(folder: Path) -> Array:
    """(listed,) PROMPTS of the rows that have others than their key, in the rows' order."""
    return _map(folder / "prompts.bin", PROMPTS)


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
        sums = [facts[2] for facts in _read_head(folder)["files"].values()]
        with suppress(OSError, UnicodeDecodeError):
            found, _, seal = kept.read_text(encoding="utf-8").partition(" ")
            if seal == _sha256(json.dumps([found, choice, sums])):
                return found
        found = hash_of(dataset)
        _write_aside(kept, f"{found} {_sha256(json.dumps([found, choice, sums]))}")
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
