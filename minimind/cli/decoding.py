"""Compile the decoding of answers, for the commands that answer."""

from __future__ import annotations

from collections.abc import Callable

from minimind.model.transformer import Transformer


def compile_decoding(model: Transformer, rows: int, say: Callable[[str], None]) -> None:
    """Compile what decodes a token, or say why it stays eager."""
    try:
        model.compile_decoding(rows)
    except Exception as error:  # whatever the compiler raises, answers can be given without it
        say(f"not compiled: {type(error).__name__}: {error}".splitlines()[0])
