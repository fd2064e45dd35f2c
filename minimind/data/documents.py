"""Read plain text for pretraining and cut it into Examples. Knows no conversations.

A text file is one document; in JSONL each row's "text" is one; empty ones are left out. Every token
is trained, the first one predicted from <|endoftext|>, and <|endoftext|> is what ends the document:

    document    Once upon a time ...
    window 0    <|endoftext|> Once upon a          loss_mask 0 1 1 1
    window 1    a time ... <|endoftext|>           loss_mask 0 1 1 1
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from minimind.data.conversation import DataError, excerpt
from minimind.data.masking import Example
from minimind.tokenizer import Tokenizer

END_OF_TEXT = "<|endoftext|>"


def read_documents(path: Path) -> Iterator[str]:
    """Yield a file's documents.

    Raises:
        DataError: a JSONL row without a "text" string, or bytes that aren't UTF-8.
    """
    try:
        if path.suffix != ".jsonl":
            yield path.read_text(encoding="utf-8-sig")
            return
        with path.open(encoding="utf-8-sig") as file:
            for line, text in enumerate(file, 1):
                if text.strip():
                    yield _text_of(text, str(path), line)
    except UnicodeDecodeError as error:
        raise DataError(
            "not_utf8", f"not UTF-8 text ({error.reason})", "convert it to UTF-8", str(path)
        ) from error


def encode_documents(
    documents: Iterable[str], tokenizer: Tokenizer, max_length: int
) -> Iterator[Example]:
    """Cut documents into windows of at most `max_length` inputs; each token is trained once.

    Raises:
        ValueError: `max_length` isn't positive.
    """
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; use a positive number")
    end = tokenizer.encode_control(END_OF_TEXT)
    for document in filter(None, documents):
        ids = [end, *tokenizer.encode(document), end]
        for start in range(0, len(ids) - 1, max_length):
            window = ids[start : start + max_length + 1]
            yield Example(window, [False] + [True] * (len(window) - 1))


def _text_of(line: str, path: str, number: int) -> str:
    try:
        row = json.loads(line)
        text = row.get("text") if isinstance(row, dict) else None
        if isinstance(text, str):
            text.encode()
            return text
    except (ValueError, RecursionError) as error:  # lone surrogates, too
        raise DataError(
            "bad_json", f"can't be read ({error})", "mend the row", path, number, excerpt(line)
        ) from error
    raise DataError(
        "no_text", 'no "text" string in the row', 'use {"text": "..."}', path, number, excerpt(line)
    )
