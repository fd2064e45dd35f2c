"""Put files on the disk so that a power cut finds them whole, one run at a time. Knows no run."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file.

    Args:
        path: appears only when all of it is written.
        tensors: contiguous, on the CPU.
        metadata: text for the file's header.

    Raises:
        OSError: the disk is full, or fails.
    """
    try:
        save_file(dict(tensors), path, metadata)
    except SafetensorError as error:  # what safetensors makes of the system's errors
        raise OSError(f"{path}: {error}; make room, or see to the disk") from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder, so that no second run writes into it; a dead process holds nothing.

    Raises:
        BlockingIOError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder}: another run writes there; name another --out"
            ) from None
        yield
    finally:
        os.close(descriptor)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
