"""Which scripts a text is written in, and so roughly which language.

Letters tell Korean from English, but not languages of one script: French counts as "latin", and so
do names and code.
"""

from __future__ import annotations

import re
from collections import Counter

# Letters by script, as ranges of code points (Unicode 15.1, Scripts.txt; the common blocks).
SCRIPTS = {
    "hangul": "\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff\uffa0-\uffdc",
    "latin": "A-Za-z\u00aa\u00ba\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
    "\uff21-\uff3a\uff41-\uff5a",
    "kana": "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "han": "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "cyrillic": "\u0400-\u052f\u1c80-\u1c8f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "arabic": "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f",
    "thai": "\u0e00-\u0e7f",
}
_RUNS = {name: re.compile(f"[{letters}]+") for name, letters in SCRIPTS.items()}
HANGUL_WEIGHT = 2  # a Korean syllable block says about what two or three Latin letters say


def scripts(text: str) -> Counter[str]:
    """Letters of each script in a text; digits, marks and spaces count for none."""
    counts: Counter[str] = Counter()
    for name in ("latin",) if text.isascii() else SCRIPTS:
        if letters := sum(map(len, _RUNS[name].findall(text))):
            counts[name] = letters
    return counts


def main_script(text: str) -> str | None:
    """The script that most of a text is in, or None if it has no letters.

    안녕 hello   ->   "hangul"          a syllable block weighs as two letters
    3.14         ->   None
    """
    counts = scripts(text)
    if not counts:
        return None
    counts["hangul"] *= HANGUL_WEIGHT
    return max(counts, key=counts.__getitem__)
