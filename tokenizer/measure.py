"""Measure tokenizers: bytes of text per token, on text that `train.py` held back. Trains nothing.

    python tokenizer/measure.py CORPUS/* --tokenizers minimind/base /path/to/SmolLM2 other.model

Prints a table, a row for each tokenizer, and the same as a line of JSON. More bytes per token means
that less is spent on the same text.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from train import is_korean, join_lines, split_corpus

from minimind.tokenizer import Tokenizer


def bytes_per_token(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    """The texts' length in UTF-8 bytes over their length in tokens."""
    return sum(len(text.encode()) for text in texts) / sum(map(len, tokenizer.encode_batch(texts)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description="Measure tokenizers on held-back text.")
    parser.add_argument("files", nargs="+", type=Path, help="the files given to train.py")
    parser.add_argument("--tokenizers", nargs="+", type=Path, required=True)
    options = parser.parse_args(arguments)
    _, held = split_corpus(options.files)
    texts = {
        "Korean": join_lines([passage for passage in held if is_korean(passage)]),
        "English": join_lines([passage for passage in held if not is_korean(passage)]),
    }
    texts = {name: text for name, text in texts.items() if text}
    rows = []
    print("| tokenizer | tokens | " + " | ".join(f"{name}, bytes/token" for name in texts) + " |")
    print("|--|--|" + "--|" * len(texts))
    for path in options.tokenizers:
        tokenizer = Tokenizer.load(path)
        figures = {name: round(bytes_per_token(tokenizer, text), 2) for name, text in texts.items()}
        rows.append({"tokenizer": str(path), "tokens": tokenizer.vocab_size, **figures})
        print("| " + " | ".join(str(cell) for cell in rows[-1].values()) + " |")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
