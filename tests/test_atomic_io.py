"""Locks and syncs, as Linux and as Windows do them; importing where Unix's modules are missing."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minimind
from minimind.atomic_io import folder_lock, sync

COMMANDS = ["sft", "pretrain", "chat", "inspect", "clean", "evaluate"]


def test_everything_imports_where_the_modules_of_unix_are_missing() -> None:
    commands = ", ".join(f"minimind.{name}.__main__" for name in COMMANDS)
    code = f"""
import sys, torch, tyro
for name in ("fcntl", "grp", "pwd", "readline", "resource", "termios"):
    sys.modules[name] = None
import minimind, {commands}
"""
    root = Path(minimind.__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


class FakeMsvcrt:
    """Windows' lock of a part of an open file; Linux' lock of the file does the work."""

    LK_NBLCK = 2
    fcntl = pytest.importorskip("fcntl")

    def locking(self, descriptor: int, mode: int, length: int) -> None:
        assert (mode, length) == (self.LK_NBLCK, 1)
        try:
            self.fcntl.flock(descriptor, self.fcntl.LOCK_EX | self.fcntl.LOCK_NB)
        except BlockingIOError:
            raise PermissionError(errno.EACCES, "Permission denied") from None


@pytest.fixture(params=["this system", "windows"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "windows":
        monkeypatch.setitem(sys.modules, "fcntl", None)
        monkeypatch.setitem(sys.modules, "msvcrt", FakeMsvcrt())
        monkeypatch.setattr(sys, "platform", "win32")
    return request.param


def test_a_folder_is_locked_once_and_free_again_afterwards(tmp_path: Path, system: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        with folder_lock(folder), folder_lock(tmp_path):  # another folder is free
            second = folder_lock(folder)
            with (
                pytest.raises(BlockingIOError, match="run: another run writes there"),
                second,
            ):
                pass
    assert not list(folder.iterdir())  # whatever is in it can be deleted while it is locked


def test_an_error_inside_a_lock_frees_it(tmp_path: Path, system: str) -> None:
    with pytest.raises(ZeroDivisionError), folder_lock(tmp_path):
        _ = 1 / 0
    with folder_lock(tmp_path):
        pass


def test_files_are_synced_everywhere_and_folders_where_they_can_be(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"weights")
    for path in (file, tmp_path):
        sync(path)
    folders = [tmp_path.stat().st_ino] if system != "windows" else []
    assert synced == [file.stat().st_ino, *folders]
    assert file.read_bytes() == b"weights"
