"""Tokenize plain text once to a dataset on disk, without repeated documents.

    pass 1   each document ---> its text ---> which documents repeat an earlier one
    pass 2   the others ---> windows ---> a Dataset, cached like one of conversations

All windows of a document have its key, 64 bits of its text's hash. So the validation part, chosen
by key, has whole documents, and the same ones whatever the tokenizer, the order and the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import compress, groupby, islice, tee
from pathlib import Path

import numpy as np
import numpy.typing as npt

from minimind.data.dataset import Dataset
from minimind.data.plain_text import Document, holds_rows, read_documents, windows_of
from minimind.data.storage import (
    DatasetWriter,
    build_once,
    cache_directory,
    read_dataset,
    readable_again,
    working_folder,
)
from minimind.text.near_duplicates import DuplicateFinder, minhash_available
from minimind.text.scripts import main_script
from minimind.tokenizer import Tokenizer

SIMILARITY = 0.85  # least share of common 5-grams of letters of two near duplicates
BLOCK_ROWS = 2**9


@dataclass(kw_only=True)
class CorpusReport:
    """What became of the documents, by count.

    Attributes:
        documents: read.
        kept: tokenized.
        empty: only white space.
        duplicates: the same as an earlier one, except for case and white space.
        near_duplicates: nearly the same as one that is kept, and no duplicates; None if datasketch,
            which finds them, isn't installed.
    """

    documents: int = 0
    kept: int = 0
    empty: int = 0
    duplicates: int = 0
    near_duplicates: int | None = None


def build_corpus(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    max_length: int,
    cache: Path | None = None,
    done: Callable[[int], object] = lambda documents: None,
) -> tuple[Dataset, CorpusReport]:
    """Tokenize files of text, or map the dataset that an earlier call wrote.

    Args:
        paths: see `read_documents`.
        tokenizer: decides the ids.
        max_length: inputs of a window.
        cache: folder of cached datasets; default `cache_directory()`.
        done: called with the number of documents read since the last call, in two passes.

    Returns:
        The windows, with their file's index, their document's line and key; and the report.

    Raises:
        DataError: a file or a row can't be used, or a file changes meanwhile.
    """
    names = [os.fspath(path) for path in paths]
    root = cache or cache_directory()
    windows = [tokenizer.fingerprint, tokenizer.end_of_text_id, max_length]
    settings = ["text", windows, SIMILARITY, minhash_available(), list(map(holds_rows, names))]
    with readable_again(names, root) as files:
        named = list(zip(files, names, strict=True))

        def write(folder: Path) -> None:
            with working_folder(root) as scratch:
                report, kept = _without_repeats(named, scratch, done)
            writer = DatasetWriter(folder, tokenizer.vocab_size)
            _tokenize(compress(_documents(named, done), kept), tokenizer, max_length, writer)
            writer.finish(asdict(report))

        folder = build_once(root, settings, named, write)
    dataset, report = read_dataset(folder)
    return dataset, CorpusReport(**report)


def documents_of(dataset: Dataset) -> Iterator[tuple[list[int], list[int]]]:
    """Each document: the rows of its windows, and its ids without the first and the last one."""
    for _, group in groupby(range(len(dataset)), dataset.column("key").__getitem__):
        rows = list(group)
        yield rows, [id for row in rows for id in dataset[row].input_ids[1:]][:-1]


def scripts_of(dataset: Dataset, tokenizer: Tokenizer) -> list[str]:
    """For each window the main script of its document, or "none"."""
    scripts: list[str] = []
    for rows, ids in documents_of(dataset):
        scripts += [main_script(tokenizer.decode(ids)) or "none"] * len(rows)
    return scripts


def _documents(
    files: Sequence[tuple[str, str]], done: Callable[[int], object]
) -> Iterator[tuple[int, Document]]:
    for index, (file, name) in enumerate(files):
        for document in read_documents(file, name):
            yield index, document
            done(1)


def _without_repeats(
    files: Sequence[tuple[str, str]], folder: Path, done: Callable[[int], object]
) -> tuple[CorpusReport, npt.NDArray[np.bool_]]:
    """The report, and (documents,) True for those to keep."""
    near = minhash_available()
    with DuplicateFinder(folder, near) as finder:
        has_text = []
        for _, document in _documents(files, done):
            finder.add_text(document.text)
            has_text.append(bool(document.text.strip()))
        full = np.array(has_text, bool)
        duplicate = finder.duplicates() >= 0
        alike = finder.near_duplicates(SIMILARITY) >= 0 if near else np.zeros_like(duplicate)
    kept = full & ~duplicate & ~alike
    report = CorpusReport(
        documents=len(full),
        kept=int(kept.sum()),
        empty=int((~full).sum()),
        duplicates=int(duplicate.sum()),
        near_duplicates=int((alike & ~duplicate).sum()) if near else None,
    )
    return report, kept


def _tokenize(
    documents: Iterable[tuple[int, Document]],
    tokenizer: Tokenizer,
    max_length: int,
    writer: DatasetWriter,
) -> None:
    known, read = tee(documents)
    windows = windows_of((document.text for _, document in read), tokenizer, max_length)
    rows = (
        (example, _key(document.text), file, document.line)
        for (file, document), examples in zip(known, windows, strict=True)
        for example in examples
    )
    while block := list(islice(rows, BLOCK_ROWS)):
        examples, keys, files, lines = zip(*block, strict=True)
        part = Dataset.from_examples(examples)
        for name, column in (("key", keys), ("file", files), ("line", lines)):
            part.columns[name][:] = column
        writer.add(part)


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
