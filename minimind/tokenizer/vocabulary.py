"""Read a tokenizer's files, whatever their format, and see that ChatML is in them. Knows no text.

    tokenizer.json   Hugging Face's: the vocabulary, how text is cut, the added tokens
    *.model          sentencepiece's, where there is no tokenizer.json
    beside them      tokenizer_config.json, special_tokens_map.json, added_tokens.json

Two things are taken away before text is encoded: the added tokens, so that no text can spell one,
and the space that sentencepiece puts before a document, since our texts stand in the middle of one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import cast

import sentencepiece
import tokenizers

from minimind.tokenizer.special_tokens import SPARE, merge

START = "<|im_start|>"
END = "<|im_end|>"

JSON = "tokenizer.json"
MODEL = "tokenizer.model"
CONFIG = "tokenizer_config.json"
SPECIAL = "special_tokens_map.json"
ADDED = "added_tokens.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")

HOLE = "\ufffd".encode()  # an id that spells nothing

Object = dict[str, object]  # in JSON
Step = dict[str, object]  # of a tokenizer.json's pipeline: {"type": ..., ...}


class Files:
    """A tokenizer's files, in memory: where they came from may be overwritten when saving.

    Attributes:
        contents: name -> bytes; the main file is under `JSON` or `MODEL`.
        place: the main file's path, for messages.
    """

    def __init__(self, path: Path) -> None:
        """Read a directory or a file.

        Raises:
            FileNotFoundError: there is no tokenizer.
        """
        main = path if path.is_file() else _find(path)
        others = (JSON, MODEL, CONFIG, SPECIAL, ADDED, "vocab.json", "merges.txt", *TEMPLATES)
        beside = [main.parent / name for name in others]
        self.contents = {file.name: file.read_bytes() for file in beside if file.is_file()}
        self.place = str(main)
        self._parsed: dict[str, Object] = {}
        if main.suffix == ".model":
            self.contents.pop(JSON, None)
        self.contents[MODEL if main.suffix == ".model" else JSON] = main.read_bytes()

    def __contains__(self, name: str) -> bool:
        return name in self.contents

    def read(self, name: str) -> Object:
        """The JSON object in a file, not to be changed; empty if there is no such file.

        Raises:
            ValueError: it isn't one.
        """
        if name not in self.contents:
            return {}
        if name not in self._parsed:
            path = Path(self.place).parent / name
            try:
                value = json.loads(self.contents[name])
            except (RecursionError, ValueError) as error:
                raise ValueError(f"{path}: not JSON ({error}); fetch the file again") from None
            if not isinstance(value, dict):
                raise ValueError(f"{path}: holds no JSON object; fetch the file again")
            self._parsed[name] = value
        return self._parsed[name]

    def write(self, name: str, value: Object) -> None:
        """Replace a file."""
        self.contents[name] = (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()
        self._parsed[name] = value

    def take_template(self) -> str | None:
        """Take the chat template out of all files that may hold one."""
        config = dict(self.read(CONFIG))
        template = config.pop("chat_template", None)
        if template is not None:
            self.write(CONFIG, config)
        template = self.read("chat_template.json").get("chat_template", template)
        if "chat_template.jinja" in self:
            template = self.contents["chat_template.jinja"].decode(errors="replace")
        for name in TEMPLATES:
            self.contents.pop(name, None)
        if isinstance(template, list):  # several: [{"name": "default", "template": ...}, ...]
            by_name = {entry["name"]: entry["template"] for entry in template}
            template = by_name.get("default", next(iter(by_name.values()), None))
        return template if isinstance(template, str) else None

    def named_tokens(self) -> dict[str, str]:
        """The tokens with a part to play: {"eos_token": "</s>", ...}."""
        named = {}
        for name in (SPECIAL, CONFIG):
            for role, token in self.read(name).items():
                content = token.get("content") if isinstance(token, dict) else token
                if role in ("bos_token", "eos_token", "pad_token", "unk_token") and content:
                    named[role] = str(content)
        return named

    def added_beside(self) -> dict[str, int]:
        """The added tokens that the files beside the main one list."""
        decoder = cast(dict[str, dict[str, str]], self.read(CONFIG).get("added_tokens_decoder", {}))
        listed = {token["content"]: _number(id) for id, token in decoder.items()}
        return {**cast(dict[str, int], self.read(ADDED)), **listed}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What a tokenizer's files come to, in either format.

    Attributes:
        encode: texts to ids. It looks for no control token in a text.
        spelled: the bytes of each id.
        control: every added token and its id.
        escaping: the control ids that `encode` may yield all the same, as words of the model.
        bos_id: what the base puts before a text, None if nothing.
        eos: the name of the token that ends a text, as far as the main file knows.
        unknown: the name of the control token for what can't be written, if the model has one.
        spaced: whether words are joined by spaces, so that the first has one too many.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    spelled: list[bytes]
    control: dict[str, int]
    escaping: frozenset[int]
    bos_id: int | None
    eos: str | None
    unknown: str | None
    spaced: bool = False


def read_vocabulary(files: Files) -> Vocabulary:
    """Make the files into something that encodes.

    Raises:
        ValueError: they can't be read.
    """
    return _read_json(files) if JSON in files else _read_model(files)


def add_chatml(files: Files) -> tuple[tuple[str, ...], str | None]:
    """Give a base without ChatML its two tokens: in slots it left spare, else at the end.

    The files are changed, so that what is saved loads as what was used.

    Returns:
        The tokens that were missing, and a sentence on what was done.

    Raises:
        ValueError: the files can't be read.
    """
    if JSON in files:
        names = _json_names(files)
        control = _json_control(files, names)
    else:
        pieces = _parse_model(files)
        names = _piece_names(pieces)
        control = _piece_control(files, pieces)
    missing = tuple(token for token in (START, END) if token not in control)
    if not missing:
        return (), None
    spare = sorted((n for n in control if SPARE.fullmatch(n)), key=control.__getitem__)
    if JSON in files and len(spare) >= len(missing):
        new = dict(zip(spare, missing, strict=False))
        for name in (JSON, CONFIG, SPECIAL, ADDED):
            if name in files:
                files.write(name, cast(Object, _renamed(files.read(name), new)))
        how = f"took the place of {' and '.join(new)}, which it left spare"
    else:
        new_ids = count(_size(names, control))
        ids = {token: names[token] if token in names else next(new_ids) for token in missing}
        _list_tokens(files, ids)
        how = f"came in as {' and '.join(f'id {id}' for id in ids.values())}"
    _prefix_documents_only(files)
    return missing, f"{files.place}: has no {' and '.join(missing)} of its own; {how}"


def _find(directory: Path) -> Path:
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory}: no such directory; give one with a {JSON} or a sentencepiece .model"
        )
    models = sorted(directory.glob("*.model"))
    choices = [directory / JSON, directory / MODEL, *(models if len(models) == 1 else [])]
    if found := [path for path in choices if path.is_file()]:
        return found[0]
    there = ", ".join(model.name for model in models) or f"no {JSON} and no .model"
    raise FileNotFoundError(
        f"{directory}: {there}; give a directory with a {JSON} or one sentencepiece .model"
    )


def _number(key: str) -> int:
    """The id that a JSON object has for a key; what is none is left to `merge` to refuse."""
    return int(key) if key.isdecimal() else cast(int, key)


def _size(*vocabularies: dict[str, int]) -> int:
    return 1 + max((id for names in vocabularies for id in names.values()), default=-1)


def _renamed(value: object, names: dict[str, str]) -> object:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _list_tokens(files: Files, ids: dict[str, int]) -> None:
    """Enter new control tokens in every file that lists any."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    new = {id: {"content": token, **flags, "special": True} for token, id in ids.items()}
    if JSON in files:
        added = [*_json_added(files), *({"id": id, **token} for id, token in new.items())]
        files.write(JSON, {**files.read(JSON), "added_tokens": added})
    config = files.read(CONFIG)
    if decoder := config.get("added_tokens_decoder"):
        entries = {**cast(Object, decoder), **{str(id): token for id, token in new.items()}}
        files.write(CONFIG, {**config, "added_tokens_decoder": entries})
    if ADDED in files or JSON not in files:
        files.write(ADDED, {**files.read(ADDED), **ids})


