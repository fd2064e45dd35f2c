"""Cut a stream of text only where a character ends for a reader.

A family emoji is up to seven code points, a flag two; a Korean syllable may be written as three
letters. A terminal that gets them one by one shows something else first.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

_PICTURE = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25aa-\u27bf"
_PICTURE += "\u2934\u2935\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_MODIFIER = "\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"  # style, skin, flag's letters
# A character at the end that more code points may continue. Those that a terminal combines by
# itself, such as accents, aren't listed.
_UNFINISHED = re.compile(
    "(?:"
    "[\u1100-\u115f\ua960-\ua97c]+[\u1160-\u11a7\ud7b0-\ud7c6]*[\u11a8-\u11ff\ud7cb-\ud7fb]*"
    "|[\U0001f1e6-\U0001f1ff]+"  # a flag is two of these
    "|[0-9#*]\ufe0f?"  # a key's cap
    f"|[{_PICTURE}][{_MODIFIER}]*(?:\u200d(?:[{_PICTURE}][{_MODIFIER}]*)?)*"
    r")\Z"
)


def whole_characters(pieces: Generator[str, None, T]) -> Generator[str, None, T]:
    """The same text; a character that may continue is held until the next one begins.

        "우리 👨"   "\u200d"   "👩"   "!"     ->     "우리 "   "👨\u200d👩!"

    Source: Unicode Standard Annex 29, for emoji and conjoining jamo.

    Yields:
        Text, never empty. If `pieces` raises, the held character is lost.

    Returns:
        What `pieces` returns.
    """
    held = ""
    while True:
        try:
            held += next(pieces)
        except StopIteration as end:
            if held:
                yield held
            returned: T = end.value
            return returned
        unfinished = _UNFINISHED.search(held)
        cut = unfinished.start() if unfinished else len(held)
        if cut:
            yield held[:cut]
            held = held[cut:]
