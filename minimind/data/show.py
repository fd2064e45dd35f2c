"""Show a row as the model sees it, with what is trained marked."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from minimind.data.dataset import Example
from minimind.data.errors import printable
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


def show_tokens(example: Example, kept: int, tokenizer: Tokenizer, colour: bool) -> str:
    """One row token by token: a │ between two, ✂ where truncation cuts; see `show_row`.

    A character of several tokens is shown at the last of them, and a ‥ at each one before.
    """
    left, right = (GREEN, RESET) if colour else ("⟦", "⟧")
    shown, inside = "", False
    decoder = tokenizer.stream_decoder()
    for at, (id, trained) in enumerate(zip(example.input_ids, example.loss_mask, strict=True)):
        trained = trained and at < kept
        border = ("" if at == 0 else "│") + ("✂" if at == kept else "")
        turn = "" if trained == inside else left if trained else right
        text = decoder.push(id) or "‥"
        shown += border + turn + "⏎\n".join(map(printable, text.split("\n")))
        inside = trained
    return shown + (right if inside else "")


def prompt_of(example: Example) -> list[int]:
    """The ids before a row's first trained token."""
    return list(example.input_ids[: list(example.loss_mask).index(True)])
