"""Show a row as the model sees it, with what is trained marked."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from minimind.data.dataset import Example
from minimind.tokenizer import Tokenizer

GREEN, RESET = "\033[32m", "\033[0m"


def show_row(example: Example, tokenizer: Tokenizer, colour: bool) -> str:
    """One row as the model sees it; what is trained in green, or between ⟦ ⟧."""
    left, right = (GREEN, RESET) if colour else ("⟦", "⟧")
    shown = ""
    row = zip(example.input_ids, example.loss_mask, strict=True)
    for trained, part in groupby(row, key=itemgetter(1)):
        text = tokenizer.decode([id for id, _ in part])
        shown += left + text + right if trained else text
    return shown


def prompt_of(example: Example) -> list[int]:
    """The ids before a row's first trained token."""
    return list(example.input_ids[: list(example.loss_mask).index(True)])
