"""What a tokenizer's main file says, in either format."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """What encodes and decodes."""

    # Looks for no control token in a text, but may yield one that is also a word of the model.
    encode: Callable[[Sequence[str]], list[list[int]]]
    to_bytes: Callable[[str], bytes]  # of a word
    words: Mapping[str, int]  # the model's own tokens
    control: Mapping[str, int]  # the control tokens
    bos_id: int | None  # what the base puts before a text
    unknown: str | None  # the control token for what can't be written
    eos: str | None  # what ends a text, as far as the main file tells

    @property
    def size(self) -> int:
        """1 + the largest id."""
        return 1 + max([*self.words.values(), *self.control.values()], default=-1)


def piece_to_bytes(replaced: Mapping[str, str], has_bytes: bool) -> Callable[[str], bytes]:
    """What turns sentencepiece's pieces into bytes: "▁is" -> b" is", and "<0xEA>" -> one byte."""

    def to_bytes(piece: str) -> bytes:
        if has_bytes and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        for old, new in replaced.items():
            piece = piece.replace(old, new)
        return piece.encode()

    return to_bytes
