"""Read Hugging Face's `tokenizer.json`: byte-level BPE, and sentencepiece's BPE and Unigram.

Two things are taken out of it before text is encoded: the added tokens, so that no text can become
one (but those of white space are words), and the space that sentencepiece puts before a document,
since our texts are parts of one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import tokenizers

from minimind.tokenizer.files import JSON, Object, TokenizerFiles
from minimind.tokenizer.vocabulary import Vocabulary, collect_control_tokens, piece_to_bytes


def read_json(files: TokenizerFiles) -> Vocabulary:
    """Build a tokenizer of the same vocabulary without control tokens, truncation or padding."""
    data = files.read(JSON)
    model = data.get("model")
    words = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(words, list):  # Unigram's: [["piece", score], ...]
        words = {entry[0]: id for id, entry in enumerate(words)}
    if not isinstance(model, dict) or not isinstance(words, dict):
        raise ValueError(f"{files.place}: has no model with a vocabulary; give a tokenizer.json")
    if any(step["type"] == "Strip" for step in flatten(data.get("normalizer"))):
        raise ValueError(
            f"{files.place}: its normalizer strips white space, and with it the newline after each "
            "role; use a base whose tokenizer keeps text as it is, as Llama, Qwen and SmolLM2 do"
        )
    tokens = data.get("added_tokens") or []
    added = {token["content"]: token["id"] for token in tokens}
    blank = _blank_words(tokens, words, model.get("type"), files)
    words = {**words, **{token["content"]: token["id"] for token in blank}}
    control = collect_control_tokens(files, words, added, {token["content"] for token in blank})
    plain = {
        **data,
        "added_tokens": blank,
        "normalizer": without_prefix_space(data.get("normalizer")),
        "pre_tokenizer": without_prefix_space(data.get("pre_tokenizer")),
        "truncation": None,
        "padding": None,
        "model": {**model, "dropout": None},
    }
    if blank:  # at its id, which tokenizers would count anew for those that are left
        plain["model"]["vocab"] = model["vocab"] if model["type"] == "Unigram" else words
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # tokenizers raises the bare class
        raise ValueError(
            f"{files.place}: tokenizers can't read it ({error}); fetch the file again"
        ) from None
    probe = tokenizer.encode("a")
    names = {id: name for name, id in {**words, **control}.items()}
    put = [names.get(id, "") for id in probe.ids]  # the text's tokens and what is put around them
    special = probe.special_tokens_mask
    text_at = special.index(0) if 0 in special else len(put)
    text_end = len(put) - (special[::-1].index(0) if 0 in special else 0)
    tokenizer.post_processor = None

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [row.ids for row in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    unknown = model.get("unk_token")
    if isinstance(unk_id := model.get("unk_id"), int):  # Unigram's
        unknown = next((name for name, id in words.items() if id == unk_id), None)
    return Vocabulary(
        encode=encode,
        to_bytes=_token_to_bytes(data, files.place),
        words=words,
        control=control,
        bos=next(iter(put[:text_at]), None),
        before=put[:text_at],
        after=put[text_end:],
        unknown=unknown if isinstance(unknown, str) and unknown in control else None,
        eos=next((t for t in ("</s>", "<|end_of_text|>", "<eos>") if t in control), None),
    )


def _blank_words(
    tokens: Sequence[Object], words: Mapping[str, int], kind: object, files: TokenizerFiles
) -> list[Object]:
    """Added tokens of white space only: words for a text's runs of spaces, which readers find."""
    roles = files.named_tokens().values()
    ids = set(words.values())
    return [
        token
        for token in tokens
        if isinstance(name := token["content"], str)
        and name.isspace()
        and not (token.get("special") or name in roles)
        and not (token.get("lstrip") or token.get("rstrip"))  # would take text from beside it
        and (words.get(name) == token["id"] or (kind == "BPE" and token["id"] not in ids))
    ]


def without_prefix_space(step: Object | None) -> Object | None:
    """A step of the file's pipeline, so that no space is put before a text or taken from it."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Strip" and "start" in step:  # the decoder; a normalizer's has other keys
        return None
    if step["type"] == "Sequence":
        key = [key for key, value in step.items() if isinstance(value, list)][0]  # noqa: RUF015
        inner = [without_prefix_space(one) for one in step[key]]
        return {**step, key: [one for one in inner if one is not None]}
    if step["type"] == "Metaspace":
        kept = {key: value for key, value in step.items() if key != "add_prefix_space"}
        return {**kept, "prepend_scheme": "never"}
    if step["type"] == "ByteLevel":
        return {**step, "add_prefix_space": False}
    return step


def flatten(step: Object | None) -> list[Object]:
    """A pipeline's single steps, without the sequences around them."""
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = next(value for value in step.values() if isinstance(value, list))
    return [single for part in inner for single in flatten(part)]


def _token_to_bytes(data: Object, place: str) -> Callable[[str], bytes]:
    """What turns a token into bytes, where each token's bytes don't depend on its neighbours."""
    steps = flatten(data.get("decoder"))
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds | {step["type"] for step in flatten(data.get("pre_tokenizer"))}:
        return _byte_level_to_bytes
    if not kinds or not kinds <= {"Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"}:
        raise ValueError(
            f"{place}: its decoder is {', '.join(sorted(kinds)) or 'missing'}; use a base with a "
            "byte-level or sentencepiece tokenizer, as Llama, Qwen and SmolLM2 have"
        )
    replaced = {step["replacement"]: " " for step in steps if step["type"] == "Metaspace"}
    for step in steps:
        if step["type"] == "Replace":
            replaced[step["pattern"]["String"]] = step["content"]
    return piece_to_bytes(replaced, has_bytes="ByteFallback" in kinds)


# GPT-2's alphabet: code point in the vocabulary -> byte. Printable bytes stand for themselves.
_BYTES = {byte: byte for byte in (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))}
_BYTES |= {256 + i: byte for i, byte in enumerate(sorted({*range(256)} - _BYTES.keys()))}
_ALPHABET = frozenset(map(chr, _BYTES))


def _byte_level_to_bytes(token: str) -> bytes:
    if not _ALPHABET.issuperset(token):
        return token.encode()
    return token.translate(_BYTES).encode("latin-1")