def _prefix_documents_only(files: Files) -> None:
    """Let only a document's first word get sentencepiece's space, not each text after a token.

    Otherwise other tools, which read a whole rendered conversation, would put one after each
    `<|im_start|>`.
    """
    config = files.read(CONFIG)
    if config.get("legacy"):  # transformers' name for a space after each token
        files.write(CONFIG, {**config, "legacy": False})
    if JSON not in files:
        return
    data = dict(files.read(JSON))
    normalizer = cast(Step | None, data.get("normalizer"))
    cutter = _unprefixed(cast(Step | None, data.get("pre_tokenizer")), "first")
    if cutter is None and any(step["type"] == "Prepend" for step in _steps(normalizer)):
        cutter = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}
        cutter["split"] = False
    files.write(JSON, {**data, "normalizer": _unprefixed(normalizer), "pre_tokenizer": cutter})


# tokenizer.json


def _json_names(files: Files) -> dict[str, int]:
    model = files.read(JSON).get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict):
        return cast(dict[str, int], vocab)
    if isinstance(vocab, list):  # Unigram's: [["piece", score], ...]
        return {entry[0]: id for id, entry in enumerate(vocab)}
    raise ValueError(f"{files.place}: has no model with a vocabulary; give a file of tokenizers")


def _json_added(files: Files) -> list[Object]:
    return cast(list[Object], files.read(JSON).get("added_tokens") or [])


