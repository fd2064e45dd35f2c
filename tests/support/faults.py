"""Faults of disks and processes, on purpose: errors, kills, full disks. Knows no test."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from minimind import atomic_io as atomic_io

# Whatever changes a disk, or waits for it.
OPERATIONS: dict[str, object] = {
    "save_file": atomic_io,
    "mkdir": Path,
    "write_text": Path,
    "write_bytes": Path,
    "rename": Path,
    "unlink": Path,
    "replace": os,
    "open": os,
    "fsync": os,
    "rmtree": shutil,
}
WRITING = ("save_file", "write_text", "write_bytes")


class Crash(BaseException):
    """Stands for a crash: nothing in the package catches it."""


class Fuse:
    """Lets some file operations through, then one fails half-way: half written, half removed.

    Args:
        blow: raises, or ends the process.
        left: operations to let through.
    """

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, blow: Callable[[], None], left: int
    ) -> None:
        self.blow, self.left, self.inside = blow, left, False
        self.failed: list[str] = []
        for name, owner in OPERATIONS.items():
            monkeypatch.setattr(owner, name, self.guard(name, getattr(owner, name)))

    def guard(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def operation(*args, **kwargs):
            if self.inside:  # part of another operation
                return real(*args, **kwargs)
            self.left -= 1
            self.inside = True
            try:
                if self.left >= 0:
                    return real(*args, **kwargs)
                if name in WRITING:
                    real(*args, **kwargs)
                    path = Path(args[1] if name == "save_file" else args[0])
                    os.truncate(path, path.stat().st_size // 2)
                if name == "rmtree":
                    for file in sorted(Path(args[0]).glob("*"))[:1]:
                        file.unlink()
            finally:
                self.inside = False
            self.failed.append(name)
            self.left = 10**9
            return self.blow()

        return operation


def raising(error: BaseException) -> Callable[[], None]:
    def blow() -> None:
        raise error

    return blow


def kill() -> None:
    """End this process as the kernel's out-of-memory killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


NO_SPACE = raising(OSError(errno.ENOSPC, "No space left on device"))
BROKEN = raising(OSError(errno.EIO, "Input/output error"))


def in_a_child(work: Callable[[], object]) -> int:
    """What a forked process ends with: 0, 1 where `work` raised, or minus the signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
        process = os.fork()
    if not process:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[Path]:
    """A file system of its own; skips the test where none can be mounted."""
    folder.mkdir()
    size = f"size={kilobytes}k"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
