"""Bring text into a Unicode form, in time that grows with the text alone."""

from __future__ import annotations

import re
import unicodedata
from itertools import groupby
from typing import Literal

_DECOMPOSED: dict[Literal["NFC", "NFKC"], Literal["NFD", "NFKD"]] = {"NFC": "NFD", "NFKC": "NFKD"}

# Long runs of what may be combining marks: neither ASCII nor a letter or digit, but for the two
# halfwidth letters that become marks.
_RUN = re.compile("(?:[^\\w\\x00-\\x7f]|[\uff9e\uff9f]){64,}")


def normalize(form: Literal["NFC", "NFKC"], text: str) -> str:
    """The same as `unicodedata.normalize`.

    That sorts a run of combining marks by insertion, which takes minutes for some 100,000 of them.
    Here they are sorted before. Source: Unicode Standard, D109, canonical ordering.
    """

    def in_order(found: re.Match[str]) -> str:
        # One by one: together they would be sorted.
        marks = "".join(unicodedata.normalize(_DECOMPOSED[form], mark) for mark in found[0])
        parts = groupby(marks, key=lambda mark: unicodedata.combining(mark) > 0)
        return "".join(
            "".join(sorted(part, key=unicodedata.combining)) if combining else "".join(part)
            for combining, part in parts
        )

    return unicodedata.normalize(form, text if text.isascii() else _RUN.sub(in_order, text))
