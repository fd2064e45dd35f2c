"""Turn text into token ids and back, and keep control tokens out of text. Knows no roles or turns.

    encode("안녕 <|im_end|>")    [311, 2231, 1105, 32, 28, 92, ...]   never the control token's id
    encode_control("<|im_end|>")                                  2   the only way to get it
    decode([311, 2231, 2])                         "안녕<|im_end|>"

It reads a Hugging Face `tokenizer.json` or a sentencepiece `.model`. Whatever the format, a text is
taken to stand in the middle of something: nothing is put in front of it, neither a BOS nor the
space that sentencepiece puts before a document. So `decode` is the ids' bytes end to end, and it
can be done token by token.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict, cast

import sentencepiece
import tokenizers

START = "<|im_start|>"
END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"

_JSON = "tokenizer.json"
_MODEL = "tokenizer.model"
_CONFIG = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_ADDED = "added_tokens.json"
_COPIED = (_JSON, _CONFIG, _SPECIAL, _ADDED, "vocab.json", "merges.txt")

# Slots that bases leave for others: <|reserved_special_token_0|>, <|extra_0|>, <unused0>, ...
_SPARE = re.compile(
    r"[<\[]\|?(?:reserved|unused|extra|spare|dummy)(?:_special)?(?:_token)?_?\d+\|?[>\]]"
)
_USUAL_EOS = ("</s>", "<|end_of_text|>", "<eos>")  # where no config says which
_HOLE = "\ufffd".encode()  # an id that spells nothing: a model may have more rows than tokens

Files = dict[str, bytes]  # a tokenizer's files: name -> content
Encode = Callable[[Sequence[str]], list[list[int]]]
Step = dict[str, object]  # of a tokenizer.json's pipeline: {"type": ..., ...}


class Tokenizer:
    """A base's tokenizer, with ChatML's tokens and without surprises.

    Attributes:
        vocab_size: 1 + the largest id.
        bos_id: what the base's own tokenizer puts first, None if it puts nothing.
        start_id: the id of `<|im_start|>`.
        end_id: the id of `<|im_end|>`.
        pad_id: never one of `stop_ids`: the base's own, else a token that nothing else uses.
        stop_ids: where an answer ends: `end_id`, then the base's own end of text.
        control_ids: every added token, marked special or not. `encode` never yields one of them,
            except the base's "unknown" for a character that its vocabulary can't write.
        added_chatml: the ChatML tokens that the base hadn't; they were added by this load.
        notice: what was done about them, in a sentence; None if nothing.
        had_chat_template: the base's own chat template, which `save` doesn't write.
        fingerprint: a hash over all that decides ids.
    """

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a directory with a `tokenizer.json` or `*.model`, or such a file.

        Raises:
            FileNotFoundError: it isn't there.
            ValueError: it isn't what its name says.
        """
        return cls(*_read_files(Path(path)))

    def __init__(self, files: Files, place: str) -> None:
        files, template = _without_template(files, place)
        files, self.added_chatml, self.notice = _with_chatml(files, place)
        source = _read_json(files, place) if _JSON in files else _read_model(files, place)
        named = _named_tokens(files, place)
        control = source.control
        self.had_chat_template = template
        self._files = files
        self._encode = source.encode
        self._spelled = source.spelled
        self._spaced = source.spaced
        self._control = control
        self._unknown = source.unknown
        self.control_ids = frozenset(control.values())
        self._never = self.control_ids - {control.get(self._unknown or "", -1)}
        longest_first = sorted(control, key=len, reverse=True)
        self._control_text = re.compile("|".join(map(re.escape, longest_first)))
        self.vocab_size = len(self._spelled)
        self.bos_id = source.bos_id
        self.start_id = control[START]
        self.end_id = control[END]
        eos = [END, END_OF_TEXT, named.get("eos_token", source.eos or "")]
        self.stop_ids = tuple(dict.fromkeys(control[t] for t in eos if t in control))
        self.pad_id = self._find_pad(named.get("pad_token"))
        self._eos = eos[2] or END
        decides = [sorted(control.items()), self.bos_id, self._unknown]
        digest = hashlib.sha256(json.dumps(decides).encode())
        digest.update(files.get(_JSON) or files[_MODEL])
        self.fingerprint = digest.hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encode plain text. What spells a control token becomes ordinary tokens.

        Raises:
            ValueError: the text has a lone surrogate, which no encoding can write.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encode many texts at once: the same ids, faster.

        Raises:
            ValueError: as `encode`.
        """
        texts = list(texts)
        try:
            rows = self._encode(texts)
        except (TypeError, UnicodeEncodeError):
            for text in texts:
                _check_text(text)
            raise
        unknown = self._unknown
        for index, ids in enumerate(rows):
            # The vocabulary itself holds the control tokens, and some models match whole words.
            if not self._never.isdisjoint(ids) or (
                unknown and unknown in texts[index] and not self.control_ids.isdisjoint(ids)
            ):
                rows[index] = self._encode_apart(texts[index])
        return rows

    def encode_control(self, token: str) -> int:
        """Give the id of a control token.

        Raises:
            ValueError: there is none of that name.
        """
        if token not in self._control:
            some = ", ".join(sorted(self._control, key=self._control.__getitem__)[:12])
            raise ValueError(
                f"{token!r}: not a control token of this tokenizer; it has {some}"
                f"{', ...' if len(self._control) > 12 else ''}"
            )
        return self._control[token]

    def decode(self, ids: Iterable[int], skip_control: bool = False) -> str:
        """Turn ids into text; bytes that aren't UTF-8 become U+FFFD.

        Args:
            ids: an id without a token (a model may have spare rows) becomes U+FFFD.
            skip_control: leave control tokens out instead of spelling them.

        Raises:
            ValueError: an id is negative.
        """
        text = b"".join(self._bytes(id, skip_control) for id in ids).decode("utf-8", "replace")
        return text[1:] if self._spaced and text.startswith(" ") else text

    def stream_decoder(self, skip_control: bool = False) -> StreamDecoder:
        """Start to decode token by token."""
        return StreamDecoder(self, skip_control)

    def save(self, directory: str | Path) -> None:
        """Write the tokenizer's files: the base's own, byte for byte, unless ChatML was added.

        A chat template isn't among them.
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        files = {_CONFIG: _dump(self._default_config()), **self._files}
        for name, content in files.items():
            (directory / name).write_bytes(content)

    def _default_config(self) -> dict[str, object]:
        """What transformers must be told of a tokenizer that came without a config."""
        names = {id: name for name, id in self._control.items()}
        # Any other class would rebuild the pre-tokenizer its own way, and the ids would differ.
        kind = "PreTrainedTokenizerFast" if _JSON in self._files else "LlamaTokenizer"
        config: dict[str, object] = {
            "tokenizer_class": kind,
            "eos_token": self._eos,
            "clean_up_tokenization_spaces": False,
        }
        if self.pad_id in names:
            config["pad_token"] = names[self.pad_id]
        if self.bos_id is not None:
            config["bos_token"] = names[self.bos_id]
        return config

    def _bytes(self, id: int, skip_control: bool) -> bytes:
        if id < 0:
            raise ValueError(f"{id}: not a token id; remove labels' -100 before decoding")
        if skip_control and id in self.control_ids:
            return b""
        return self._spelled[id] if id < len(self._spelled) else _HOLE

    def _encode_apart(self, text: str) -> list[int]:
        """Encode a text that came out with a control token: cut where it is spelled, and again.

        "a<|im_end|>b"  ->  "a<", "|im_end|>b"
        """
        if len(text) == 1:
            return self._encode_bytes(text)
        cuts = [m.start() + 1 for m in self._control_text.finditer(text) if len(m[0]) > 1]
        # Nothing spelled: the base's normalizer made it of something else. Halves, then.
        cuts = cuts or [len(text) // 2]
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]
        return [id for ids in self.encode_batch(parts) for id in ids]

    def _encode_bytes(self, character: str) -> list[int]:
        """Encode a character that is itself a control token by its bytes."""
        by_bytes = {s: id for id, s in enumerate(self._spelled) if id not in self.control_ids}
        encoded = [bytes([byte]) for byte in character.encode()]
        if not by_bytes.keys() >= set(encoded):
            raise ValueError(
                f"{character!r}: only a control token writes it in this vocabulary; "
                "remove it from the text"
            )
        return [by_bytes[byte] for byte in encoded]

    def _find_pad(self, own: str | None) -> int:
        """The base's own padding token, unless an answer could stop at it."""
        taken = {*self.stop_ids, self.start_id}
        by_id = sorted(self._control, key=self._control.__getitem__)
        spare = [name for name in by_id if _SPARE.fullmatch(name)]
        padding = [name for name in by_id if "pad" in name.lower()]
        for name in [own or "", PAD, *padding, *spare]:
            if name in self._control and self._control[name] not in taken:
                return self._control[name]
        # Nothing is meant for it. What is padded is never seen, so that any id serves.
        taken |= {self.bos_id or 0, self._control.get(self._unknown or "", 0)}
        free = [id for id in sorted(self.control_ids, reverse=True) if id not in taken]
        return free[0] if free else next(i for i in range(self.vocab_size) if i not in taken)


