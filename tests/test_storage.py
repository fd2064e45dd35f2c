"""A dataset is whole or made again; folders of killed builds are removed; streams are copied."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from minimind.data import storage
from minimind.data.build import DataOptions, build_dataset
from minimind.data.dataset import Example
from minimind.data.storage import (
    CacheError,
    cache_directory,
    content_hash,
    hash_of,
    readable_again,
    working_folder,
)
from minimind.inspect.__main__ import main as inspect_main
from minimind.tokenizer import Tokenizer
from tests.support.faults import in_a_child, small_disk


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


# A dataset is whole, or made again

ROWS = [
    {"messages": [{"role": "user", "content": f"질문 {n}"}, {"role": "assistant", "content": "답"}]}
    for n in range(5)
]
ROWS[3]["messages"][1]["weight"] = 0.5  # type: ignore[assignment]
ROWS[2]["messages"] += ROWS[4]["messages"]  # it answers two prompts


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    lines = [*map(json.dumps, ROWS), '{"none": 1}']
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def build(
    data: Path, tokenizer: Tokenizer, verify: bool = False
) -> tuple[list[Example], str, Path]:
    options = DataOptions(on_bad_row="skip").for_context(1024)  # as the commands have it
    dataset, _, folder = build_dataset([data], tokenizer, options, verify=verify)
    return list(dataset), hash_of(dataset, folder), folder


def other_bytes(path: Path) -> None:
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))


def first_byte(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


def all_ones(path: Path) -> None:
    path.write_bytes(b"\1" * path.stat().st_size)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() * 2)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES = [other_bytes, first_byte, all_ones, cut, emptied, longer, Path.unlink, a_folder]
FILES = [
    "prompts.bin",
    "input_ids.bin",
    "loss_mask.bin",
    "weights.bin",
    *(f"table.{name}.bin" for name in storage.COLUMNS),
    "report.json",
    "rejected.jsonl",
]


def test_the_list_of_files_is_whole(data: Path, tokenizer: Tokenizer) -> None:
    folder = build(data, tokenizer)[2]
    assert {path.name for path in folder.iterdir()} == {*FILES, "hash-all.txt"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_each_damaged_file_is_noticed_and_the_dataset_made_again(
    damage: Callable[[Path], None], name: str, data: Path, tokenizer: Tokenizer
) -> None:
    rows, data_hash, folder = build(data, tokenizer)
    damage(folder / name)
    unfinished = not (folder / "report.json").exists()
    told = pytest.warns(UserWarning, match="was damaged; its rows are read again")
    with nullcontext() if unfinished else told:
        assert build(data, tokenizer) == (rows, data_hash, folder)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert build(data, tokenizer)[:2] == (rows, data_hash)  # and now in silence


def test_a_file_of_the_same_size_and_time_is_noticed_where_sums_are_asked_for(
    data: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, data_hash, folder = build(data, tokenizer)
    mask = folder / "loss_mask.bin"
    status = mask.stat()

    def mark_all() -> None:
        """The user's words would be trained."""
        all_ones(mask)
        os.utime(mask, ns=(status.st_atime_ns, status.st_mtime_ns))

    mark_all()
    with pytest.warns(UserWarning, match="was damaged; its rows are read again"):
        assert build(data, tokenizer, verify=True)[:2] == (rows, data_hash)
    status = mask.stat()
    mark_all()
    check(data)
    assert f"note: {folder}: was damaged; its rows are read again" in capsys.readouterr().err
    assert build(data, tokenizer)[:2] == (rows, data_hash)


