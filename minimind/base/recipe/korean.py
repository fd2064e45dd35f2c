"""Join Korean words to what follows them: particles, verb endings, numbers. Knows no sentences.

사과 + 은/는  ->  사과는      물 + (으)로  ->  물로      돕다 + past  ->  도왔어요
"""

from __future__ import annotations

FIRST = ord("가")
FINALS = " ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
DIGITS = "영일이삼사오육칠팔구"
NATIVE = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉")
TENS = ("", "열", "스물", "서른", "마흔", "쉰", "예순", "일흔", "여든", "아흔")

# Each particle after a consonant and after a vowel.
PARTICLES = {
    "은": ("은", "는"),
    "이": ("이", "가"),
    "을": ("을", "를"),
    "과": ("과", "와"),
    "이나": ("이나", "나"),
    "이라는": ("이라는", "라는"),
    "이라고": ("이라고", "라고"),
    "이라서": ("이라서", "라서"),
    "으로": ("으로", "로"),
}
COPULAS = {
    "요": (("이에요", "예요"), ("이었어요", "였어요")),
    "다": (("이다", "다"), ("이었다", "였다")),
    "니다": (("입니다", "입니다"), ("이었습니다", "였습니다")),
}

ENDINGS = frozenset("- + 고 는 ㄴ ㄹ 면 려고 려면 러 서 다고".split())

ADJECTIVES = frozenset(
    "크다 작다 많다 적다 길다 짧다 높다 낮다 넓다 좁다 무겁다 가볍다 뜨겁다 "
    "차갑다 덥다 춥다 따뜻하다 시원하다 밝다 어둡다 빠르다 느리다 예쁘다 아름답다 "
    "귀엽다 기쁘다 슬프다 즐겁다 좋다 나쁘다 쉽다 어렵다 달다 짜다 씁쓸하다 시다 "
    "맵다 고소하다 싱겁다 부드럽다 딱딱하다 깨끗하다 더럽다 조용하다 시끄럽다 강하다 "
    "약하다 젊다 늙다 새롭다 오래되다 가깝다 멀다 두껍다 얇다 굵다 가늘다 깊다 "
    "얕다 부지런하다 게으르다 착하다 똑똑하다 용감하다 친절하다 고맙다 배고프다 "
    "배부르다 피곤하다 아프다 건강하다 행복하다 외롭다 무섭다 심심하다 바쁘다 비싸다 "
    "싸다 같다 다르다 옳다 이르다 늦다 맑다 흐리다 뾰족하다 둥글다 네모나다 푸르다 "
    "빨갛다 노랗다 파랗다 하얗다 까맣다 싶다 희다 상쾌하다 신선하다 포근하다 "
    "안전하다 위험하다 필요하다 중요하다 튼튼하다 얌전하다 반갑다 든든하다 궁금하다 "
    "촉촉하다 선선하다 날카롭다 신기하다 뿌듯하다 편안하다 쓸쓸하다 맛있다 맛없다 "
    "재미있다 멋있다 없다 커다랗다 비슷하다 유명하다 달콤하다 새콤하다 아늑하다 "
    "환하다 캄캄하다 깜깜하다 미끄럽다 소중하다 괜찮다 서늘하다 축축하다 수줍다 "
    "씩씩하다 다정하다 정확하다 동그랗다 기다랗다 미안하다 부럽다 흔하다 드물다 "
    "부유하다 가난하다".split()
)
IRREGULAR = {
    "ㅂ": frozenset(
        "돕 곱 굽 눕 줍 깁 무겁 가볍 뜨겁 차갑 덥 춥 어둡 아름답 귀엽 즐겁 쉽 어렵 맵 싱겁 "
        "부드럽 더럽 시끄럽 새롭 가깝 두껍 고맙 외롭 무섭 반갑 날카롭 미끄럽 부럽".split()
    ),
    "ㄷ": frozenset("듣 걷 묻 싣 깨닫".split()),
    "ㅅ": frozenset("짓 낫 붓 잇 젓 긋".split()),
    "ㅎ": frozenset("빨갛 노랗 파랗 하얗 까맣 커다랗 동그랗 기다랗 그렇".split()),
    "러": frozenset("푸르".split()),
    "으": frozenset("따르 들르 치르".split()),
}
"""Stems whose end changes before a vowel; 르 changes unless it stands under 러 or 으."""