def _json_control(files: Files, names: dict[str, int]) -> dict[str, int]:
    added = {cast(str, token["content"]): cast(int, token["id"]) for token in _json_added(files)}
    return merge(files.place, names, added, files.added_beside())


def _read_json(files: Files) -> Vocabulary:
    """Build a tokenizer of the same vocabulary that has no added tokens and cuts nothing off."""
    data = files.read(JSON)
    names = _json_names(files)
    model = cast(Object, data["model"])
    normalizer = cast(Step | None, data.get("normalizer"))
    cutter = cast(Step | None, data.get("pre_tokenizer"))
    plain = {
        **data,
        "added_tokens": [],
        "normalizer": _unprefixed(normalizer),
        "pre_tokenizer": _unprefixed(cutter),
        "truncation": None,
        "padding": None,
        "model": {**model, "dropout": None},
    }
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(
            f"{files.place}: tokenizers can't read it ({error}); fetch the file again"
        ) from None
    probe = tokenizer.encode("a")
    bos_id = probe.ids[0] if probe.special_tokens_mask[:1] == [1] else None
    tokenizer.post_processor = None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    control = _json_control(files, names)
    control |= {token: names[token] for token in files.named_tokens().values() if token in names}
    unknown = model.get("unk_token")
    if isinstance(unk_id := model.get("unk_id"), int):
        unknown = next((name for name, id in names.items() if id == unk_id), None)

    decoder = _steps(cast(Step | None, data.get("decoder")))
    kinds = {step["type"] for step in decoder}
    spaced = False
    spell: Callable[[str], bytes]
    if "ByteLevel" in kinds | {step["type"] for step in _steps(cutter)}:
        spell = _spell_bytes
    elif kinds and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        spell = _piece_speller(decoder)
    else:
        spell, spaced = _joining_speller(tokenizer, next(iter(names), "")), True
    spelled = [HOLE] * _size(names, control)
    for name, id in names.items():
        spelled[id] = spell(name)
    for name, id in control.items():
        spelled[id] = name.encode()
    return Vocabulary(
        encode,
        spelled,
        control,
        _escaping(model, names, control),
        bos_id,
        eos=next((t for t in ("</s>", "<|end_of_text|>", "<eos>") if t in control), None),
        unknown=unknown if isinstance(unknown, str) and unknown in control else None,
        spaced=spaced,
    )


def _escaping(model: Object, names: dict[str, int], control: dict[str, int]) -> frozenset[int]:
    ids = set(control.values())
    inside = {name: id for name, id in names.items() if id in ids}
    if model.get("type") == "BPE" and not any(
        model.get(key) for key in ("ignore_merges", "byte_fallback", "continuing_subword_prefix")
    ):
        # Such a model yields single characters and what its merges make of them, nothing else.
        merges = cast(list[str | list[str]], model.get("merges", []))
        made = {m.replace(" ", "") if isinstance(m, str) else "".join(m) for m in merges}
        inside = {name: id for name, id in inside.items() if len(name) == 1 or name in made}
    return frozenset(inside.values())


def _unprefixed(step: Step | None, scheme: str = "never") -> Step | None:
    """A normalizer or pre-tokenizer that puts no space before a text that has none.

    With `scheme="first"`, only the first text of a document gets it.
    """
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        key = "normalizers" if "normalizers" in step else "pretokenizers"
        steps = [_unprefixed(inner, scheme) for inner in cast(list[Step], step[key])]
        return {**step, key: [inner for inner in steps if inner is not None]}
    if step["type"] == "Metaspace":
        kept = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**kept, "prepend_scheme": scheme}
    if step["type"] == "ByteLevel" and scheme == "never":
        return {**step, "add_prefix_space": False}
    return step


