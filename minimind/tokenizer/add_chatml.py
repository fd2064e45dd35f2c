"""Add control tokens, ChatML's and the tags of tools and thinking, to a base that lacks them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import count
from typing import Any

from minimind.tokenizer.files import (
    ADDED_TOKENS,
    CONFIG,
    JSON,
    MODEL,
    SPECIAL_TOKENS,
    TokenizerFiles,
)
from minimind.tokenizer.vocabulary import SPARE, Vocabulary


def add_chatml(
    files: TokenizerFiles,
    vocabulary: Vocabulary,
    missing: Sequence[str],
    used: Collection[str] = (),
) -> str:
    """Put the missing tokens in slots that the base left spare and aren't `used`, else at the end.

    This changes the files in memory, so that what is saved loads as what was used. It returns a
    sentence that says what was done.
    """
    words, control = vocabulary.words, vocabulary.control
    spare = sorted(
        (n for n in control if SPARE.fullmatch(n) and n not in used), key=control.__getitem__
    )
    if MODEL not in files.contents and len(spare) >= len(missing):
        new_names = dict(zip(spare, missing, strict=False))
        for name in (JSON, CONFIG, SPECIAL_TOKENS, ADDED_TOKENS):
            if name in files.contents:
                files.write(name, _rename(files.read(name), new_names))
        how = f"in place of {' and '.join(new_names)}, which it leaves unused"
    else:
        new_ids = count(vocabulary.size)
        ids = {token: words[token] if token in words else next(new_ids) for token in missing}
        _append(files, ids)
        how = f"as {' and '.join(f'id {id}' for id in ids.values())}"
    return f"{files.place}: the base has no {' and '.join(missing)}; added {how}"


def _rename(value: Any, new_names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {new_names.get(key, key): _rename(item, new_names) for key, item in value.items()}
    if isinstance(value, list):
        return [_rename(item, new_names) for item in value]
    return new_names.get(value, value) if isinstance(value, str) else value


def _append(files: TokenizerFiles, ids: Mapping[str, int]) -> None:
    """List new control tokens in every file that lists any."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    new = {id: {"content": token, **flags, "special": True} for token, id in ids.items()}
    data = files.read(JSON)
    added = [{"id": id, **token} for id, token in new.items()]
    files.write(JSON, {**data, "added_tokens": [*(data.get("added_tokens") or []), *added]})
    config = files.read(CONFIG)
    if decoder := config.get("added_tokens_decoder"):
        entries = {**decoder, **{str(id): token for id, token in new.items()}}
        files.write(CONFIG, {**config, "added_tokens_decoder": entries})
    if ADDED_TOKENS in files.contents or MODEL in files.contents:  # where llama.cpp looks
        files.write(ADDED_TOKENS, {**files.read(ADDED_TOKENS), **ids})
