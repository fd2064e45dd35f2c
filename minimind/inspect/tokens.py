"""Show a row token by token."""

from __future__ import annotations

from minimind.data.dataset import Example
from minimind.data.errors import printable
from minimind.data.show import GREEN, RESET
from minimind.tokenizer import Tokenizer


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
