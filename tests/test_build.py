"""Files become Examples once; the report counts every row; no prompt is on both sides."""

from __future__ import annotations

import gc
import gzip
import io
import json
import os
import pickle
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data import build as build_module
from minimind.data import storage
from minimind.data.build import DataOptions, DataReport, build_dataset
from minimind.data.conversation import Conversation, parse_conversation
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.masking import encode_conversation
from minimind.data.selection import split_by_prompt
from minimind.data.storage import cache_directory, hash_of
from minimind.tokenizer import Tokenizer
from tests.support.tokenizers_of_bases import write_llama3

Row = dict[str, Any]

LONG = "긴 대답입니다. " * 40

MIXED: list[Row] = [
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    {"conversations": [{"from": "human", "value": "안녕"}, {"from": "gpt", "value": "반가워"}]},
    {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief."},
    {"prompt": "수도는?", "completion": "서울입니다.", "label": 7},
    {"messages": [{"role": "user", "content": "Anyone there?"}]},  # nothing to train
    {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c"},
            {"role": "user", "content": "d"},
            {"role": "assistant", "content": LONG},
        ]
    },
    {"prompt": "길게 써 줘", "completion": LONG},
    {"prompt": "short", "completion": [{"role": "assistant", "content": "ok"}]},
]


def write(path: Path, rows: list[Row]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


def exchange(question: str, answer: str, weight: float = 1.0) -> Row:
    return {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "weight": weight},
        ]
    }


def build(path: Path, tokenizer: Tokenizer, **options: Any) -> tuple[Dataset, DataReport, Path]:
    return build_dataset([path], tokenizer, DataOptions(**options))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    return write(tmp_path / "mixed.jsonl", MIXED)


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Grows by one each time files (of a few rows) are tokenized."""
    calls: list[object] = []
    encode_batch = Tokenizer.encode_batch

    def counted(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        if len(texts) > 1:  # one text is the template's
            calls.append(texts)
        return encode_batch(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    return calls


def before_reading(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Let something happen once, after files are hashed and before they are read."""
    read = build_module.read_conversations

    def late(*arguments: Any, **options: Any) -> Iterator[Conversation]:
        monkeypatch.setattr(build_module, "read_conversations", read)
        happens()
        return read(*arguments, **options)

    monkeypatch.setattr(build_module, "read_conversations", late)


# Rows to Examples


def test_mixed_shapes_give_the_examples_of_their_conversations(
    mixed: Path, tokenizer: Tokenizer
) -> None:
    dataset, report, _ = build(mixed, tokenizer, max_length=2048)
    expected = [encode_conversation(parse_conversation(row), tokenizer) for row in MIXED]
    assert list(dataset) == [example for example in expected if any(example.loss_mask)]
    assert report.shapes == {
        "messages": 3,
        "conversations": 1,
        "instruction/output": 1,
        "prompt/completion": 3,
    }
    assert report.turns == {"repeated_user": 1, "no_assistant": 1}
    assert dataset.column("line").tolist() == [1, 2, 3, 4, 6, 7, 8]


@pytest.mark.parametrize("truncation", ["turns", "tokens", "drop"])
def test_the_report_equals_an_independent_recount(
    truncation: Any, mixed: Path, tokenizer: Tokenizer
) -> None:
    limit = 60
    dataset, report, _ = build(mixed, tokenizer, max_length=limit, truncation=truncation)

    count: Counter[str] = Counter()
    for row in MIXED:
        conversation = parse_conversation(row)
        whole = encode_conversation(conversation, tokenizer)
        kept = encode_conversation(conversation, tokenizer, limit, truncation=truncation)
        before, after = whole.loss_mask.count(True), kept.loss_mask.count(True)
        count["rows"] += 1
        count["unsupervised"] += before == 0
        count["truncated"] += after < before
        count["dropped_long"] += after == 0 < before
        count["tokens_lost"] += before - after
        if after:
            count["kept"] += 1
            count["tokens"] += len(kept)
            count["supervised"] += after
    assert {name: getattr(report, name) for name in count} == dict(count)
    assert report.tokens_lost > 0
    assert report.truncated == 2
    assert report.dropped_long == {"turns": 1, "tokens": 0, "drop": 2}[truncation]
    assert report.rows == report.kept + report.unsupervised + report.dropped_long
    assert len(dataset) == report.kept
    assert sum(map(len, dataset)) == report.tokens == dataset.column("length").sum()
    assert sum(sum(row.loss_mask) for row in dataset) == report.supervised
    assert dataset.column("supervised").sum() == report.supervised
    assert all(len(row) <= limit for row in dataset)


