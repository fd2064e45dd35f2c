"""A stream is cut where a reader sees a character end."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.chat.graphemes import whole_characters
from tests.support.strategies import texts

JAMO = "\u1112\u1161\u11ab"  # 한
EMOJI = ["👨‍👩‍👧‍👦", "👍🏽", "🇰🇷", "🇺🇸", "❤️", "🏴󠁧󠁢󠁳󠁣󠁴󠁿", "1️⃣", "👩🏽‍🚀"]
WHOLE = [*EMOJI, JAMO, "\u1100\u1161", *"가a 7漢"]


def stream(pieces: Iterable[str]) -> Generator[str, None, int]:
    yield from pieces
    return 7


def cut(pieces: Iterable[str]) -> tuple[list[str], int]:
    returned = 0

    def read() -> Generator[str, None, None]:
        nonlocal returned
        returned = yield from whole_characters(stream(pieces))

    return list(read()), returned


@given(st.lists(texts()))
def test_the_pieces_joined_are_the_text_and_what_the_stream_returns_comes_through(pieces) -> None:
    out, returned = cut(pieces)
    assert "".join(out) == "".join(pieces)
    assert "" not in out
    assert returned == 7


@given(st.lists(st.sampled_from(WHOLE)))
def test_no_piece_ends_within_an_emoji_or_a_syllable(characters) -> None:
    regex = pytest.importorskip("regex")  # comes with transformers; its \X is Unicode's own rule
    text = "".join(characters)
    ends = {match.end() for match in regex.finditer(r"\X", text)}
    shown = 0
    for piece in cut(text)[0]:  # code point by code point
        shown += len(piece)
        assert shown in ends


def test_what_cannot_go_on_is_shown_at_once() -> None:
    pieces = ["안", "녕하", "세요", "! ", "Hel", "lo.", "漢字", "\n"]
    assert cut(pieces)[0] == pieces


def test_a_character_that_may_go_on_waits_for_the_next() -> None:
    assert cut(["우리 👨", "\u200d", "👩", "!", "2", "0", "."])[0] == ["우리 ", "👨‍👩!", "2", "0."]


def test_what_was_not_whole_when_the_stream_broke_off_is_not_shown() -> None:
    def broken() -> Generator[str, None, None]:
        yield "가족 👨"
        raise KeyboardInterrupt

    pieces = whole_characters(broken())
    assert next(pieces) == "가족 "
    with pytest.raises(KeyboardInterrupt):
        next(pieces)
