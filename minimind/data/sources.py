"""Know files by their content, and keep what can be read only once. Knows no rows.

files.json       path -> [size, times, inode, SHA-256]: files that needn't be hashed again
building-*       folders of work in progress
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from minimind.data.reader import copy_stream

INDEX = "files.json"
INDEX_ENTRIES = 1000  # the latest ones are kept
SETTLED_NS = 2 * 10**9  # a file changed again within a clock's tick would look the same
ABANDONED_SECONDS = 24 * 3600  # a folder in progress whose process can't be asked after
_BUILDING = "building-"


@contextmanager
def readable_again(names: Sequence[str], root: Path) -> Iterator[list[str]]:
    """Give for each name a file that can be read as often as one likes.

    Standard input and pipes are copied into the folder `root`, until the context ends.

    Raises:
        DataError: such a stream can't be read.
    """
    if not any(map(_is_stream, names)):
        yield list(names)
        return
    with working_folder(root) as scratch:
        files = []
        for index, name in enumerate(names):
            if _is_stream(name):
                copy = scratch / f"input-{index}"
                with copy.open("wb") as file:
                    copy_stream(name, file)
                files.append(str(copy))
            else:
                files.append(name)
        yield files


def content_hash(name: str, root: Path) -> str:
    """The SHA-256 of a file, "" if it can't be read; `root` remembers those of unchanged files."""
    try:
        before = _stamp(name)
        index = _read_index(root)
        path = os.path.abspath(name)
        known = index.get(path)
        if known and known[:-1] == before:
            return str(known[-1])
        digest = hashlib.sha256()
        with open(name, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
        settled = time.time_ns() - max(before[1], before[2]) > SETTLED_NS
        if settled and _stamp(name) == before:
            index.pop(path, None)
            index[path] = [*before, digest.hexdigest()]
            _write_index(root, index)
    except OSError:  # the reader says what is wrong with it
        return ""
    return digest.hexdigest()


@contextmanager
def working_folder(root: Path) -> Iterator[Path]:
    """A new folder in `root`, removed at the end; those that killed processes left go, too."""
    root.mkdir(parents=True, exist_ok=True)
    for left in root.glob(f"{_BUILDING}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    prefix = f"{_BUILDING}{socket.gethostname()}-{os.getpid()}-"
    folder = Path(tempfile.mkdtemp(dir=root, prefix=prefix))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_stream(name: str) -> bool:
    if name == "-":
        return True
    return os.path.exists(name) and not (os.path.isfile(name) or os.path.isdir(name))


def _stamp(name: str) -> list[int]:
    status = os.stat(name)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _read_index(root: Path) -> dict[str, list[object]]:
    with suppress(OSError, ValueError):
        index = json.loads((root / INDEX).read_text(encoding="utf-8"))
        if isinstance(index, dict):
            return index
    return {}


def _write_index(root: Path, index: dict[str, list[object]]) -> None:
    """Replace the index at one stroke. Of two processes the last wins: the other hashes again."""
    latest = dict(list(index.items())[-INDEX_ENTRIES:])
    with suppress(OSError), working_folder(root) as scratch:
        (scratch / INDEX).write_text(json.dumps(latest), encoding="utf-8")
        (scratch / INDEX).replace(root / INDEX)


def _is_abandoned(folder: Path) -> bool:
    host, _, rest = folder.name.removeprefix(_BUILDING).rpartition("-")[0].rpartition("-")
    if os.name == "posix" and host == socket.gethostname() and rest.isdigit():
        try:
            os.kill(int(rest), 0)  # asks only
        except ProcessLookupError:
            return True
        except OSError:  # another user's
            return False
        return False
    with suppress(OSError):
        return time.time() - folder.stat().st_mtime > ABANDONED_SECONDS
    return False
