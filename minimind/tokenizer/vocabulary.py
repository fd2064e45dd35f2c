"""A tokenizer's words and control tokens, as its files list them, in either format.

Control tokens are all added tokens, marked special or not, but for those of white space only that
aren't marked: these are words. If `<|im_end|>` shared its id with a
word, the model would learn to stop at that word, without any error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass

from minimind.tokenizer.files import ADDED_TOKENS, CONFIG, TokenizerFiles

START = "<|im_start|>"
END = "<|im_end|>"
THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
RESULT, END_RESULT = "<tool_response>", "</tool_response>"
TAGS = (THINK, END_THINK, CALL, END_CALL, RESULT, END_RESULT)  # what rows with them need beside

_MAX_IDS = 2**22  # as many rows as a model may have

# Slots that bases leave unused: <|reserved_special_token_0|>, <|extra_0|>, [UNUSED_5], ...
SPARE = re.compile(
    r"[<\[]\|?(?:reserved|unused|extra|spare|dummy)(?:_special)?(?:_token)?_?\d+\|?[>\]]",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    # Looks for no control token in a text, but may yield one that is also a word of the model.
    encode: Callable[[Sequence[str]], list[list[int]]]
    to_bytes: Callable[[str], bytes]  # of a word
    words: Mapping[str, int]  # the model's own tokens
    control: Mapping[str, int]  # the control tokens
    bos: str | None  # the control token that begins a text, according to the main file
    before: list[str]  # control tokens that the base puts before a text,
    after: list[str]  # and after it
    unknown: str | None  # the control token for what can't be written
    eos: str | None  # ends a text, according to the main file

    @property
    def size(self) -> int:
        """1 + the largest id."""
        return 1 + max([*self.words.values(), *self.control.values()], default=-1)


def collect_control_tokens(
    files: TokenizerFiles, words: Mapping[str, int], added: Mapping[str, int], blank: Set[str]
) -> dict[str, int]:
    """Merge the main file's added tokens, and what the files beside it list or give a role.

    A control token may be one of the model's words too, under the same id, or have the id of a
    spare slot. Any other conflict is an error. `blank` are added tokens that are words only.
    """
    decoder = files.read(CONFIG).get("added_tokens_decoder") or {}
    in_config = {
        token["content"]: int(id) if id.isdecimal() else id for id, token in decoder.items()
    }
    named = {token: words[token] for token in files.named_tokens().values() if token in words}
    listings = [added, files.read(ADDED_TOKENS), in_config, named]
    control: dict[str, int] = {}
    for listing in listings:
        control = {**listing, **control}  # the first to list a token gives its id
    control = {name: id for name, id in control.items() if name not in blank}
    owners = {id: name for name, id in control.items()}
    for name, id in (item for tokens in (*listings, words) for item in tokens.items()):
        other = owners.get(control.get(name, id), name)
        if control.get(name, id) != id:
            fact = f"{name!r} has two ids, {control[name]} and {id}"
        elif not isinstance(name, str) or type(id) is not int or not 0 <= id < _MAX_IDS:
            fact = f"{name!r} has the id {id!r}, not one from 0 to {_MAX_IDS - 1:,}"
        elif other != name and not (SPARE.fullmatch(name) or SPARE.fullmatch(other)):
            fact = f"{other!r} and {name!r} have the same id, {id}"
        else:
            continue
        raise ValueError(f"{files.place}: {fact}; fetch the tokenizer's files again")
    return control


def piece_to_bytes(replaced: Mapping[str, str], has_bytes: bool) -> Callable[[str], bytes]:
    """What turns sentencepiece's pieces into bytes: "▁is" -> b" is", and "<0xEA>" -> one byte."""

    def to_bytes(piece: str) -> bytes:
        if has_bytes and re.fullmatch(r"<0x[0-9A-F]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        for old, new in replaced.items():
            piece = piece.replace(old, new)
        return piece.encode()

    return to_bytes