class StreamDecoder:
    """Decodes ids one at a time; a character appears once all of its bytes have.

        push(311) "안"   push(4021) ""   push(145) "녕"   finish() ""

    The pieces joined are `Tokenizer.decode` of all the ids. After `finish` it may be used again.
    """

    def __init__(self, tokenizer: Tokenizer, skip_control: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_control = skip_control
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._first = True

    def push(self, id: int) -> str:
        """Take the next id and return the text that is now certain.

        Raises:
            ValueError: the id is negative.
        """
        return self._emit(self._utf8.decode(self._tokenizer._bytes(id, self._skip_control)))

    def finish(self) -> str:
        """Return what is left: U+FFFD if a character was cut short."""
        rest = self._emit(self._utf8.decode(b"", final=True))
        self._first = True
        return rest

    def _emit(self, text: str) -> str:
        if self._first and text:
            self._first = False
            if self._tokenizer._spaced:
                return text.removeprefix(" ")
        return text


# Files


def _read_files(path: Path) -> tuple[Files, str]:
    """All of a tokenizer's files, in memory: where they came from may be overwritten by `save`."""
    directory, main = path, _JSON
    if path.is_file():
        directory, main = path.parent, path.name
    elif not path.is_dir():
        raise FileNotFoundError(
            f"{path}: no such directory; give one with a {_JSON} or a sentencepiece .model"
        )
    elif not (path / _JSON).is_file():
        models = sorted(path.glob("*.model"))
        if (path / _MODEL) in models:
            models = [path / _MODEL]
        if len(models) != 1:
            found = ", ".join(model.name for model in models) or f"no {_JSON} and no *.model"
            raise FileNotFoundError(
                f"{path}: {found}; give a directory with a {_JSON} or one sentencepiece .model"
            )
        main = models[0].name
    files = {
        name: (directory / name).read_bytes() for name in _COPIED if (directory / name).is_file()
    }
    if main.endswith(".model"):
        files.pop(_JSON, None)
        files[_MODEL] = (directory / main).read_bytes()
    else:
        files[_JSON] = (directory / main).read_bytes()
        if (directory / _MODEL).is_file():
            files[_MODEL] = (directory / _MODEL).read_bytes()
    for name in ("chat_template.jinja", "chat_template.json"):
        if (directory / name).is_file():
            files[name] = (directory / name).read_bytes()
    return files, str(directory / main)


def _object(files: Files, name: str, place: str) -> dict[str, object]:
    """The JSON object in a file; empty if there is no such file."""
    if name not in files:
        return {}
    try:
        value = json.loads(files[name])
    except ValueError as error:
        raise ValueError(
            f"{Path(place).parent / name}: not JSON ({error}); fetch the file again"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(f"{Path(place).parent / name}: holds no JSON object; fetch the file again")
    return cast(dict[str, object], value)


def _dump(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def _without_template(files: Files, place: str) -> tuple[Files, str | None]:
    """Take the chat template out of the files that may hold one."""
    files = dict(files)
    config = _object(files, _CONFIG, place)
    template = config.pop("chat_template", None)
    if template is not None:
        files[_CONFIG] = _dump(config)
    processor = _object(files, "chat_template.json", place)
    template = processor.get("chat_template", template)
    if (jinja := files.get("chat_template.jinja")) is not None:
        template = jinja.decode(errors="replace")
    files.pop("chat_template.json", None)
    files.pop("chat_template.jinja", None)
    if isinstance(template, list):  # several, by name
        by_name = {entry.get("name"): entry.get("template") for entry in template}
        template = by_name.get("default", next(iter(by_name.values()), None))
    return files, template if isinstance(template, str) else None


def _named_tokens(files: Files, place: str) -> dict[str, str]:
    """The tokens with a part to play: {"eos_token": "</s>", ...}."""
    named = {}
    for name in (_SPECIAL, _CONFIG):
        for role, token in _object(files, name, place).items():
            content = token.get("content") if isinstance(token, dict) else token
            if role in ("bos_token", "eos_token", "pad_token", "unk_token") and content:
                named[role] = str(content)
    return named


def _added_beside(files: Files, place: str) -> dict[str, int]:
    """The added tokens that the files beside the main one list."""
    listed = _object(files, _CONFIG, place).get("added_tokens_decoder") or {}
    decoder = cast(dict[str, dict[str, str]], listed)
    added = cast(dict[str, int], _object(files, _ADDED, place))
    return {**added, **{token["content"]: int(id) for id, token in decoder.items()}}


# ChatML


def _with_chatml(files: Files, place: str) -> tuple[Files, tuple[str, ...], str | None]:
    """Give a base without ChatML its two tokens: in slots it left spare, else at the end.

    The files are changed, so that what is saved loads as what was used.
    """
    if _JSON in files:
        data = _parse_json(files, place)
        names = _json_names(data)
        control = {token["content"]: token["id"] for token in data["added_tokens"]}
    else:
        pieces = _parse_model(files[_MODEL], place)
        names = {piece.text: id for id, piece in enumerate(pieces)}
        control = {p.text: id for id, p in enumerate(pieces) if p.kind in _CONTROL_KINDS}
    control |= _added_beside(files, place)
    missing = [token for token in (START, END) if token not in control]
    if not missing:
        return files, (), None
    files = dict(files)
    spare = sorted((n for n in control if _SPARE.fullmatch(n)), key=control.__getitem__)
    if _JSON in files and len(spare) >= len(missing):
        new = dict(zip(spare, missing, strict=False))
        for name in (_JSON, _CONFIG, _SPECIAL, _ADDED):
            if name in files:
                files[name] = _dump(_renamed(_object(files, name, place), new))
        how = f"they take the place of its spare {' and '.join(new)}"
    else:
        end = 1 + max((*names.values(), *control.values()), default=-1)
        ids = {token: names.get(token, end + i) for i, token in enumerate(missing)}
        _add_tokens(files, ids, place)
        how = f"they were added as ids {' and '.join(map(str, ids.values()))}"
    _prefix_documents_only(files, place)
    return files, tuple(missing), f"the base has no {' and '.join(missing)}: {how}"


def _renamed(value: object, names: dict[str, str]) -> object:
    if isinstance(value, dict):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _add_tokens(files: Files, ids: dict[str, int], place: str) -> None:
    """List new control tokens in every file that lists any."""
    if _JSON in files:
        data = _parse_json(files, place)
        data["added_tokens"] += [_added_token(id, token) for token, id in ids.items()]
        files[_JSON] = _dump(data)
    config = _object(files, _CONFIG, place)
    decoder = config.get("added_tokens_decoder")
    if isinstance(decoder, dict):
        for token, id in ids.items():
            entry = dict(_added_token(id, token))
            decoder[str(entry.pop("id"))] = entry
        files[_CONFIG] = _dump(config)
    if _ADDED in files or _JSON not in files:
        files[_ADDED] = _dump({**_object(files, _ADDED, place), **ids})


# tokenizer.json


class _AddedToken(TypedDict):
    id: int
    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


def _added_token(id: int, token: str) -> _AddedToken:
    return {
        "id": id,
        "content": token,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }


class _TokenizerJson(TypedDict):
    added_tokens: list[_AddedToken]
    normalizer: Step | None
    pre_tokenizer: Step | None
    decoder: Step | None
    model: Step


@dataclass(frozen=True, slots=True)
class _Source:
    """What either format gives."""

    encode: Encode
    spelled: list[bytes]  # by id
    control: dict[str, int]
    bos_id: int | None
    eos: str | None
    unknown: str | None
    spaced: bool = False  # words are joined by spaces, so that the first has one too many


def _parse_json(files: Files, place: str) -> _TokenizerJson:
    data = _object(files, _JSON, place)
    model = data.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict | list):
        raise ValueError(
            f"{place}: has no model with a vocabulary; give a tokenizer.json of tokenizers"
        )
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        data.setdefault(part, None)
    data["added_tokens"] = data.get("added_tokens") or []
    return cast(_TokenizerJson, data)


def _json_names(data: _TokenizerJson) -> dict[str, int]:
    vocab = data["model"]["vocab"]
    if isinstance(vocab, dict):
        return cast(dict[str, int], vocab)
    # Unigram's: [["piece", score], ...]
    return {entry[0]: id for id, entry in enumerate(cast(list[tuple[str, float]], vocab))}


def _read_json(files: Files, place: str) -> _Source:
    """Build the plain tokenizer: the same vocabulary, but it knows of no added token."""
    data = _parse_json(files, place)
    names = _json_names(data)
    control = {token["content"]: token["id"] for token in data["added_tokens"]}
    control |= _added_beside(files, place)
    named = _named_tokens(files, place)
    control |= {token: names[token] for token in named.values() if token in names}
    unknown = data["model"].get("unk_token")
    if isinstance(unk_id := data["model"].get("unk_id"), int):
        unknown = next((name for name, id in names.items() if id == unk_id), None)
    plain = {
        **data,
        "added_tokens": [],
        "normalizer": _unprefixed(data["normalizer"]),
        "pre_tokenizer": _unprefixed(data["pre_tokenizer"]),
        "truncation": None,
        "padding": None,
        "model": {**data["model"], "dropout": None},
    }
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(f"{place}: tokenizers can't read it ({error}); fetch it again") from None
    probe = tokenizer.encode("a")
    bos_id = probe.ids[0] if probe.special_tokens_mask[:1] == [1] else None
    tokenizer.post_processor = None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    spell, spaced = _speller(data, tokenizer, names)
    spelled = [_HOLE] * (1 + max((*names.values(), *control.values()), default=-1))
    for name, id in names.items():
        spelled[id] = spell(name)
    for name, id in control.items():
        spelled[id] = name.encode()
    return _Source(
        encode=encode,
        spelled=spelled,
        control=control,
        bos_id=bos_id,
        eos=next((token for token in _USUAL_EOS if token in control), None),
        unknown=unknown if isinstance(unknown, str) and unknown in control else None,
        spaced=spaced,
    )


def _unprefixed(step: Step | None, scheme: str = "never") -> Step | None:
    """A normalizer or pre-tokenizer that puts no space before a text that has none.

    With `scheme="first"`, none but the first of a document gets it.
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


def _prefix_documents_only(files: Files, place: str) -> None:
    """Let only a document's first word get sentencepiece's space, not each text after a token.

    Otherwise other tools, which read a whole rendered conversation, would put one after each
    `<|im_start|>`.
    """
    config = _object(files, _CONFIG, place)
    if config.get("legacy"):  # transformers' name for a space after each token
        files[_CONFIG] = _dump({**config, "legacy": False})
    if _JSON not in files:
        return
    data = _parse_json(files, place)
    kinds = {step["type"] for step in _steps(data["normalizer"])}
    data["normalizer"] = _unprefixed(data["normalizer"], "first")
    data["pre_tokenizer"] = _unprefixed(data["pre_tokenizer"], "first")
    if "Prepend" in kinds and data["pre_tokenizer"] is None:
        data["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    files[_JSON] = _dump(data)


def _steps(step: Step | None) -> list[Step]:
    """A pipeline's single steps, nested sequences opened."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = next(value for value in step.values() if isinstance(value, list))
    return [single for part in inner for single in _steps(part)]


def _speller(
    data: _TokenizerJson, tokenizer: tokenizers.Tokenizer, names: dict[str, int]
) -> tuple[Callable[[str], bytes], bool]:
    """How a token of the vocabulary is spelled, and whether words are joined by spaces."""
    decoder = _steps(data["decoder"])
    kinds = {step["type"] for step in decoder}
    if "ByteLevel" in kinds | {step["type"] for step in _steps(data["pre_tokenizer"])}:
        return _spell_bytes, False
    if decoder and kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        replaced = {str(s["replacement"]): " " for s in decoder if s["type"] == "Metaspace"}
        for step in decoder:
            if step["type"] == "Replace":
                replaced[cast(dict[str, str], step["pattern"])["String"]] = str(step["content"])
        return lambda token: _spell_piece(token, replaced, "ByteFallback" in kinds), False
    # WordPiece and the like: what a token adds after another one.
    join = tokenizer.decoder.decode if tokenizer.decoder is not None else " ".join
    other = next(iter(names))
    return lambda token: join([other, token]).removeprefix(join([other])).encode(), True


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


def _spell_piece(token: str, replaced: dict[str, str], fallback: bool) -> bytes:
    if fallback and re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    for old, new in replaced.items():
        token = token.replace(old, new)
    return token.encode()


# sentencepiece's .model: a protobuf message, https://github.com/google/sentencepiece

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # kinds of piece; 1 is an ordinary one
_CONTROL_KINDS = (_UNKNOWN, _CONTROL, _USER_DEFINED)

# Appended to a model: a second normalizer_spec (field 3), which protobuf merges into the first.
# Its one field is add_dummy_prefix (3), false: no space is put before a text.
_NO_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3, 0])


