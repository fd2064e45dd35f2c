"""See that each control token has an id of its own, whatever a base's files say. Knows no files.

A base whose `<|im_end|>` had the id of a word, or of another control token, would learn to stop at
that word, and nothing would tell.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MOST_IDS = 2**22  # as many rows as a model may have

# Slots that bases leave for others: <|reserved_special_token_0|>, <|extra_0|>, [UNUSED_5], ...
SPARE = re.compile(
    r"[<\[]\|?(?:reserved|unused|extra|spare|dummy)(?:_special)?(?:_token)?_?\d+\|?[>\]]",
    re.IGNORECASE,
)


def merge(place: str, words: Mapping[str, int], *listings: Mapping[str, int]) -> dict[str, int]:
    """Merge what a tokenizer's files say of its control tokens.

    Args:
        place: its path, for errors.
        words: the model's vocabulary. A control token may stand in it under its own id, and in the
            place of a spare slot.
        listings: each file's control tokens and their ids.

    Raises:
        ValueError: an id is none, a token has two, or two tokens have one.
    """
    control: dict[str, int] = {}
    for listing in listings:
        for name, id in listing.items():
            if control.setdefault(name, id) != id:
                raise _fault(place, f"{name!r} has two ids, {control[name]} and {id}")
    owners = {id: name for name, id in control.items()}
    for name, id in (*control.items(), *words.items()):
        if not isinstance(name, str) or type(id) is not int or not 0 <= id < MOST_IDS:
            raise _fault(place, f"{name!r} has the id {id!r}, not one from 0 to {MOST_IDS - 1:,}")
        if control.get(name, id) != id:
            raise _fault(place, f"{name!r} has two ids, {control[name]} and {id}")
        other = owners.get(id, name)
        if other != name and not (SPARE.fullmatch(name) or SPARE.fullmatch(other)):
            raise _fault(place, f"{other!r} and {name!r} have the same id, {id}")
    return control


def _fault(place: str, fact: str) -> ValueError:
    return ValueError(f"{place}: {fact}; fetch the tokenizer's files again")
