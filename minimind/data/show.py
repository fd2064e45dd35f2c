"""Show a row as the model sees it, with what is trained marked."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from minimind.data.dataset import Example
from minimind.terminal import escape
from minimind.tokenizer import Tokenizer

GREEN, RESET = "\033[32m", "\033[0m"


def show_row(example: Example, tokenizer: Tokenizer, colour: bool) -> str:
    """One row as the model sees it, escaped; what is trained in green, or between ⟦ ⟧."""
    left, right = (GREEN, RESET) if colour else ("⟦", "⟧")
    shown = ""
    row = zip(example.input_ids, example.loss_mask, strict=True)
    for trained, part in groupby(row, key=itemgetter(1)):
        text = escape(tokenizer.decode([id for id, _ in part]))
        shown += left + text + right if trained else text
    return shown
