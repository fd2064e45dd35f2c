"""Turn sentencepiece's `.model` into a tokenizer.json, with which training and servers agree.

A `.model` is a protobuf message: https://github.com/google/sentencepiece. BPE's merges are all
pairs of pieces that join to a piece, the best score first.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from minimind.tokenizer.files import CONFIG, JSON, MODEL, Object, TokenizerFiles

_ORDINARY, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # kinds of piece
_UNIGRAM, _BPE = 1, 2
_NEVER = -1000.0  # the score of a piece that no text may become


class _Piece(NamedTuple):
    text: str
    score: float
    kind: int


def convert_model(files: TokenizerFiles) -> None:
    """Write the same vocabulary as a tokenizer.json, in memory.

    Nothing is put before a text. User-defined pieces are added tokens: no text may become one.

    Raises:
        ValueError: it isn't a model of BPE or Unigram.
    """
    try:
        pieces, trainer, normalizer = _parse(files.contents[MODEL])
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, struct.error):
        pieces = []
    vocab = {piece.text: id for id, piece in enumerate(pieces)}
    unknown = next((id for id, piece in enumerate(pieces) if piece.kind == _UNKNOWN), None)
    if unknown is None or len(vocab) < len(pieces):
        raise ValueError(
            f"{files.place}: not a sentencepiece model; give one, or a directory with a {JSON}"
        )
    algorithm = trainer.get(3, _UNIGRAM)
    if algorithm not in (_UNIGRAM, _BPE) or trainer.get(24) or normalizer.get(5) == 0:
        raise ValueError(
            f"{files.place}: splits text into words or characters, or marks spaces in another way; "
            f"convert it to a {JSON} with the tool that it comes from"
        )
    has_bytes = any(piece.kind == _BYTE for piece in pieces)
    model: Object = {"type": "Unigram", "unk_id": unknown, "byte_fallback": has_bytes}
    if algorithm == _BPE:
        model = {"type": "BPE", "unk_token": pieces[unknown].text, "fuse_unk": True}
        model |= {"byte_fallback": has_bytes, "vocab": vocab, "merges": _merges(pieces)}
    else:
        model["vocab"] = [[p.text, p.score if p.kind == _ORDINARY else _NEVER] for p in pieces]
    added = [
        {
            "id": id,
            "content": piece.text,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": piece.kind != _USER_DEFINED,
        }
        for id, piece in enumerate(pieces)
        if piece.kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    control = {token["id"]: token["content"] for token in added}
    named = files.named_tokens()
    roles = {"bos_token": trainer.get(41, 1), "eos_token": trainer.get(42, 2)}
    own = {role: control[id] for role, id in roles.items() if id in control and role not in named}
    files.write(CONFIG, {**files.read(CONFIG), **own})
    data = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(normalizer)},
        "decoder": {
            "type": "Sequence",
            "decoders": [_replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
        "model": model,
    }
    files.write(JSON, data)


def _merges(pieces: Sequence[_Piece]) -> list[tuple[str, str]]:
    """All pairs that join to a piece, by the piece's score."""
    scores = {piece.text: piece.score for piece in pieces if piece.kind == _ORDINARY}
    pairs = [
        (-score, text[:at], text[at:])
        for text, score in scores.items()
        for at in range(1, len(text))
        if text[:at] in scores and text[at:] in scores
    ]
    return [(left, right) for _, left, right in sorted(pairs)]


def _normalizers(spec: Mapping[int, Any]) -> list[Object]:
    steps: list[Object] = []
    if charsmap := spec.get(2):
        encoded = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if spec.get(4, 1):  # removes extra spaces
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return [*steps, _replace(" ", "▁")]


def _replace(old: str, new: str) -> Object:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _parse(data: bytes) -> tuple[list[_Piece], dict[int, Any], dict[int, Any]]:
    """The pieces, the trainer's settings and the normalizer's, by number of field."""
    pieces: list[_Piece] = []
    settings: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for field, value in _fields(data):
        if field == 1:
            piece = dict(_fields(value))
            (score,) = struct.unpack("<f", piece.get(2, bytes(4)))
            pieces.append(_Piece(piece[1].decode(), score, piece.get(3, _ORDINARY)))
        elif field in settings:
            settings[field].update(_fields(value))
    return pieces, settings[2], settings[3]


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Walk a protobuf message: yield the number of a field and its value, an int or bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        wire_type = tag & 7
        if wire_type == 0:
            value, at = _varint(data, at)
            yield tag >> 3, value
            continue
        size = {1: 8, 5: 4}.get(wire_type)
        if size is None:
            if wire_type != 2:
                raise ValueError
            size, at = _varint(data, at)
        if at + size > len(data):
            raise IndexError
        yield tag >> 3, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
