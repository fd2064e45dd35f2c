"""Cut a stream of text where a reader sees a character end. Knows no tokens and no terminal.

A family is up to seven code points, a flag two, a Korean syllable may be written as three letters;
a terminal that gets them one by one shows something else first.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

_PICTURE = "\u00a9\u00ae\u203c\u2049\u2122\u2139\u2190-\u21ff\u2300-\u23ff\u24c2\u25aa-\u27bf"
_PICTURE += "\u2934\u2935\u2b00-\u2bff\u3030\u303d\u3297\u3299\U0001f000-\U0001faff"
_MODIFIER = "\ufe0e\ufe0f\U0001f3fb-\U0001f3ff\U000e0020-\U000e007f"  # style, skin, flag's letters
# What stands at the end and may go on. What else may, as an accent, a terminal adds by itself.
_UNFINISHED = re.compile(
    "(?:"
    "[\u1100-\u115f\ua960-\ua97c]+[\u1160-\u11a7\ud7b0-\ud7c6]*[\u11a8-\u11ff\ud7cb-\ud7fb]*"
    "|[\U0001f1e6-\U0001f1ff]+"  # a flag is two of these
    "|[0-9#*]\ufe0f?"  # a key's cap
    f"|[{_PICTURE}][{_MODIFIER}]*(?:\u200d(?:[{_PICTURE}][{_MODIFIER}]*)?)*"
    r")\Z"
)


def whole_characters(pieces: Generator[str, None, T]) -> Generator[str, None, T]:
    """The same text, with a character that may go on kept back until it doesn't.

        "우리 👨"   "\u200d"   "👩"   "!"     ->     "우리 "   "👨\u200d👩!"

    Source: Unicode Standard Annex 29, for emoji and conjoining jamo.

    Yields:
        Text, never empty; what is kept back when `pieces` raises is not among it.

    Returns:
        What `pieces` returns.
    """
    kept = ""
    while True:
        try:
            kept += next(pieces)
        except StopIteration as end:
            if kept:
                yield kept
            returned: T = end.value
            return returned
        unfinished = _UNFINISHED.search(kept)
        cut = unfinished.start() if unfinished else len(kept)
        if cut:
            yield kept[:cut]
            kept = kept[cut:]