def test_many_rows_come_back_in_order_whatever_the_block_size(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [exchange(f"질문 {i}", "답 " * (i % 7 + 1)) for i in range(40)]
    path = write(tmp_path / "rows.jsonl", rows)
    whole, report, _ = build(path, tokenizer)
    monkeypatch.setattr(build_module, "BLOCK_ROWS", 7)
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "other"))
    in_blocks, again, _ = build(path, tokenizer)
    assert list(in_blocks) == list(whole)
    assert again == report
    assert hash_of(in_blocks) == hash_of(whole)
    assert whole.column("line").tolist() == list(range(1, 41))


def test_several_files_are_read_in_order_and_each_row_knows_its_own(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path / "a.jsonl", [exchange("one", "1"), exchange("two", "2")])
    array = tmp_path / "b.json"
    array.write_text(json.dumps([exchange("셋", "3")], indent=1), encoding="utf-8")
    zipped = tmp_path / "c.jsonl.gz"
    zipped.write_bytes(gzip.compress(json.dumps(exchange("넷", "4")).encode()))
    monkeypatch.chdir(tmp_path)
    paths: list[str | Path] = [
        first,
        "b.json",
        Path("c.jsonl.gz"),
        f"{tmp_path}/../{tmp_path.name}/a.jsonl",
    ]
    dataset, report, _ = build_dataset(paths, tokenizer, DataOptions())
    assert report.kept == 6
    assert dataset.column("file").tolist() == [0, 0, 1, 2, 3, 3]
    assert dataset.column("line").tolist() == [1, 2, 2, 1, 1, 2]
    said = [tokenizer.decode(row.input_ids).split("\n")[1] for row in dataset]
    assert said == [f"{word}<|im_end|>" for word in ("one", "two", "셋", "넷", "one", "two")]


def test_options_reach_the_reader_and_the_renderer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "qa.jsonl", [{"q": "질문", "a": "답", "output": 1}])
    dataset, report, _ = build(path, tokenizer, prompt_key="q", answer_key="a", system="짧게")
    assert report.shapes == {"q/a": 1}
    assert tokenizer.decode(dataset[0].input_ids) == (
        "<|im_start|>system\n짧게<|im_end|>\n<|im_start|>user\n질문<|im_end|>\n"
        "<|im_start|>assistant\n답<|im_end|>\n"
    )
    turns = [{"role": r, "content": r} for r in ("user", "assistant", "user", "assistant")]
    path = write(tmp_path / "two.jsonl", [{"messages": turns}])
    (every,), (last,) = (
        build(path, tokenizer, train_on=train_on)[0] for train_on in ("all", "last")
    )
    assert sum(every.loss_mask) == 2 * sum(last.loss_mask) > 0


def test_weights_are_kept_and_rows_without_any_count_one(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "BLOCK_ROWS", 2)  # the first weight comes in block 2
    rows = [exchange(f"q{i}", f"대답 {i}", weight=[1.0, 0.25][i == 4]) for i in range(7)]
    dataset, _, folder = build(write(tmp_path / "w.jsonl", rows), tokenizer)
    assert dataset.weights is not None
    for index, row in enumerate(dataset):
        assert row.weights == ([0.25 * mark for mark in row.loss_mask] if index == 4 else None)
    plain, _, elsewhere = build(write(tmp_path / "p.jsonl", rows[:4]), tokenizer)
    assert plain.weights is None
    assert (folder / "weights.bin").exists()
    assert not (elsewhere / "weights.bin").exists()  # costs nothing where it says nothing


def test_a_large_vocabulary_keeps_all_of_its_ids(tmp_path: Path) -> None:
    class Shifted:
        """Ids as of a vocabulary of 200,000."""

        vocab_size, bos_id, start_id, end_id = 200_000, None, 199_998, 199_999
        fingerprint, framed = "shifted", False

        def has_control(self, token: str) -> bool:
            return False

        def with_tags(self, tags: list[str]) -> Shifted:
            return self

        def encode(self, text: str) -> list[int]:
            return [100_000 + byte for byte in text.encode()]

        def encode_batch(self, texts: list[str]) -> list[list[int]]:
            return [self.encode(text) for text in texts]

        def control_tokens_in(self, text: str) -> list[str]:
            return []

    path = write(tmp_path / "a.jsonl", [exchange("가", "나")])
    dataset, _, _ = build(path, Shifted())  # type: ignore[arg-type]
    assert dataset[0].input_ids[0] == 199_998
    assert max(dataset[0].input_ids) == 199_999
    assert dataset.input_ids.dtype == np.uint32