def check(data: Path) -> None:
    arguments = ["--check", "--on-bad-row", "skip", "--val-fraction", "0"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        inspect_main([str(data), *arguments])


def test_a_check_reads_the_arrays_that_training_reads(
    data: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Even arrays whose sums are right, as another version of this code might have left them."""
    name = "the arrays that training reads hold these ids and masks"
    folder = build(data, tokenizer)[2]
    check(data)
    assert f"passed: {name} (each file's sum, and each row)" in capsys.readouterr().out
    head = storage._read_head(folder)
    for array in ("loss_mask.bin", "input_ids.bin"):
        first_byte(folder / array)
        writer = storage.DatasetWriter(folder, tokenizer.vocab_size)
        (folder / "hash-all.txt").unlink(missing_ok=True)
        writer.finish(head["report"])
        check(data)
        assert f"failed: {name} (1 rows are others" in capsys.readouterr().out
        first_byte(folder / array)


def test_a_start_reads_no_sum_and_a_copy_of_the_cache_reads_them_once(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows, data_hash, folder = build(data, tokenizer)
    summed: list[str] = []

    def counted(path: str | Path) -> str:
        summed.append(Path(path).name)
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()

    monkeypatch.setattr(storage, "sha256_of", counted)
    assert build(data, tokenizer) == (rows, data_hash, folder)
    assert summed == ["data.jsonl"]
    shutil.copytree(folder.parent, tmp_path / "copy", copy_function=shutil.copyfile)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "copy"))
    summed.clear()
    assert build(data, tokenizer)[:2] == (rows, data_hash)
    assert sorted(summed) == sorted({*FILES, "data.jsonl"} - {"report.json"})
    summed.clear()
    assert build(data, tokenizer)[:2] == (rows, data_hash)
    assert summed == ["data.jsonl"]


@pytest.mark.parametrize("text", ["", "0" * 64, "0" * 64 + " " + "1" * 64, "\udcff"])
def test_a_kept_hash_that_is_damaged_is_not_believed(
    text: str, data: Path, tokenizer: Tokenizer
) -> None:
    _, data_hash, folder = build(data, tokenizer)
    kept = folder / "hash-all.txt"
    good = kept.read_text()
    kept.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert build(data, tokenizer)[1] == data_hash
    assert kept.read_text() == good
    kept.write_text(good)
    other = data.with_name("other.jsonl")
    other.write_text(json.dumps(ROWS[0]) + "\n")
    _, other_hash, elsewhere = build(other, tokenizer)
    shutil.copyfile(kept, elsewhere / kept.name)  # another dataset's
    assert build(other, tokenizer)[1] == other_hash != data_hash


def test_everything_is_on_the_disk_before_it_is_renamed(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: set[int] = set()
    fsync, rename = os.fsync, Path.rename

    def remember(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(path: Path, target: Path) -> Path:
        assert {file.stat().st_ino for file in (path, *path.iterdir())} <= synced
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(Path, "rename", checked)
    assert build(data, tokenizer)[2].stat().st_ino in synced


def test_only_the_owner_reads_the_cache(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "new" / "cache"))
    folder = build(data, tokenizer)[2]
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, folder.parent)] == [0o700] * 2
    (tmp_path / "shared").mkdir(mode=0o755)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "shared"))  # a folder of the user's own
    assert stat.S_IMODE(build(data, tokenizer)[2].stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "shared").stat().st_mode) == 0o755


# Several processes


def test_a_folder_that_another_process_finished_meanwhile_is_never_deleted(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one finishes just before this one looks for the last time."""
    rows, data_hash, folder = build(data, tokenizer)
    (folder / "report.json").unlink()
    inodes, is_sound = [], storage._is_sound

    def late(place: Path, verify: bool) -> bool:
        if list(folder.parent.glob("building-*/dataset/report.json")) and not inodes:
            inodes.append(0)
            build(data, tokenizer)
            inodes[0] = folder.stat().st_ino
        return is_sound(place, verify)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "_locked", lambda *_, **__: storage.ExitStack())  # no help
        patched.setattr(storage, "_is_sound", late)
        assert build(data, tokenizer) == (rows, data_hash, folder)
    assert [folder.stat().st_ino] == inodes


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform can't fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_many_processes_build_damage_and_read_at_once(data: Path, tokenizer: Tokenizer) -> None:
    rows, data_hash, folder = build(data, tokenizer)

    def work() -> None:
        warnings.simplefilter("ignore")
        assert build(data, tokenizer) == (rows, data_hash, folder)

    for damage in [cut, Path.unlink] * 3:
        damage(folder / "report.json")
        children = []
        for _ in range(3):
            child = os.fork()
            if not child:
                os._exit(in_a_child(work))
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_old_folder_in_which_a_process_works_stays(tmp_path: Path) -> None:
    with working_folder(tmp_path) as old:
        os.utime(old, (1, 1))
        with working_folder(tmp_path):
            assert old.is_dir()
    old.mkdir()
    os.utime(old, (1, 1))
    with working_folder(tmp_path):
        assert not old.exists()


def test_a_file_system_without_locks_will_do(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(storage, "folder_lock", unsupported)
    assert len(build(data, tokenizer)[0]) == 5


# A cache that can't be written


def test_a_full_cache_is_named(
    tmp_path: Path, tokenizer: Tokenizer, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", 64) as disk:
        (disk / "fill").write_bytes(bytes(2**10 * 48))
        monkeypatch.setenv("MINIMIND_CACHE", str(disk))
        data.write_text((json.dumps(ROWS[0]) + "\n") * 2000)
        with pytest.raises(CacheError, match=r"disk: the cache .* \(No space .*MINIMIND_CACHE"):
            build(data, tokenizer)
        assert [path.name for path in disk.iterdir()] == ["fill"]


@pytest.mark.parametrize("when", ["mkdir", "write", "rename", "sync"])
def test_a_cache_that_cannot_be_written_is_named_in_one_line(
    when: str, data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    owner, name = {
        "mkdir": (storage.tempfile, "mkdtemp"),
        "write": (storage.DatasetWriter, "add"),
        "rename": (Path, "rename"),
        "sync": (storage, "sync"),
    }[when]
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(CacheError) as caught:
        build(data, tokenizer)
    root = cache_directory()
    assert str(caught.value) == (
        f"{root}: the cache of tokenized rows can't be written (Read-only file system); "
        "make room or allow it, or set MINIMIND_CACHE to another folder"
    )


def test_a_cache_that_is_a_file_is_named(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(data))
    with pytest.raises(CacheError, match=r"data.jsonl: the cache .*; make room"):
        build(data, tokenizer)


def test_what_is_cached_can_be_read_where_nothing_can_be_written(
    data: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = build(data, tokenizer)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(storage.tempfile, "mkdtemp", refuse)
    os.utime(found[2] / "input_ids.bin", (1, 1))
    (found[2] / "hash-all.txt").unlink()
    assert build(data, tokenizer) == found


def test_without_a_home_the_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MINIMIND_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nobody)
    with pytest.raises(CacheError, match=r"no home folder .*; set MINIMIND_CACHE to a"):
        cache_directory()
    with readable_again([str(data)]) as files:  # needs none
        assert files == [str(data)]
    assert inspect_main([str(data)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
