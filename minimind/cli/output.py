"""Where commands write: nothing is replaced that they didn't make, or weren't told to replace.

An output that exists needs --overwrite. It replaces a regular file, and in a run's folder what a
run writes.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minimind.terminal import EscapingStream
from minimind.training.checkpoint import newest_checkpoint
from minimind.training.run_folder import (
    CHECKPOINTS,
    RECORD,
    WEIGHTS,
    bytes_of,
    is_run,
    written_by_a_run,
)


def check_file(path: Path, overwrite: bool, read: Iterable[str | None] = ()) -> None:
    """Raise a ValueError where no file can be written, or one stands that may not be replaced.

    `read`: the files that the command reads; none of them is replaced.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if str(path) == "-" or (there == path and not path.is_file()):
        raise ValueError(f"{path}: is no file; name one")
    if there != path and not there.is_dir():
        raise ValueError(f"{path}: {there} is no folder; name another place")
    if any(file and Path(file).resolve() == path.resolve() for file in read):
        raise ValueError(f"{path}: is the data itself; name another file")
    if path.exists() and not overwrite:
        raise ValueError(f"{path}: exists; --overwrite replaces it, or name another")


def check_run_folder(
    out: Path, read: Iterable[str | Path | None], *, resume: bool, overwrite: bool
) -> None:
    """Raise a ValueError or a FileExistsError unless a run may write into `out`.

    Args:
        out: it needn't exist.
        read: what the run reads; none of it is deleted.
        resume: a run that is there is resumed.
        overwrite: a run that is there is deleted.
    """
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    check_writable(out)
    if str(out) != readable_name(str(out)):
        raise ValueError(f"{out}: safetensors reads no path that isn't UTF-8; name another --out")
    if not out.exists() or not any(out.iterdir()):
        return
    names = written_by_a_run(out)
    if overwrite:
        inside = [x for x in read if x and Path(x).resolve().is_relative_to(out.resolve())]
        if inside or not is_run(out):
            fact = f"holds {inside[0]}, read by this run" if inside else "isn't the folder of a run"
            raise FileExistsError(f"{out} {fact}; --overwrite would delete it: name another --out")
    elif not resume:
        raise FileExistsError(
            f"{out} exists and isn't empty; --resume continues its run, --overwrite deletes it, or "
            "name another --out"
        )
    elif names and not is_run(out):
        fact = "a model, but no run to resume" if WEIGHTS in names else f"{names[0]}, but no run"
        raise FileExistsError(f"{out} holds {fact}; name another --out")
    elif WEIGHTS in names and RECORD in names:
        checkpoint, *_ = newest_checkpoint(out / CHECKPOINTS, hash_tensors=False)
        if checkpoint is None:
            raise FileExistsError(
                f"{out} holds a model, but no checkpoint to resume from; name another --out, or "
                "delete the model with --overwrite"
            )


def check_writable(out: Path) -> None:
    """Raise a PermissionError where a folder can't be made, or written to."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{out}: {there} can't be written to; name another --out")


def check_room(out: Path, parameters: int, weight_bytes: int, *, overwrite: bool) -> None:
    """Raise an OSError where a run's weights and its first checkpoint don't fit on the disk.

    Args:
        out: its folder; a run that is there is resumed, or deleted if `overwrite`.
        weight_bytes: of a weight that is saved for use.
    """
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    free = shutil.disk_usage(there).free + (bytes_of(out) if overwrite else 0)
    resumed = (out / WEIGHTS).exists() and not overwrite  # the new checkpoint pushes one out
    needed = parameters * (12 + (0 if resumed else 2 * weight_bytes))
    if needed > free:
        raise OSError(
            f"{out}: the run takes at least {needed / 1e9:,.3f} GB and {free / 1e9:,.3f} GB are "
            "free; make room, or name another --out"
        )


def readable_name(name: str) -> str:
    """A name with _ for each byte that isn't UTF-8."""
    return "".join("_" if "\ud800" <= char <= "\udfff" else char for char in name)


def claim_folder(file: str, root: Path) -> Path:
    """Make a folder named after a file, and return it: no other process has it.

    The first of ROOT/NAME-1, ROOT/NAME-2, ... that isn't there; "-" is standard input.
    """
    name = "stdin" if file == "-" else readable_name(Path(file).name.split(".")[0]) or "rows"
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        try:
            (root / f"{name}-{number}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return root / f"{name}-{number}"


@contextmanager
def print_first(write: Callable[[], object]) -> Iterator[None]:
    """Print inside, then `write`: a full disk hides no results, a closed pipe writes them still."""
    try:
        yield
        sys.stdout.flush()
    except OSError:
        write()
        raise
    write()


@contextmanager
def output_may_break() -> Iterator[None]:
    """Drop what is printed inside where nobody reads it any more, or its disk is full.

    Hours of training don't end because the `tee` behind them did, or their terminal was closed.
    """
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = lasting = [TolerantStream(stream) for stream in streams]
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
        for stream in lasting:
            stream.finish()


class TolerantStream:
    """A text stream whose errors are dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def finish(self) -> None:
        """Flush; where that fails, send the rest nowhere, or Python would fail as it ends."""
        try:
            self._stream.flush()
        except OSError:
            with suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        if isinstance(self._stream, EscapingStream):
            self._stream.failed = None  # it was no failure of the command's