def final(syllable: str) -> str:
    """The consonant that closes a Hangul syllable or a digit's name; " " where a vowel ends it.

    Raises:
        ValueError: neither Hangul nor a digit.
    """
    if syllable == "0":
        return "ㅇ"  # 영; 십, 백 and 천 are closed too
    if syllable in "123456789":
        syllable = DIGITS[int(syllable)]
    code = ord(syllable) - FIRST
    if not 0 <= code < 11172:
        raise ValueError(f"{syllable!r} is neither Hangul nor a digit; write it as it is read")
    return FINALS[code % 28]


def particle(word: str, name: str) -> str:
    """A word with its particle: (물, 은) -> 물은, (해, 은) -> 해는.

    Args:
        word: ends in Hangul or a digit.
        name: a key of PARTICLES; any other is one that never changes, and is joined as it is.

    Raises:
        ValueError: no sound is known for the word's end.
    """
    if name not in PARTICLES:
        return word + name
    end = final(word[-1])
    open_end = end == " " or (name == "으로" and end == "ㄹ")
    return word + PARTICLES[name][open_end]


def copula(word: str, style: str, past: bool = False) -> str:
    """A noun as a predicate: (물, 요) -> 물이에요, (크다, 다) -> 크다이다."""
    if style == "다" and not past and word.endswith("다"):
        return word + "이다"
    return word + COPULAS[style][past][final(word[-1]) == " "]


def formal(word: str, style: str) -> str:
    """A word whose last sound needn't be known, as a predicate: milk입니다, milk이다."""
    if style != "다":
        return word + "입니다"
    return copula(word, style) if word[-1].isdigit() else word + "이다"


def conjugate(word: str, form: str, style: str = "요") -> str:
    """A verb or adjective, in its dictionary form, with an ending.

    Args:
        word: 먹다, 빨리 달리다; what stands before the last word stays.
        form: "-" present and "+" past, as a sentence ends in `style`; else the ending in its form
            after a vowel: one of ENDINGS.
        style: 요, 다 or 니다.

    Raises:
        ValueError: the word doesn't end in 다.
    """
    if not word.endswith("다"):
        raise ValueError(f"{word!r} is no dictionary form; it ends in 다")
    stem, name = word[:-1], word.split()[-1]
    described = stem.removesuffix("지 않").split()[-1] + "다"  # 크지 않다 is as 크다
    describes = described in ADJECTIVES or name.endswith("있다") or name == "아니다"
    if form == "-":
        return _present(stem, style, describes, name)
    if form == "+":
        past = _closed(_infinitive(stem), "ㅆ")
        return past + {"요": "어요", "다": "다", "니다": "습니다"}[style]
    if form == "다고":
        return _present(stem, "다", describes, name) + "고"
    if form == "서":
        return _infinitive(stem) + form
    if form == "는" and not (describes and not name.endswith(("있다", "없다"))):
        return _without_l(stem) + "는"
    if form in ("는", "ㄴ"):
        return _joined(stem, "ㄴ")
    if form == "ㄹ":
        return _joined(stem, "ㄹ")
    if form in ("면", "려고", "려면", "러"):
        soft = _soft(stem)
        return (
            soft + form if final(soft[-1]) in " ㄹ" and not _hardened(stem) else soft + "으" + form
        )
    return stem + form


def inflect(word: str, form: str, style: str = "요") -> str:
    """A word in the form that a template asks for.

    Args:
        form: a particle, 이다 or 이었다, 입니다 (see `formal`), one of ENDINGS for verbs, or what
            is joined as it is.
    """
    if form in ("이다", "이었다"):
        return copula(word, style, past=form == "이었다")
    if form == "입니다":
        return formal(word, style)
    return conjugate(word, form, style) if form in ENDINGS else particle(word, form)


