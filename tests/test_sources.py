"""Files are hashed once, and again when they may have changed; folders of killed builds go."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimind.data import sources
from minimind.data.sources import INDEX, content_hash, readable_again, working_folder


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as old enough."""
    monkeypatch.setattr(sources, "SETTLED_NS", -(10**18))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"some rows")
    return path


def plant(root: Path, path: Path, answer: str) -> None:
    """Make the index give another hash, to see whether it is asked."""
    index = json.loads((root / INDEX).read_text(encoding="utf-8"))
    index[str(path)][-1] = answer
    (root / INDEX).write_text(json.dumps(index), encoding="utf-8")


def test_an_unchanged_file_is_not_read_again(
    file: Path, tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "cache"
    first = content_hash(str(file), root)
    assert content_hash(str(file), root) == first
    plant(root, file, "known")
    assert content_hash(str(file), root) == "known"
    monkeypatch.chdir(tmp_path)
    assert content_hash("a.jsonl", root) == "known"


@pytest.mark.parametrize("change", ["content", "size", "time", "another file"])
def test_a_file_that_may_have_changed_is_hashed_again(
    change: str, file: Path, tmp_path: Path, settled: None
) -> None:
    root = tmp_path / "cache"
    before, status = content_hash(str(file), root), file.stat()
    plant(root, file, "known")
    if change == "content":  # same size, same time, as tools that keep times leave it
        time.sleep(0.02)
        file.write_bytes(b"some cows")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "size":
        file.write_bytes(b"some more rows")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    else:
        other = tmp_path / "b.jsonl"
        other.write_bytes(b"some cows")
        os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
        other.replace(file)
    after = content_hash(str(file), root)
    assert after != "known"
    assert (after == before) == (change == "time")


def test_a_file_changed_a_moment_ago_is_not_trusted(file: Path, tmp_path: Path) -> None:
    content_hash(str(file), tmp_path / "cache")
    assert not (tmp_path / "cache" / INDEX).exists()


def test_a_broken_index_is_as_good_as_none(file: Path, tmp_path: Path, settled: None) -> None:
    root = tmp_path / "cache"
    expected = content_hash(str(file), root)
    for broken in ("{", "[1]"):
        (root / INDEX).write_text(broken, encoding="utf-8")
        assert content_hash(str(file), root) == expected


def test_the_index_keeps_the_latest_files_only(
    tmp_path: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "INDEX_ENTRIES", 3)
    files = [tmp_path / f"{number}.jsonl" for number in range(5)]
    for file in files:
        file.write_bytes(b"x")
        content_hash(str(file), tmp_path / "cache")
    index = json.loads((tmp_path / "cache" / INDEX).read_text(encoding="utf-8"))
    assert list(index) == [str(file) for file in files[2:]]


def test_a_file_that_is_not_there_has_no_hash(tmp_path: Path) -> None:
    assert content_hash(str(tmp_path / "absent"), tmp_path / "cache") == ""


def test_folders_that_killed_processes_left_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    day = sources.ABANDONED_SECONDS
    host = socket.gethostname()
    names = {
        f"building-{host}-{gone.pid}-x": (0, False),  # its process has ended
        f"building-{host}-{os.getpid()}-x": (2 * day, True),  # at work, however long
        "building-elsewhere-1-x": (day / 2, True),  # can't be asked after, but may be at work
        "building-elsewhere-2-x": (2 * day, False),
        "building-older": (2 * day, False),
        "0123456789abcdef": (2 * day, True),  # a dataset
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
