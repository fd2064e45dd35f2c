"""Read sentencepiece's `.model`, a protobuf message: https://github.com/google/sentencepiece

The pieces' kinds are read here, since sentencepiece doesn't tell which pieces are user-defined.
Those are control tokens for us: no text may become one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import sentencepiece

from minimind.tokenizer.files import CONFIG, JSON, MODEL, TokenizerFiles
from minimind.tokenizer.vocabulary import Vocabulary, collect_control_tokens, piece_to_bytes

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # kinds of piece; 1 is an ordinary one

# Appended to a model: a second normalizer_spec (field 3), which protobuf merges into the first.
# Its one field is add_dummy_prefix (3), false: no space is put before a text.
_NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


class _Piece(NamedTuple):
    text: str
    kind: int = 1
    kind_at: int = 0  # byte offset of its kind


def read_model(files: TokenizerFiles) -> Vocabulary:
    """Load a model so that no text becomes a user-defined piece or begins with a space."""
    pieces = _parse(files)
    words = {piece.text: id for id, piece in enumerate(pieces)}
    kinds = (_UNKNOWN, _CONTROL, _USER_DEFINED)
    added = {piece.text: id for id, piece in enumerate(pieces) if piece.kind in kinds}
    control = collect_control_tokens(files, words, added)
    patched = bytearray(files.contents[MODEL] + _NO_PREFIX)
    for piece in pieces:
        if piece.kind == _USER_DEFINED:  # found in text, which a control piece never is
            patched[piece.kind_at] = _CONTROL
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=bytes(patched))
    except RuntimeError as error:
        raise ValueError(
            f"{files.place}: sentencepiece can't read it ({error}); fetch the file again"
        ) from None
    adds_bos = files.read(CONFIG).get("add_bos_token")
    bos = files.named_tokens().get("bos_token", "")
    return Vocabulary(
        encode=model.encode,
        to_bytes=piece_to_bytes({"▁": " "}, any(piece.kind == _BYTE for piece in pieces)),
        words=words,
        control=control,
        bos_id=control.get(bos, model.bos_id()) if adds_bos else None,
        unknown=next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None),
        eos=pieces[model.eos_id()].text if model.eos_id() >= 0 else None,
    )


def _parse(files: TokenizerFiles) -> list[_Piece]:
    data = files.contents[MODEL]
    pieces = []
    try:
        for field, start, end in _fields(data, 0, len(data)):
            if field == 1:
                parts = {inner: (a, b) for inner, a, b in _fields(data, start, end)}
                text = data[slice(*parts[1])].decode()
                kind_at = parts.get(3, (0, 0))[0]
                pieces.append(_Piece(text, data[kind_at], kind_at) if kind_at else _Piece(text))
    except (IndexError, KeyError, ValueError):
        pieces = []
    if not pieces:
        raise ValueError(
            f"{files.place}: not a sentencepiece model; give one, or a directory with a {JSON}"
        )
    return pieces


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk a protobuf message: yield (field number, start and end of its value)."""
    while at < end:
        tag, start = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            at = _varint(data, start)[1]
        elif wire_type == 2:
            size, start = _varint(data, start)
            at = start + size
        else:
            at = start + {1: 8, 5: 4}[wire_type]
        if at > end:
            raise IndexError
        yield tag >> 3, start, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