def test_no_legal_row_at_all_is_an_empty_dataset(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "?"}]}])
    dataset, report, _ = build(path, tokenizer)
    assert len(dataset) == 0
    assert report.unsupervised == 1
    assert hash_of(dataset) == hash_of(Dataset.from_examples([]))


# The cache


def test_the_second_time_nothing_is_tokenized(
    mixed: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    first, report, folder = build(mixed, tokenizer, max_length=60)
    second, again, same = build(mixed, tokenizer, max_length=60)
    assert len(written) == 1
    assert same == folder
    assert again == report
    assert list(second) == list(first)
    assert hash_of(second) == hash_of(first)


def test_the_same_content_under_another_name_is_not_tokenized_again(
    mixed: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    first, _, _ = build(mixed, tokenizer)
    moved = mixed.rename(mixed.with_name("moved.jsonl"))
    os.utime(moved, (1, 1))
    second, _, _ = build(moved, tokenizer)
    assert len(written) == 1
    assert list(second) == list(first)


def test_one_edited_byte_is_tokenized_again(
    mixed: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    first, _, _ = build(mixed, tokenizer)
    status = mixed.stat()
    mixed.write_bytes(mixed.read_bytes().replace(b"Hello!", b"Hello?", 1))
    os.utime(mixed, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size, same time
    second, _, _ = build(mixed, tokenizer)
    assert len(written) == 2
    assert tokenizer.decode(second[0].input_ids).count("Hello?") == 1
    assert list(second)[1:] == list(first)[1:]


CHANGES: list[Row] = [
    {"max_length": 61},
    {"truncation": "drop"},
    {"train_on": "last"},
    {"system": "Be kind."},
    {"prompt_key": "instruction", "answer_key": "output"},
    {"on_bad_row": "skip"},
    {"ignore_keys": ("label",)},
]


@pytest.mark.parametrize("change", CHANGES, ids=[next(iter(change)) for change in CHANGES])
def test_another_option_is_tokenized_again(
    change: Row, mixed: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    options = {"max_length": 60, "truncation": "turns"}
    folders = {build(mixed, tokenizer, **kwargs)[2] for kwargs in (options, options | change)}
    assert len(folders) == len(written) == 2


def test_another_tokenizer_template_or_format_is_tokenized_again(
    mixed: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    written: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    other = Tokenizer.load(write_llama3(tmp_path / "llama3"))
    folders = [build(mixed, tok)[2] for tok in (tokenizer, other)]
    monkeypatch.setattr(build_module, "CHAT_TEMPLATE", "{{ other }}")
    folders.append(build(mixed, tokenizer)[2])
    monkeypatch.setattr(storage, "FORMAT", storage.FORMAT + 1)
    folders.append(build(mixed, tokenizer)[2])
    assert len(set(folders)) == len(written) == 4


def test_the_order_of_files_counts(tmp_path: Path, tokenizer: Tokenizer) -> None:
    a = write(tmp_path / "a.jsonl", [exchange("a", "1")])
    b = write(tmp_path / "b.jsonl", [exchange("b", "2")])
    ab, _, _ = build_dataset([a, b], tokenizer, DataOptions())
    ba, _, _ = build_dataset([b, a], tokenizer, DataOptions())
    assert list(ab) == list(ba)[::-1]


def test_standard_input_is_read_each_time(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for answer in ("하나", "둘"):
        line = json.dumps(exchange("Hi", answer)).encode()
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(line)))
        dataset, report, _ = build_dataset(["-"], tokenizer, DataOptions())
        assert report.kept == 1
        assert f"assistant\n{answer}<" in tokenizer.decode(dataset[0].input_ids)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
def test_a_pipe_is_read_once_and_each_time(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for answer in ("하나", "둘"):
        rows = [exchange("Hi", answer)]
        writer = threading.Thread(target=write, args=(pipe, rows), daemon=True)
        writer.start()
        dataset, _, _ = build(pipe, tokenizer)
        writer.join(10)
        assert f"assistant\n{answer}<" in tokenizer.decode(dataset[0].input_ids)


def test_standard_input_is_cached_by_its_content_and_errors_call_it_so(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, written: list[object]
) -> None:
    def feed(text: str) -> None:
        buffer = io.BytesIO(text.encode())
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=buffer))

    for _ in range(2):
        feed(json.dumps(exchange("Hi", "하나")))
        dataset, _, folder = build_dataset(["-"], tokenizer, DataOptions())
        assert "하나" in tokenizer.decode(dataset[0].input_ids)
    assert len(written) == 1
    feed("[]\n" + BAD[0])
    with pytest.raises(DataError, match="<stdin>: has no rows"):
        build_dataset(["-"], tokenizer, DataOptions())
    feed(BAD[0])
    _, _, listed = build_dataset(["-"], tokenizer, DataOptions(on_bad_row="skip"))
    (entry,) = (listed / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(entry)["path"] == "-"
    assert {path.name for path in cache_directory().iterdir()} == {folder.name, listed.name}


def test_the_cache_takes_at_most_twice_the_bytes_of_the_tokens(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [exchange(f"질문 {i}입니다", "답 " * (30 + i % 50)) for i in range(300)]
    dataset, report, folder = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
    size = sum(path.stat().st_size for path in folder.iterdir())
    assert size <= 2 * report.tokens * dataset.input_ids.dtype.itemsize


def test_garbage_is_collected_again_after_building(mixed: Path, tokenizer: Tokenizer) -> None:
    assert gc.isenabled()
    build(mixed, tokenizer)
    assert gc.isenabled()
    gc.disable()
    try:
        build(mixed, tokenizer, max_length=60)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_crash_while_building_leaves_nothing_behind(
    mixed: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(build_module, "prompt_keys_of", crash)
        with pytest.raises(OSError, match="No space left"):
            build(mixed, tokenizer)
    assert list(cache_directory().iterdir()) == []
    assert build(mixed, tokenizer)[1].kept == 7


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_file_that_changes_while_it_is_tokenized_is_not_cached(
    when: str, mixed: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, encode_batch = mixed.read_bytes(), Tokenizer.encode_batch

    def change_and_encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        mixed.write_bytes(content * 2)
        return encode_batch(tokenizer, texts)

    with monkeypatch.context() as patched:
        if when == "before":
            before_reading(patched, lambda: mixed.write_bytes(content * 2))
        else:
            patched.setattr(Tokenizer, "encode_batch", change_and_encode)
        with pytest.raises(DataError, match=r"mixed\.jsonl: changed while it was read; read it wh"):
            build(mixed, tokenizer)
    assert list(cache_directory().iterdir()) == []
    mixed.write_bytes(content)
    assert build(mixed, tokenizer)[1].kept == 7


def test_half_a_dataset_is_never_taken_for_one(
    mixed: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    whole, _, folder = build(mixed, tokenizer)
    expected = list(whole)
    (folder / "report.json").unlink()  # as if killed while it was deleted
    (folder / "table.length.bin").write_bytes(b"half")
    (folder.parent / "building-killed").mkdir()
    again, _, _ = build(mixed, tokenizer)
    assert len(written) == 2
    assert list(again) == expected


def test_two_processes_that_build_at_once_both_get_it(
    mixed: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other: list[tuple[Dataset, DataReport, Path]] = []
    before_reading(monkeypatch, lambda: other.append(build(mixed, tokenizer)))
    dataset, report, folder = build(mixed, tokenizer)
    assert (report, folder) == other[0][1:]
    assert list(dataset) == list(other[0][0])
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_the_cache_stands_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "here"))
    assert cache_directory() == tmp_path / "here"
    monkeypatch.delenv("MINIMIND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory() == tmp_path / "xdg" / "minimind"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_directory() == tmp_path / "home" / ".cache" / "minimind"


# Bad rows

BAD = [
    '{"messages": [{"role": "bot", "content": "안녕"}]}',
    '{"messages": [{"role": "user", "content": "Hi"}',
    '{"question": "?"}',
]


def with_bad_rows(path: Path) -> Path:
    good = [json.dumps(exchange(f"q{i}", "답"), ensure_ascii=False) for i in range(3)]
    lines = [good[0], BAD[0], good[1], BAD[1], BAD[2], good[2]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_the_first_bad_row_stops_the_building_and_leaves_no_dataset(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = with_bad_rows(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match=r'bad\.jsonl:2: message 1 has role "bot"; use system'):
        build(path, tokenizer)
    assert list(cache_directory().iterdir()) == []


@pytest.mark.parametrize(("bad", "shown"), [(1, 1), (10, 10), (23, 10)])
def test_ten_bad_rows_are_shown_at_once_with_the_total_and_the_ways_out(
    bad: int, shown: int, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "bad.jsonl"
    good = json.dumps(exchange("q", "답"), ensure_ascii=False)
    lines = [good, *[BAD[0], good] * (bad - 1), BAD[1], *[good] * 700]
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DataError, match="rows can't be used") as caught:
        build(path, tokenizer)
    *told, end = str(caught.value).splitlines()
    places = [line for line in told if not line.startswith("    ")]
    numbers = [number for number, line in enumerate(lines, 1) if line != good]
    assert [int(re.findall(r"bad\.jsonl:(\d+): ", place)[0]) for place in places] == numbers[:10]
    assert len(places) == shown
    above = "" if bad == shown else " (the first 10 are above)"
    assert end == (
        f"{bad} of {len(lines)} rows can't be used{above}; --on-bad-row skip leaves them out, and "
        "python -m minimind.clean FILE --out NEW.jsonl writes the others to a file and lists these"
    )
    assert (caught.value.kind, caught.value.line) == (["unknown_role", "cut_off"][bad == 1], 2)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert list(cache_directory().iterdir()) == []


def test_nothing_is_tokenized_after_a_bad_row_that_stops_it(
    tmp_path: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    good = json.dumps(exchange("q", "a"))
    path = tmp_path / "bad.jsonl"
    path.write_text("\n".join([BAD[0], *[good] * 1500]), encoding="utf-8")
    with pytest.raises(DataError, match="1 of 1,501 rows can't be used"):
        build(path, tokenizer)
    assert written == []


def test_bad_rows_before_a_file_that_breaks_off_are_shown_with_it(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"prompt": "a", "completion": "b"},\n{"a": 1},\n{"a"', encoding="utf-8")
    message = r"(?s)json:2: the row's shape is.*json:3: .*nothing after it is.*at least 2 of at"
    with pytest.raises(DataError, match=message) as caught:
        build(path, tokenizer)
    assert caught.value.rest_unread


KEYS: list[Row] = [
    {**exchange("q", "a"), "id": 1, "source": "x"},
    {"messages": [{"role": "Developer", "content": "S"}, *exchange("q", "a")["messages"]], "id": 2},
    {"messages": [{**message, "mood": "sad"} for message in exchange("q", "a")["messages"]]},
    {"messages": [{"role": "user", "content": "q", "mood": 7}], "id": 3},
    {"messages": [{"role": "user", "content": "q", "why": "x", "who": "y", "score": 1}]},
]


def test_keys_that_are_not_read_are_counted_whatever_way_rows_come(
    tmp_path: Path,
    tokenizer: Tokenizer,
    written: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write(tmp_path / "keys.jsonl", KEYS)

    def from_stdin() -> DataReport:
        buffer = io.BytesIO(path.read_bytes())
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=buffer))
        return build_dataset(["-"], tokenizer, DataOptions())[1]

    reports = [build(path, tokenizer)[1] for _ in range(2)]  # the second from the cache
    reports.append(from_stdin())
    assert len(written) == 1
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(BAD))
    reports += [build(path, tokenizer, on_bad_row="skip")[1] for _ in range(2)]
    for report in reports:
        assert report.unread_of_rows == {"id": 3, "source": 1}
        assert report.unread_of_messages == {"mood": 3, "why": 1, "who": 1, "score": 1}
        assert report.unread_texts == {"mood": 2, "why": 1, "who": 1}
        assert report.messages_with_unread_texts == 3
        assert report.read_as == {"Developer as system": 1}
        assert report.messages == 9
        assert report.describe() == [
            "not read: id (3 rows), source (1), mood (3 messages), why (1), who (1), score (1)",
            "read: Developer as system (1 row)",
        ]
    ignoring = build(
        path, tokenizer, on_bad_row="skip", ignore_keys=("id", "mood", "why", "who", "score")
    )[1]
    assert ignoring.messages_with_unread_texts == 0
    assert ignoring.describe()[0] == "not read: source (1 row)"


def test_skipped_rows_are_counted_and_listed_as_they_are(
    tmp_path: Path, tokenizer: Tokenizer, written: list[object]
) -> None:
    path = with_bad_rows(tmp_path / "bad.jsonl")
    dataset, report, folder = build(path, tokenizer, on_bad_row="skip")
    assert report.rows == report.kept == len(dataset) == 3
    assert dataset.column("line").tolist() == [1, 3, 6]
    entries = [
        json.loads(line)
        for line in (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert [(e["path"], e["line"]) for e in entries] == [(str(path), line) for line in (2, 4, 5)]
    assert Counter(entry["kind"] for entry in entries) == report.bad
    assert [entry["row"].rstrip("\n") for entry in entries] == BAD
    assert entries[0]["fact"] == 'message 1 has role "bot"'
    assert all(entry["remedy"] and entry["excerpt"] for entry in entries)
    build(path, tokenizer, on_bad_row="skip")
    assert len(written) == 1
    # rejected.jsonl has the names: a file that was moved is listed again.
    moved = path.rename(tmp_path / "moved.jsonl")
    _, _, folder = build(moved, tokenizer, on_bad_row="skip")
    assert "moved.jsonl" in (folder / "rejected.jsonl").read_text(encoding="utf-8")


def test_without_bad_rows_there_is_no_list_of_them(mixed: Path, tokenizer: Tokenizer) -> None:
    _, report, folder = build(mixed, tokenizer, on_bad_row="skip")
    assert not report.bad
    assert not (folder / "rejected.jsonl").exists()


def test_a_file_name_that_is_not_utf8_can_be_listed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    name = os.fsencode(tmp_path) + b"/\xb0\xa1.jsonl"  # 가 in CP949
    try:
        Path(os.fsdecode(name)).write_text("[1]\n", encoding="utf-8")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only; the listing of others is unchecked")
    path = with_bad_rows(Path(os.fsdecode(name)))
    _, _, folder = build(path, tokenizer, on_bad_row="skip")
    lines = (folder / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["path"] for line in lines} == {str(path)}


def test_a_missing_file_is_named_and_leaves_no_dataset(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for on_bad_row in ("stop", "skip"):
        with pytest.raises(DataError, match=r"absent\.jsonl: there is no such file"):
            build(tmp_path / "absent.jsonl", tokenizer, on_bad_row=on_bad_row)
    assert list(cache_directory().iterdir()) == []


UNREADABLE = {
    "parquet.jsonl": (b"PAR1 and more", "is a Parquet file"),
    "empty.jsonl": (b"", "has no rows"),
    "cut.jsonl.gz": (
        gzip.compress(b'{"prompt": "a", "completion": "b"}\n' * 99)[:-9],
        "breaks off",
    ),
    "array.json": (b'[{"prompt": "a", "completion": "b"}, {"prompt": ', "nothing after it is read"),
    "cp949.json": (b'[{"prompt": "a", "completion": "\xb0\xa1"}]', "byte 0xb0 at column 33"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_file_that_cannot_be_read_to_its_end_is_never_skipped(
    name: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    content, message = UNREADABLE[name]
    (tmp_path / name).write_bytes(content)
    good = write(tmp_path / "good.jsonl", [exchange("q", "a")])
    for paths in ([good, tmp_path / name], [tmp_path / name, good]):
        with pytest.raises(DataError, match=f"{re.escape(name)}.*{message}"):
            build_dataset(paths, tokenizer, DataOptions(on_bad_row="skip"))
    assert list(cache_directory().iterdir()) == []


@pytest.mark.parametrize("truncation", ["turns", "tokens", "drop"])
@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=300), limit=st.integers(10, 200))
@settings(max_examples=15)
def test_the_length_that_is_proposed_keeps_99_percent_and_a_shorter_one_keeps_fewer(
    truncation: str, lengths: list[int], limit: int, tmp_path_factory, tokenizer: Tokenizer
) -> None:
    path = tmp_path_factory.getbasetemp() / "lengths.jsonl"
    write(path, [exchange(str(n), "word " * n) for n in lengths])

    def kept(max_length: int) -> tuple[DataReport, bool]:
        """And whether 99% of the rows are whole and have 99% of the trained tokens."""
        _, report, _ = build(path, tokenizer, max_length=max_length, truncation=truncation)
        whole = [row for row in rows if len(row) - 1 <= max_length]  # without the last newline
        trained = sum(sum(row.loss_mask) for row in whole)
        rows_kept = len(whole) >= 0.99 * len(rows) and report.truncated <= 0.01 * len(rows)
        return report, rows_kept and trained >= 0.99 * sum(sum(row.loss_mask) for row in rows)

    rows = list(build(path, tokenizer)[0])
    report, enough = kept(limit)
    assert report.loses_much <= (not enough)
    assert (report.suggested_max_length == 0) == enough
    if not enough:
        assert report.suggested_max_length > limit
        assert kept(report.suggested_max_length)[1]
        assert not kept(report.suggested_max_length - 1)[1]


@pytest.mark.parametrize(
    ("given", "context", "length"),
    [(None, 1024, 1024), (None, 4096, 4096), (None, 131072, 4096), (None, None, 4096)]
    + [(512, context, 512) for context in (64, 1024, None)],
)
def test_the_default_length_is_the_models_context_4096_at_most(
    given: int | None, context: int | None, length: int
) -> None:
    assert DataOptions(max_length=given).for_context(context).max_length == length


def test_without_a_length_rows_are_kept_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "long.jsonl", [exchange("q", "word " * 9000)])
    dataset, report, _ = build(path, tokenizer)
    assert len(dataset[0]) > 9000
    assert (report.truncated, report.suggested_max_length) == (0, 0)


def test_a_length_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="max_length is 0; use a positive number"):
        DataOptions(max_length=0)


# Splitting


def texts_of(dataset: Dataset, tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.decode(row.input_ids) for row in dataset}


@pytest.fixture
def many(tmp_path: Path) -> list[Row]:
    rows = [exchange(f"{i}번 질문입니다", f"answer {i}") for i in range(300)]
    duplicates = [exchange(f"{i} 번 질문입니다!!", f"other {i}") for i in range(0, 300, 3)]
    return rows + duplicates


def test_duplicates_never_straddle_a_split(
    many: list[Row], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    dataset, _, _ = build(write(tmp_path / "many.jsonl", many), tokenizer)
    training, validation = split_by_prompt(dataset, 0.2)
    assert len(training) + len(validation) == len(many)
    assert 0.1 < len(validation) / len(many) < 0.3
    assert not np.isin(validation.column("key"), training.column("key")).any()

    def asked(side: Dataset) -> set[str]:
        texts = texts_of(side, tokenizer)
        return {"".join(filter(str.isalnum, text.split("\n")[1])) for text in texts}

    assert not asked(training) & asked(validation)


def test_shuffling_and_appending_rows_moves_none_to_the_other_side(
    many: list[Row], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    def sides(rows: list[Row]) -> list[set[str]]:
        dataset, _, _ = build(write(tmp_path / "rows.jsonl", rows), tokenizer)
        return [texts_of(side, tokenizer) for side in split_by_prompt(dataset, 0.2)]

    training, validation = sides(many)
    order = np.random.default_rng(0).permutation(len(many))
    assert sides([many[i] for i in order]) == [training, validation]
    more = [*many, *(exchange(f"new {i}", "x") for i in range(50))]
    assert training < sides(more)[0]
    assert validation < sides(more)[1]


def test_a_smaller_fraction_is_a_part_of_a_larger_one(
    many: list[Row], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    dataset, _, _ = build(write(tmp_path / "rows.jsonl", many), tokenizer)
    keys = [set(split_by_prompt(dataset, f)[1].column("key").tolist()) for f in (0, 0.1, 0.5, 1)]
    assert keys[0] == set()
    assert keys[0] < keys[1] < keys[2] < keys[3]
    assert keys[3] == set(dataset.column("key").tolist())


def test_the_hash_is_the_same_from_memory_from_disk_and_after_selecting(
    mixed: Path, tokenizer: Tokenizer
) -> None:
    dataset, _, _ = build(mixed, tokenizer)
    assert hash_of(Dataset.from_examples(dataset)) == hash_of(dataset)
    some = np.array([3, 0, 2])
    picked = [dataset[int(i)] for i in some]
    assert hash_of(dataset.select(some)) == hash_of(Dataset.from_examples(picked))
