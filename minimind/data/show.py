"""Show a row as the model sees it, with what is trained marked."""

from __future__ import annotations

from minimind.data.dataset import Example
from minimind.data.errors import printable
from minimind.tokenizer import Tokenizer

GREEN, RESET = "\033[32m", "\033[0m"


def show_row(example: Example, tokenizer: Tokenizer, colour: bool) -> str:
    """One row as the model sees it; what is trained in green, or between ⟦ ⟧."""
    left, right = (GREEN, RESET) if colour else ("⟦", "⟧")
    parts: list[str] = []
    start = 0
    ids, mask = list(example.input_ids), list(example.loss_mask)
    for stop in range(1, len(ids) + 1):
        if stop == len(ids) or mask[stop] != mask[start]:
            text = tokenizer.decode(ids[start:stop])
            parts.append(left + text + right if mask[start] else text)
            start = stop
    return "".join(parts)


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