@dataclass(frozen=True, slots=True)
class _Piece:
    text: str
    kind: int
    kind_at: int  # where in the file its kind stands; 0 if it's left to the default


def _read_model(files: Files, place: str) -> _Source:
    """Load it twice: as it is, to know it; and patched, so that text yields no added token."""
    pieces = _parse_model(files[_MODEL], place)
    patched = bytearray(files[_MODEL] + _NO_PREFIX)
    for piece in pieces:
        if piece.kind == _USER_DEFINED:
            patched[piece.kind_at] = _CONTROL  # sentencepiece never finds one of these in a text
    plain = _processor(bytes(patched), place)
    control = {p.text: id for id, p in enumerate(pieces) if p.kind in _CONTROL_KINDS}
    control |= _added_beside(files, place)
    spelled = [_HOLE] * (1 + max((len(pieces) - 1, *control.values())))
    for id, piece in enumerate(pieces):
        spelled[id] = _spell_piece(piece.text, {"▁": " "}, piece.kind == _BYTE)
    for name, id in control.items():
        spelled[id] = name.encode()
    named = _named_tokens(files, place)
    bos_id = None
    if _object(files, _CONFIG, place).get("add_bos_token"):
        bos_id = control.get(named.get("bos_token", ""), plain.bos_id())

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return cast(list[list[int]], plain.encode(texts))

    return _Source(
        encode=encode,
        spelled=spelled,
        control=control,
        bos_id=bos_id,
        eos=pieces[plain.eos_id()].text if plain.eos_id() >= 0 else None,
        unknown=next((piece.text for piece in pieces if piece.kind == _UNKNOWN), None),
    )


