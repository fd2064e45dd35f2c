"""Write tensors with clear errors, wait until files are on the disk, and lock a folder."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write contiguous tensors on the CPU to a safetensors file; `metadata` goes into its header.

    Raises:
        OSError: the disk is full, or fails; the file is incomplete.
    """
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # safetensors raises it for the system's errors
        raise OSError(f"{path}: {error}; make room, or check the disk") from error


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a file beside its place and rename it: what stands there is whole, the old or the new.

    A link stays one. What UTF-8 can't write, such as bytes of a file's name, is escaped as in JSON.

    Raises:
        OSError: the disk is full, or fails; what stood there is unchanged.
    """
    target = path.resolve()
    aside = target.with_name(f".minimind-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            content = content.encode("utf-8", "backslashreplace")
        aside.write_bytes(content)
        if target.exists():
            shutil.copymode(target, aside)
        sync(aside)
        os.replace(aside, target)
    except OSError as error:
        fact = f"can't be written ({error.strerror or error}), and what was there is unchanged"
        raise OSError(f"{path}: {fact}; make room, or name another place") from error
    finally:
        with suppress(OSError):
            aside.unlink()


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it: some file systems have no hard links.

    A link is safe only where both names' files are replaced by renaming, never written to.
    """
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def sha256_of(path: str | Path) -> str:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def folder_lock(folder: Path, wait: bool = False) -> Iterator[None]:
    """Lock a folder, so that no second run writes into it. The lock ends with the process.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
    """
    if sys.platform == "win32":  # can't open a folder: a file beside it is locked in its place
        import msvcrt

        place = folder.absolute().with_name(f".{folder.absolute().name}.lock")
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT)
        mode = msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK
        lock = partial(msvcrt.locking, descriptor, mode, 1)  # a byte, written or not
    else:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        lock = partial(fcntl.flock, descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        try:
            lock()
        except (BlockingIOError, PermissionError):  # as Linux and as Windows say it
            raise BlockingIOError(
                f"{folder}: another run writes there; name another --out"
            ) from None
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return  # Windows can't: its journal keeps the names in order
    flags = os.O_RDWR if windows else os.O_RDONLY  # Windows syncs only what may be written
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
