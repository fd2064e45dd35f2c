"""Scripts are told by their letters."""

from __future__ import annotations

import unicodedata

import pytest

from minimind.text.scripts import SCRIPTS, main_script, scripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("안녕하세요", {"hangul": 5}),
        ("Hello, 세계! 123", {"latin": 5, "hangul": 2}),
        ("ㅋㅋ ㅠㅠ", {"hangul": 4}),
        (unicodedata.normalize("NFD", "한"), {"hangul": 3}),
        ("漢字とかな", {"han": 2, "kana": 3}),
        ("Привет κόσμε", {"cyrillic": 6, "greek": 5}),
        ("café Ｆｕｌｌ", {"latin": 8}),
        ("3.14 + 2 = ? 👋", {}),
    ],
)
def test_letters_are_counted_by_script(text: str, expected: dict[str, int]) -> None:
    assert dict(scripts(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PyTorch는 파이썬 라이브러리입니다.", "hangul"),
        ("The word 안녕 means hello in Korean.", "latin"),
        ("네", "hangul"),
        ("1 + 1 = 2", None),
        ("", None),
    ],
)
def test_the_main_script_is_that_of_most_of_the_text(text: str, expected: str | None) -> None:
    assert main_script(text) == expected


def test_no_letter_is_in_two_scripts() -> None:
    for code in (*range(0x10000), 0x20000, 0x30000):
        letter = chr(code)
        assert len(scripts(letter)) <= 1, letter
    assert sum(scripts(chr(code)).total() for code in range(128)) == 52
    assert len(SCRIPTS) == 10
