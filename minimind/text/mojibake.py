"""Find text that was decoded with the wrong encoding, or lost bytes.

café          read as Latin-1 by mistake     cafÃ©
안녕          the same                         ì\x95\x88ë\x85\x95
안녕          written as CP949                ¾È³ç
"""

from __future__ import annotations

import re

_WINDOWS = "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"  # what CP1252 has where Latin-1 has controls
_NON_ASCII_RUN = re.compile(f"[\\x80-\\xff{_WINDOWS}]{{2,}}")
_LOST = re.compile("\ufffd|[\ud800-\udfff]")
_CONTROL = re.compile("[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
_KOREAN = re.compile("[가-힣]{2,}")
_EVIDENCE = 20  # characters


def broken_text(text: str) -> str | None:
    """Describe the first broken place of a text, or None.

    Broken are: replacement characters, half surrogate pairs, control characters except tab and
    line ends, and runs that spell UTF-8 or CP949 read as Latin-1 or CP1252.
    """
    for name, pattern in (("lost character", _LOST), ("control character", _CONTROL)):
        if found := pattern.search(text):
            return f"{name} U+{ord(found[0]):04X}{_near(text, found)}"
    for found in _NON_ASCII_RUN.finditer(text):
        if meant := _meant(found[0]):
            return f"{found[0][:_EVIDENCE]!r} was {meant[:_EVIDENCE]!r}"
    return None


def _meant(run: str) -> str | None:
    """The text of a run's bytes in the encoding that they were written in."""
    data = b"".join(_byte(character) for character in run)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    if len(data) >= 4 and min(data) > 0xA0:  # KS X 1001's own bytes, no typographer's quotes
        try:
            korean = data.decode("cp949")
        except UnicodeDecodeError:
            return None
        if _KOREAN.fullmatch(korean):
            return korean
    return None


def _byte(character: str) -> bytes:
    return character.encode("cp1252" if character in _WINDOWS else "latin-1")


def _near(text: str, found: re.Match[str]) -> str:
    before = text[max(0, found.start() - _EVIDENCE) : found.start()]
    return f" after {before!r}" if before else " at the beginning"
