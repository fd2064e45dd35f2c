"""Text is tokenized once, without repeats, and what is held back stays held back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.plain_text import encode_documents
from minimind.data.selection import split_by_prompt
from minimind.pretrain import corpus
from minimind.pretrain.corpus import CorpusReport, build_corpus, scripts_of
from minimind.tokenizer import Tokenizer

STORY = "Once upon a time a cat named Mira lived by the sea, and every day she caught a fish. "
TEXTS = [
    "안녕하세요. 고양이가 잡니다.",
    STORY * 3,
    " \n",
    "Hello, cat!",
    "  hello,\n CAT! ",
    STORY * 3 + "!",
]


def write(path: Path, texts: list[str]) -> Path:
    rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def said(dataset: Dataset, tokenizer: Tokenizer) -> list[str]:
    """The text of each document."""
    text = "".join(tokenizer.decode(row.input_ids[1:]) for row in dataset)
    return text.split("<|endoftext|>")[:-1]


def many(count: int) -> list[str]:
    return [f"Story number {n} is about {n * n} cats." for n in range(count)]


def test_repeats_and_empty_documents_are_left_out_and_counted(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    pytest.importorskip("datasketch")
    dataset, report = build_corpus([write(tmp_path / "a.jsonl", TEXTS)], tokenizer, 512)
    assert report == CorpusReport(documents=6, kept=3, empty=1, duplicates=1, near_duplicates=1)
    assert said(dataset, tokenizer) == [TEXTS[0], TEXTS[1], TEXTS[3]]


def test_a_document_that_stands_in_two_files_is_of_the_first(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    first = write(tmp_path / "a.jsonl", ["가나다", "하나 둘 셋"])
    second = tmp_path / "b.txt"
    second.write_text("하나  둘 셋\n", encoding="utf-8")
    third = write(tmp_path / "c.jsonl", ["", "a b c"])
    dataset, report = build_corpus([first, second, third], tokenizer, 512)
    assert (report.kept, report.duplicates, report.empty) == (3, 1, 1)
    assert dataset.column("file").tolist() == [0, 0, 2]
    assert dataset.column("line").tolist() == [1, 2, 2]


def test_without_datasketch_near_duplicates_are_not_looked_for(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "minhash_available", lambda: False)
    _, report = build_corpus([write(tmp_path / "a.jsonl", TEXTS)], tokenizer, 512)
    assert report == CorpusReport(documents=6, kept=4, empty=1, duplicates=1, near_duplicates=None)


def test_on_disk_are_the_windows_that_encode_documents_cuts(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "BLOCK_ROWS", 7)
    monkeypatch.setattr("minimind.data.plain_text.BLOCK", 100)
    texts = many(40)
    dataset, _ = build_corpus([write(tmp_path / "a.jsonl", texts)], tokenizer, 5)
    assert list(dataset) == list(encode_documents(texts, tokenizer, 5))
    lines = np.unique(dataset.column("line")).tolist()
    assert lines == list(range(1, 41))
    assert isinstance(dataset.input_ids, np.memmap)


def test_text_is_tokenized_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    cache = tmp_path / "cache"

    def build(path: Path, max_length: int) -> tuple[Dataset, CorpusReport, int]:
        dataset, report = build_corpus([path], tokenizer, max_length, cache)
        return dataset, report, len(list(cache.glob("*/input_ids.bin")))

    path = write(tmp_path / "a.jsonl", many(5))
    first, report, _ = build(path, 64)
    again, same_report, built = build(path, 64)
    assert (list(again), same_report, built) == (list(first), report, 1)
    other = write(tmp_path / "other.jsonl", many(5))
    assert build(other, 64)[2] == 1  # known by what it holds
    assert build(path, 65)[2] == 2
    write(path, [*many(4), "Story number 4 is about 17 cats."])
    assert build(path, 64)[2] == 3
    path.rename(tmp_path / "a.txt")
    assert build(tmp_path / "a.txt", 64)[2] == 4


def test_a_file_that_breaks_off_leaves_nothing_behind(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", many(3))
    path.write_text(path.read_text() + '{"text": "Once"')
    cache = tmp_path / "own"
    with pytest.raises(DataError, match=r"a\.jsonl:4: the JSON breaks off before"):
        build_corpus([path], tokenizer, 64, cache)
    assert [entry.name for entry in cache.iterdir() if entry.is_dir()] == []


def test_a_killed_run_leaves_only_folders_that_the_next_one_removes(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    cache, seen = tmp_path / "cache", set()
    build_corpus(
        [write(tmp_path / "a.jsonl", many(3))],
        tokenizer,
        64,
        cache,
        lambda _: seen.update(path.name for path in cache.iterdir()),
    )
    assert len(seen) >= 2
    assert {name.partition("-")[0] for name in seen} == {"building"}


def test_held_back_are_the_same_whole_documents_whatever_else_there_is(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    texts = many(200)
    path = write(tmp_path / "a.jsonl", texts)
    whole, _ = build_corpus([path], tokenizer, 512)
    training, held_back = (said(part, tokenizer) for part in split_by_prompt(whole, 0.2))
    assert sorted(training + held_back) == sorted(texts)
    assert 20 <= len(held_back) <= 60
    more = write(tmp_path / "b.jsonl", [*many(300)[::-1], *texts[:20]])
    windows, _ = build_corpus([more, path], tokenizer, 3)
    again = said(split_by_prompt(windows, 0.2)[1], tokenizer)
    assert set(held_back) == set(again) & set(texts)


def test_each_window_has_the_main_script_of_its_whole_document(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    mixed = "고양이가 야옹 하고 웁니다. " * 3 + "The cat meows."
    path = write(tmp_path / "a.jsonl", [mixed, "Hello " * 9, "1 + 2 = 3"])
    windows, _ = build_corpus([path], tokenizer, 6)
    scripts = scripts_of(windows, tokenizer)
    found = set(zip(windows.column("line").tolist(), scripts, strict=True))
    assert found == {(1, "hangul"), (2, "latin"), (3, "none")}
    assert len(windows) > 6
