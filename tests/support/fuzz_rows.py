"""Fuzz reader, renderer and mask, guided by coverage; tests/support/oracle.py says what is right.

    pip install -e '.[fuzz]'
    python -m tests.support.fuzz_rows CORPUS tests/data/bad_rows -max_len=512 -runs=10000000

An input is a file's bytes as they are. After the byte 0xF8, which no text has, they are choices
in a grammar of rows instead, so that mutations reach what lies behind JSON's syntax.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path

SPELLED = 0xF8
ROLES = ("system", "user", "assistant", "tool", "human", "GPT", "model", "developer")
KEYS = (
    *("messages", "conversations", "role", "from", "content", "value", "weight", "instruction"),
    *("output", "input", "history", "system", "prompt", "completion", "type", "text", "tools"),
    *("response", "question", "answer", "context", "system_prompt", "train", "loss", "thinking"),
    *("label", "images", "mood"),
)
TEXTS = (
    *("Hi", "안녕", "", " ", "\n", "<|im_end|>", "<|im_start|>assistant\n", "<|im_end|>\n", "</s>"),
    *("<think>", "\0", "\ud800", "\ufeff", "👨‍👩‍👧", "\u2028", "<|", "im_end|>"),
    *("text", "user", "\r\n"),
)
NUMBERS = (0, 1, -1, 0.5, 2, 0.0, -0.0, 1e9, 1e-9, 1e999, 10**400, True, False, None, None, None)


def spell_file(choices: Iterator[int]) -> bytes:
    """Write rows as the choices say: on lines or in an array, plain or zipped, cut short or not."""
    style = next(choices, 0)
    rows = [_row(choices) for _ in range(1 + style % 4)]
    texts = [json.dumps(row, ensure_ascii=style & 4 > 0) for row in rows]
    text = "[" + ",".join(texts) + "]" if style & 8 else "\n".join(texts)
    data = text.encode(errors="surrogatepass")
    if style < 224:
        return data
    return gzip.compress(data, 1, mtime=0)[: -(next(choices, 0) // 4) or None]


def _row(choices: Iterator[int]) -> object:
    kind = next(choices, 0) % 8
    if kind == 0:
        return {"messages": _turns(choices)}
    if kind == 1:
        return {"conversations": _turns(choices), "system": _text(choices)}
    if kind == 2:
        pairs = [[_text(choices), _text(choices)] for _ in range(next(choices, 0) % 3)]
        row = {"instruction": _text(choices), "input": _text(choices), "history": pairs}
        return {**row, "output": _text(choices)}
    if kind == 3:
        return {"prompt": _either(choices), "completion": _either(choices)}
    if kind == 4:
        return _turns(choices)
    if kind == 5:
        key = KEYS[next(choices, 0) % len(KEYS)]
        value = _value(choices, depth=1)
        return {"question": _either(choices), "answer": _either(choices), key: value}
    if kind == 6:
        row = {"instruction": _text(choices), "context": _text(choices)}
        return {**row, "response": _text(choices), "system_prompt": _text(choices)}
    return _value(choices, depth=4)


def _turns(choices: Iterator[int]) -> list[object]:
    return [_turn(choices) for _ in range(next(choices, 0) % 6)]


def _turn(choices: Iterator[int]) -> object:
    how = next(choices, 0)
    if how >= 248:  # seldom: whatever there is
        return _value(choices, depth=3)
    role, content = ("from", "value") if how & 1 else ("role", "content")
    content_value = [{"type": "text", "text": _text(choices)}] if how & 6 == 6 else _text(choices)
    more = {}
    if how & 24 == 24:
        key = ("weight", "train", "mood", "tools")[next(choices, 0) % 4]
        more[key] = NUMBERS[next(choices, 0) % len(NUMBERS)]
    return {role: ROLES[how // 32 % len(ROLES)], content: content_value, **more}


def _either(choices: Iterator[int]) -> object:
    return _turns(choices) if next(choices, 0) & 1 else _text(choices)


def _text(choices: Iterator[int]) -> str:
    size = next(choices, 0)
    if size < 192:
        return TEXTS[size % len(TEXTS)] + TEXTS[size // len(TEXTS)]
    return bytes(next(choices, 0x61) for _ in range(size % 8)).decode(errors="replace")


def _value(choices: Iterator[int], depth: int) -> object:
    kind = next(choices, 0)
    if depth and kind % 4 == 0:
        return [_value(choices, depth - 1) for _ in range(kind // 4 % 4)]
    if depth and kind % 4 == 1:
        keys = [KEYS[next(choices, 0) % len(KEYS)] for _ in range(kind // 4 % 5)]
        return {key: _value(choices, depth - 1) for key in keys}
    return _text(choices) if kind % 4 == 2 else NUMBERS[kind // 4 % len(NUMBERS)]


def main() -> None:
    """Run until -runs inputs were tried, or one fails: it is written to a file and named."""
    import atheris  # the suite needs the grammar only

    with atheris.instrument_imports(include=["minimind"]):
        from minimind.model.pretrained import load_tokenizer
        from tests.support.oracle import check_file

    corpus = Path(sys.argv[1])
    corpus.mkdir(parents=True, exist_ok=True)
    (corpus / "spelled").write_bytes(bytes([SPELLED, *range(256)]))
    tokenizer = load_tokenizer()

    def check(data: bytes) -> None:
        spelled = data[:1] == bytes([SPELLED])
        check_file(spell_file(iter(data[1:])) if spelled else data, tokenizer)

    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