def counting(number: int) -> str:
    """A number before a counter, up to 100: 3 -> 세 (세 개), 20 -> 스무."""
    if number == 100:
        return "백"
    return "스무" if number == 20 else TENS[number // 10] + NATIVE[number % 10]


def reading(number: int) -> str:
    """A number as it is read, up to 999: 10 -> 십, 105 -> 백오."""
    if number == 0:
        return "영"
    out = ""
    for unit, name in ((100, "백"), (10, "십"), (1, "")):
        digit = number // unit % 10
        if digit:
            out += ("" if digit == 1 and name else DIGITS[digit]) + name
    return out


def _present(stem: str, style: str, describes: bool, name: str) -> str:
    if style == "요":
        return stem + "에요" if name == "아니다" else _infinitive(stem) + "요"
    if style == "니다":
        open_end = final(stem[-1]) in " ㄹ"
        return _closed(_without_l(stem), "ㅂ") + "니다" if open_end else stem + "습니다"
    if describes:
        return stem + "다"
    open_end = final(stem[-1]) in " ㄹ"
    return _closed(_without_l(stem), "ㄴ") + "다" if open_end else stem + "는다"


def _parts(syllable: str) -> tuple[int, str, str]:
    code = ord(syllable) - FIRST
    return code // 588, VOWELS[code // 28 % 21], FINALS[code % 28]


def _syllable(lead: int, vowel: str, end: str = " ") -> str:
    return chr(FIRST + (lead * 21 + VOWELS.index(vowel)) * 28 + FINALS.index(end))


def _closed(text: str, end: str) -> str:
    lead, vowel, _ = _parts(text[-1])
    return text[:-1] + _syllable(lead, vowel, end)


def _without_l(stem: str) -> str:
    return _closed(stem, " ") if final(stem[-1]) == "ㄹ" else stem


def _kind(stem: str) -> str:
    last = stem.split()[-1]
    for kind, stems in IRREGULAR.items():
        if last in stems:
            return kind
    return "르" if last.endswith("르") else ""


def _hardened(stem: str) -> bool:
    """Whether a soft stem still takes 으: 들으면, 지으면."""
    return _kind(stem) in ("ㄷ", "ㅅ")


def _soft(stem: str) -> str:
    """The stem before an ending in 으: 더우, 들, 지, 빨가; 먹 as it is."""
    kind = _kind(stem)
    if kind == "ㅂ":
        return _closed(stem, " ") + "우"
    if kind == "ㄷ":
        return _closed(stem, "ㄹ")
    return _closed(stem, " ") if kind in ("ㅅ", "ㅎ") else stem


def _joined(stem: str, end: str) -> str:
    """The stem with ㄴ or ㄹ: 간, 먹은, 만든, 더운, 들은, 지은, 빨간."""
    soft = _soft(stem)
    if _hardened(stem) or final(soft[-1]) not in " ㄹ":
        return soft + {"ㄴ": "은", "ㄹ": "을"}[end]
    return _closed(soft, end)


def _infinitive(stem: str) -> str:
    """The stem with 아 or 어: 가, 먹어, 와, 도와, 불러, 빨개."""
    head, last = stem[:-1], stem[-1]
    lead, vowel, end = _parts(last)
    kind = _kind(stem)
    if last == "하":
        return head + "해"
    if kind == "ㅂ":
        return _closed(stem, " ") + ("와" if stem.split()[-1] in ("돕", "곱") else "워")
    if kind == "ㅎ":
        return head + _syllable(lead, "ㅒ" if vowel == "ㅑ" else "ㅐ")
    if kind == "러":
        return stem + "러"
    if kind == "르":
        _, before, _ = _parts(head[-1])
        return _closed(head, "ㄹ") + ("라" if before in "ㅏㅗ" else "러")
    if kind in ("ㄷ", "ㅅ"):
        return _soft(stem) + ("아" if vowel in "ㅏㅗ" else "어")
    if end != " ":
        return stem + ("아" if vowel in "ㅏㅑㅗ" else "어")
    if vowel == "ㅡ":
        bright = bool(head.strip()) and head[-1] != " " and _parts(head[-1])[1] in "ㅏㅗ"
        return head + _syllable(lead, "ㅏ" if bright else "ㅓ")
    merged = {"ㅗ": "ㅘ", "ㅜ": "ㅝ", "ㅣ": "ㅕ", "ㅚ": "ㅙ"}
    if vowel in merged:
        return head + _syllable(lead, merged[vowel])
    return stem if vowel in "ㅏㅓㅐㅔㅕ" else stem + "어"