def _steps(step: Step | None) -> list[Step]:
    """A pipeline's single steps, nested sequences opened."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = next(value for value in step.values() if isinstance(value, list))
    return [single for part in inner for single in _steps(part)]


def _byte_alphabet() -> dict[int, int]:
    """GPT-2's: a printable character for each byte. Printable bytes stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {**{b: b for b in printable}, **{256 + i: byte for i, byte in enumerate(others)}}


_BYTES = _byte_alphabet()  # code point in the vocabulary -> byte
_IN_ALPHABET = frozenset(map(chr, _BYTES))


def _spell_bytes(token: str) -> bytes:
    if not _IN_ALPHABET.issuperset(token):
        return token.encode()
    return token.translate(_BYTES).encode("latin-1")


def _spell_byte(token: str) -> bytes | None:
    """Sentencepiece's byte pieces: "<0xEA>"."""
    return bytes.fromhex(token[3:5]) if re.fullmatch(r"<0x[0-9A-F]{2}>", token) else None


def _piece_speller(decoder: list[Step]) -> Callable[[str], bytes]:
    """Sentencepiece's way: "▁" for a space, bytes by their number."""
    has_bytes = any(step["type"] == "ByteFallback" for step in decoder)
    replaced = {str(s["replacement"]): " " for s in decoder if s["type"] == "Metaspace"}
    for step in decoder:
        if step["type"] == "Replace":
            replaced[cast(dict[str, str], step["pattern"])["String"]] = str(step["content"])

    def spell(token: str) -> bytes:
        if has_bytes and (byte := _spell_byte(token)):
            return byte
        for old, new in replaced.items():
            token = token.replace(old, new)
        return token.encode()

    return spell


def _joining_speller(tokenizer: tokenizers.Tokenizer, other: str) -> Callable[[str], bytes]:
    """WordPiece and the like: what a token adds after another one."""
    join = " ".join if tokenizer.decoder is None else tokenizer.decoder.decode
    return lambda token: join([other, token]).removeprefix(join([other])).encode()


# sentencepiece's .model: a protobuf message, https://github.com/google/sentencepiece

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # kinds of piece; 1 is an ordinary one

# Appended to a model: a second normalizer_spec (field 3), which protobuf merges into the first.
# Its one field is add_dummy_prefix (3), false: no space is put before a text.
_NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    kind: int = 1
    kind_at: int = 0  # where in the file its kind stands


def _piece_names(pieces: list[_Piece]) -> dict[str, int]:
    return {piece.text: id for id, piece in enumerate(pieces)}


def _piece_control(files: Files, pieces: list[_Piece]) -> dict[str, int]:
    kinds = (_UNKNOWN, _CONTROL, _USER_DEFINED)
    own = {piece.text: id for id, piece in enumerate(pieces) if piece.kind in kinds}
    return merge(files.place, _piece_names(pieces), own, files.added_beside())


def _read_model(files: Files) -> Vocabulary:
    pieces = _parse_model(files)
    patched = bytearray(files.contents[MODEL] + _NO_PREFIX)
    for piece in pieces:
        if piece.kind == _USER_DEFINED:  # found in text, which the other kind never is
            patched[piece.kind_at] = _CONTROL
    try:
        model = sentencepiece.SentencePieceProcessor(model_proto=bytes(patched))
    except RuntimeError as error:
        raise ValueError(f"{files.place}: sentencepiece can't read it ({error})") from None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return cast(list[list[int]], model.encode(texts))

    control = _piece_control(files, pieces)
    spelled = [HOLE] * max(len(pieces), _size(control))
    for id, piece in enumerate(pieces):
        byte = _spell_byte(piece.text) if piece.kind == _BYTE else None
        spelled[id] = byte or piece.text.replace("▁", " ").encode()
    for name, id in control.items():
        spelled[id] = name.encode()
    adds_bos = files.read(CONFIG).get("add_bos_token")
    bos = files.named_tokens().get("bos_token", "")
    return Vocabulary(
        encode,
        spelled,
        control,
        escaping=frozenset(control.values()) & frozenset(range(len(pieces))),
        bos_id=control.get(bos, model.bos_id()) if adds_bos else None,
        eos=pieces[model.eos_id()].text if model.eos_id() >= 0 else None,
        unknown=next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None),
    )


def _parse_model(files: Files) -> list[_Piece]:
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
        wire = tag & 7
        if wire == 0:
            at = _varint(data, start)[1]
        elif wire == 2:
            size, start = _varint(data, start)
            at = start + size
        else:
            at = start + {1: 8, 5: 4}[wire]
        if at > end:
            raise IndexError
        yield tag >> 3, start, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while data[at] >= 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
    return value | data[at] << shift, at + 1