def _processor(model: bytes, place: str) -> sentencepiece.SentencePieceProcessor:
    try:
        return sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise ValueError(f"{place}: sentencepiece can't read it ({error})") from None


def _parse_model(data: bytes, place: str) -> list[_Piece]:
    try:
        pieces = [
            _parse_piece(data, start, end)
            for field, start, end in _fields(data, 0, len(data))
            if field == 1
        ]
    except (IndexError, ValueError):
        pieces = []
    if not pieces:
        raise ValueError(
            f"{place}: not a sentencepiece model; give one, or a directory with a {_JSON}"
        )
    return pieces


def _parse_piece(data: bytes, start: int, end: int) -> _Piece:
    text, kind, kind_at = "", 1, 0
    for field, a, b in _fields(data, start, end):
        if field == 1:
            text = data[a:b].decode()
        elif field == 3:
            kind, kind_at = data[a], a
    return _Piece(text, kind, kind_at)


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Walk a protobuf message: yield (field number, start and end of its value)."""
    while at < end:
        tag, at = _varint(data, at)
        start = at
        match tag & 7:
            case 0:
                _, at = _varint(data, at)
            case 1:
                at += 8
            case 2:
                size, start = _varint(data, at)
                at = start + size
            case 5:
                at += 4
            case kind:
                raise ValueError(f"wire type {kind}")
        if at > end:
            raise ValueError("cut short")
        yield tag >> 3, start, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"text: is {type(text).__name__}; give a str")
    for at, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            raise ValueError(
                f"text: a lone surrogate (U+{ord(character):04X}) at character {at}, half of a "
                "character; repair the text where it was made"
            )
