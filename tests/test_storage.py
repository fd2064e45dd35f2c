"""Folders of killed builds are removed, and streams are copied."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimind.data import storage
from minimind.data.storage import content_hash, readable_again, working_folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"some rows")
    return path


def test_a_hash_is_of_the_content_and_a_file_that_is_not_there_has_none(file: Path) -> None:
    assert content_hash(str(file)) == hashlib.sha256(b"some rows").hexdigest()
    assert content_hash(str(file.with_name("absent"))) == ""


def test_old_folders_that_killed_processes_left_are_removed(tmp_path: Path) -> None:
    week = storage.ABANDONED_SECONDS
    names = {
        "building-abc": (2 * week, False),
        "building-def": (week / 2, True),  # may be at work
        "0123456789abcdef": (2 * week, True),  # a dataset
    }
    for name, (age, _) in names.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.length.bin").write_bytes(b"half")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    with working_folder(tmp_path) as folder:
        assert folder.is_dir()
        left = {path.name for path in tmp_path.iterdir()} - {folder.name}
    assert left == {name for name, (_, kept) in names.items() if kept}
    assert not folder.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_only_what_can_be_read_once_is_copied(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    code = f"open({str(pipe)!r}, 'wb').write(b'through')"
    writer = subprocess.Popen([sys.executable, "-c", code])
    root = tmp_path / "cache"
    with readable_again([str(file), str(pipe), "absent"], root) as files:
        assert (files[0], files[2]) == (str(file), "absent")
        assert [Path(files[1]).read_bytes() for _ in range(2)] == [b"through"] * 2
    writer.wait()
    assert list(root.iterdir()) == []
    with readable_again([str(file)], tmp_path / "untouched") as files:
        assert files == [str(file)]
    assert not (tmp_path / "untouched").exists()
