"""Read plain text for pretraining and cut it into Examples.

A text file is one document; in JSON Lines each row's "text" is one. Every token is trained, the
first one predicted from <|endoftext|>, and <|endoftext|> is what ends the document:

    document    Once upon a time ...
    window 0    <|endoftext|> Once upon a          loss_mask 0 1 1 1
    window 1    a time ... <|endoftext|>           loss_mask 0 1 1 1
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from minimind.data.blocks import blocks
from minimind.data.dataset import Example
from minimind.data.errors import DataError, excerpt
from minimind.data.formats import refuse_foreign
from minimind.data.reader import (
    BOM,
    PathLike,
    Row,
    decode_utf8,
    open_bytes,
    read_rows,
)
from minimind.tokenizer import Tokenizer

ROWS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")  # how names of files with rows end
BLOCK = 2**17  # characters tokenized at once, or one document's


@dataclass(frozen=True, slots=True)
class Document:
    """A text, its file, and its line there (0 if the file is the document)."""

    text: str
    path: str
    line: int


def holds_rows(name: str) -> bool:
    return name.endswith(ROWS)


def read_documents(file: PathLike, name: str | None = None) -> Iterator[Document]:
    """Yield a file's documents; those of rows may be empty.

    The ending of `name`, by default the file's, decides whether it is rows or text; errors show it.

    Raises:
        DataError: the file can't be used, or a row of it: not JSON, not UTF-8, no "text" string.
    """
    name = os.fspath(file) if name is None else name
    try:
        if not holds_rows(name):
            yield Document(_read_text(os.fspath(file)), name, 0)
            return
        for row in read_rows(file):
            if isinstance(row, DataError):
                raise row
            yield Document(_text_of(row), name, row.line)
    except DataError as error:
        error.path = name
        raise


def _read_text(name: str) -> str:
    """A whole text file, plain or with gzip; CRLF becomes LF."""
    with open_bytes(name) as stream:
        data = stream.read().removeprefix(BOM)
    refuse_foreign(data, name, "text")
    text = decode_utf8(data, 1, name)
    if not text.strip():
        raise DataError("empty_file", "has no text", "check that it was written", name)
    return text.replace("\r\n", "\n")


def encode_documents(
    documents: Iterable[str], tokenizer: Tokenizer, max_length: int
) -> Iterator[Example]:
    """Cut documents into windows of at most `max_length` inputs; empty ones are left out."""
    for windows in windows_of(filter(None, documents), tokenizer, max_length):
        yield from windows


def windows_of(
    documents: Iterable[str], tokenizer: Tokenizer, max_length: int
) -> Iterator[list[Example]]:
    """Yield each document's windows, as `encode_documents` cuts them."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; use a positive number")
    end = tokenizer.end_of_text_id
    for block in blocks(documents, lambda text: len(text) + 1, BLOCK, BLOCK):
        for document in tokenizer.encode_batch(block):
            ids = [end, *document, end]
            windows = [ids[at : at + max_length + 1] for at in range(0, len(ids) - 1, max_length)]
            yield [Example(w, [False] + [True] * (len(w) - 1)) for w in windows]


def _text_of(row: Row) -> str:
    text = row.value.get("text") if isinstance(row.value, dict) else None
    kind, fact, remedy = "no_text", 'no "text" string in the row', 'use {"text": "..."}'
    if isinstance(text, str):
        try:
            text.encode()
            return text
        except UnicodeEncodeError as error:
            kind, remedy = "lone_surrogate", "repair the text where it was made"
            fact = f"half a character (a lone surrogate) is at index {error.start} of the text"
    raise DataError(kind, fact, remedy, row.path, row.line, excerpt(row.text))
