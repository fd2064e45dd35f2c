"""Rules that keep a text out of the corpus, each with its reason. Knows no files.

A reason is evidence in words, or None: `coarse("...")` -> "coarse language: '...'"
"""

from __future__ import annotations

import re
from collections.abc import Callable

from minimind.text.mojibake import broken_text
from minimind.text.scripts import scripts
from minimind.text.unsafe import unsafe_text

# Coarse words of reviews, beside data/unsafe's slurs and abuse. Korean has no word borders, so that
# harmless words that hold one are spelled out.
COARSE = re.compile(
    "씨\\s?[발팔빨]|ㅅㅂ|ㅆㅂ|시[발팔](?!점|역|택시|자동차|이|목)|쉬발|슈발|쓰발|싸발|썅|쌍놈|쌍년|ㅈㄹ|지랄|"
    "ㅂㅅ|병[신싄]|븅신|빙신|개[새세]끼|개색|새끼(?!손|발|고|돼|호|곰|사|강|양|오|줄|를\\s*낳)|색히|쉐끼|"
    "[좆좃젓]같|[좆좃]|존[나내]|졸라|조낸|ㅈㄴ|"
    "(?<![가-힣])개(?:쓰레기|판|같|짜증|노잼|망|뿔|뻥|소리|막장|허접|재미|역겹|슬픔|그지)|"
    "미친(?!\\s*(?:영향|듯|사랑|존재))|또라이|돌아이|꼴통|닥쳐|꺼져|엿\\s?먹|죽[어일](?:라|버려|고\\s*싶)|뒤져|뒈져|"
    "쓰레기|쓰래기|걸레|창[녀년]|매춘|화냥|"
    "섹[스쓰]|야동|포르노|변태|강간|성폭|성관계|색골|(?<![가-힣])야[한해했]|젖[가꼭]|[빠박]구리|떡씬|"
    "정사\\s?씬|베드\\s?씬|노출|"
    "한남충|베충|급식충|빨갱이|좌[빨좀]|수꼴|홍어|일베|된장녀|김치녀|장애인\\s?새|"
    "대가리|아가리|주둥[아이]|낯짝|쳐\\s?[먹웃맞돌]|처\\s?[먹웃맞]|똥|오줌싸|토\\s?나와|구역질|역겹|ㅗ(?![가-힣])|"
    "fuck|shit|bitch|sex|porn",
    re.IGNORECASE,
)
LEAST = 20  # characters of a text
LETTERS = 0.6  # least share of letters and spaces
REPEATED = re.compile(r"(.{1,3})\1{3,}")  # ㅋㅋㅋㅋㅋ, ......, 최고최고최고최고
JAMO = re.compile("[ㄱ-ㅎㅏ-ㅣ]")
RUN_TOGETHER = 14  # Hangul syllables without a space


def broken(text: str) -> str | None:
    """Lost characters teach to write them."""
    return broken_text(text)


def unsafe(text: str) -> str | None:
    """What nobody should train on: the patterns of data/unsafe."""
    found = unsafe_text(text)
    return found and f"{found[0]}: {found[1]!r}"


def coarse(text: str) -> str | None:
    """Coarse words, in Korean mostly."""
    found = COARSE.search(text)
    return f"coarse language: {found[0]!r}" if found else None


def short(text: str) -> str | None:
    """A text of a few characters says nothing."""
    return f"{len(text)} characters" if len(text) < LEAST else None


def few_letters(text: str) -> str | None:
    """Tables, code and rows of marks."""
    share = sum(c.isalpha() or c.isspace() for c in text) / max(1, len(text))
    return f"{share:.0%} letters and spaces" if share < LETTERS else None


def repeated(text: str) -> str | None:
    """One sound or mark again and again."""
    found = [each for each in REPEATED.finditer(text) if not each[1].isspace()]
    return f"{found[0][0][:20]!r}" if found else None


def jamo(text: str) -> str | None:
    """Letters that are no syllables, as in ㅋㅋ and ㅠㅠ, are another way of writing."""
    found = JAMO.search(text)
    return f"{found[0]!r}" if found else None


def run_together(text: str) -> str | None:
    """Korean written without spaces teaches to leave them out."""
    longest = max(re.findall("[가-힣]+", text), key=len, default="")
    return f"{longest!r} has no space" if len(longest) > RUN_TOGETHER else None


def foreign(text: str) -> str | None:
    """Neither mostly Korean nor mostly English."""
    found = scripts(text)
    known = found["hangul"] + found["latin"]
    return None if known * 2 > sum(found.values()) else f"scripts: {', '.join(found) or 'none'}"


Rule = Callable[[str], "str | None"]
EVERY: tuple[Rule, ...] = (broken, unsafe, short, few_letters, foreign)
REVIEWS: tuple[Rule, ...] = (*EVERY, coarse, repeated, jamo, run_together)


def objection(text: str, rules: tuple[Rule, ...] = EVERY) -> tuple[str, str] | None:
    """The first rule that objects to a text, and its evidence; or None."""
    for rule in rules:
        if evidence := rule(text):
            return rule.__name__, evidence
    return None
