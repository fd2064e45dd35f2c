"""A short list of patterns for text that nobody should train on, in Korean and English.

A list finds words, not meanings: it misses polite wording and other spellings, and can't tell a
slur from a text about slurs. It is a first sieve, to be read and extended; data that passes may
still be unsafe. `--rule module:function` adds anything better, such as a classifier.
"""

from __future__ import annotations

import re

# category -> patterns. English ones match whole words; Korean words have no such borders, so that
# exceptions are spelled out.
UNSAFE: dict[str, tuple[str, ...]] = {
    "slur": (
        r"\bnigg(?:er|a)s?\b",
        r"\bfagg?ots?\b",
        r"\bkikes?\b",
        r"\bspics?\b(?!\s+and\s+span)",
        r"\btrann(?:y|ies)\b",
        r"\bretarded\s+(?:people|person|kids?|idiots?)\b",
        "짱깨|쪽바리|깜둥이|조센징|김치녀|된장녀|한남충|맘충(?!분)|틀딱충?",
    ),
    "abuse": (
        r"\bgo\s+(?:and\s+)?kill\s+yourself\b",
        r"(?<!\bif\s)\byou\s+should\s+(?:just\s+)?(?:die|kill\s+yourself)\b",
        r"\bfuck(?:ing)?\s+(?:you|off)\b",
        r"\bmother\s?fuck(?:er|ers|ing)\b",
        r"\bcunts?\b",
        "(?<![저글날])씨[발팔]|(?<![가-힣])시발(?!점|역|택시|자동차)|개새끼|개색기|좆같|좆까|엿먹어",
        "니\\s?애미|느금마",
        "병신(?!년|일|생|사화|박해|양요)",
        "(?:나가|가서|그냥)\\s*(?:뒈져|(?:뒈져|뒤져|죽어)\\s*버려)라?(?![가-힣])",
    ),
    "weapons and drugs": (
        r"\b(?:how\s+to|steps?\s+to|instructions\s+(?:to|for))\s+(?:make|making|build|building)\s+"
        r"(?:an?\s+)?(?:(?:pipe|nail|dirty)\s+)?bombs?\b",
        r"\b(?:how\s+to|steps?\s+to)\s+(?:cook|synthesi[sz]e|make)\s+"
        r"(?:crystal\s+)?(?:meth(?:amphetamine)?|heroin|sarin|nerve\s+gas)\b",
        "(?:폭탄|사제\\s?총|총기|필로폰|마약)을?\\s*(?:직접\\s*)?(?:만드는|제조하는|합성하는)\\s*(?:법|방법)",
    ),
    "self-harm": (
        r"\b(?:best|easiest|painless)\s+ways?\s+to\s+(?:kill\s+yourself|commit\s+suicide|die)\b",
        "(?:편하게|확실하게|고통\\s?없이)\\s*(?:자살하는|죽는)\\s*(?:법|방법)",
    ),
    "sexual content with minors": (
        r"\b(?:child|kiddie|preteen|underage)\s+(?:porn|pornography|sex(?!\s+ratio)|nudes?)\b",
        "(?:아동|미성년자|초등학생)\\s*(?:음란물|포르노|야동)",
    ),
    "personal data": (
        r"(?<!\d)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])-[1-4]\d{6}(?!\d)",  # 주민등록번호
        r"(?<![\d-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])",  # US social security
    ),
}
_COMPILED = {
    category: re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)
    for category, patterns in UNSAFE.items()
}


def unsafe_text(text: str) -> tuple[str, str] | None:
    """The first category that a text falls into and what matched, or None."""
    for category, pattern in _COMPILED.items():
        if found := pattern.search(text):
            return category, found[0]
    return None
