"""Hash what conversations ask, so that rows that ask alike stay on one side of a split.

    system, user 1, assistant, user 2, assistant      the row's key: system, user 1, user 2
                    ^ key of system, user 1
                                       ^ key of system, user 1, user 2

Two texts ask alike if only their writing differs: Unicode form (NFKC), case, white space and
punctuation. Symbols, emoji and short emoticons count: "What does 😀 mean?". Where there are digits
or code, punctuation inside counts, too: "1.23" isn't "123".
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable

from minimind.data.chatml import TrainOn
from minimind.data.conversation import Conversation
from minimind.data.normal_form import normalize

# What prose hardly has: a + b, f(x), a.bc, -x. A mark is found first, then its surroundings: fast.
_CODE = re.compile(
    r"[^\w\s'\"‘’“”](?:"
    r"(?<=[=<>+*/\\|&{}\[\]`$#@%×÷±∀-⋿])|(?<=(?<!\^)\^)(?!\^)"  # an operator; not ^^
    r"|(?<=::)|(?<=[a-z]\()|(?<=[a-z]\.)(?=[a-z]{2})|(?:(?<=\s[-!])|(?<=^[-!]))(?=[-!]*[a-z])"
    r"|(?:(?<=(?<![a-z])[a-z][^.])|(?<=(?<![a-z])[a-z]\s[^.]))(?=\s*[a-z](?![a-z]))"  # a , b
    r")|_"
)
_DIGIT = re.compile(r"\d")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)\s+(?=\d)")
# After a word, before a space. A lone letter may be a variable, n! its factorial.
_AFTER_A_WORD = re.compile(r"(?:(?<=[^\W\d_]{2})|(?<=[^\W\d_a-z]))[.,:;?!]+(?=\s)")
# :) ;-( :'( and, before a space, :D :P
_EMOTICON = re.compile(r"([:;]['’]?-?[()](?!\w)|(?<!\S)[:;]-?[dpox](?!\w))")

_SPELLED = {ord(mark): f"{unicodedata.normalize('NFKC', mark)} " for mark in "，：；？！"}
_SPELLED |= {ord("。"): ". ", ord("、"): ", "}
_SPELLED |= {ord(power): f"^{digit}" for digit, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}
_SPELLED |= dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_SPELLED |= dict.fromkeys(map(ord, "‘’‚‛´"), "'") | dict.fromkeys(map(ord, "“”„‟"), '"')


class _Keep(dict[int, int | None]):
    """A table for `str.translate` that keeps what `keeps` says of a character's category."""

    def __init__(self, keeps: Callable[[str], bool]) -> None:
        self._keeps = keeps

    def __missing__(self, code: int) -> int | None:
        variant = 0xFE00 <= code <= 0xFE0F  # of how the character before it looks
        kept = self._keeps(unicodedata.category(chr(code))) and not variant
        kept |= 0xE0020 <= code <= 0xE007E  # tags: England's flag isn't Scotland's
        return self.setdefault(code, code if kept else None)


_WORDS = _Keep(lambda category: category in ("Mn", "Mc") or category[0] in "LNS")
_WORDS[ord("~")] = None  # at the end of what is said, as in Korean; between letters it is code
_SYMBOLS = _Keep(lambda category: category[0] not in "ZC" and category != "Me")


def prompt_keys_of(conversation: Conversation) -> list[int]:
    """For each answer, 64 bits of a hash over the system and user messages before it, normalized.

    The last one is the row's key, also of a row that is a part of the conversation: its other
    answers come last. If no user has asked before, all messages up to the answer count.
    """
    asked, keys = False, []
    asking, alone = hashlib.blake2b(digest_size=8), hashlib.blake2b(digest_size=8)
    for message in (*conversation.messages, *conversation.rest):
        asked |= message.role == "user"
        if not asked or message.role in ("system", "user"):
            spelled = f"{message.role}\0{normalized(message.content)}\0"
            part = spelled.encode("utf-8", "surrogatepass")
            alone.update(part)
            if message.role in ("system", "user"):
                asking.update(part)
        if message.role == "assistant":
            keys.append(int.from_bytes((asking if asked else alone).digest(), "big"))
    return keys


def trained_prompts(conversation: Conversation, keys: list[int], train_on: TrainOn) -> list[int]:
    """Of `prompt_keys_of` the conversation, those of the answers that are trained."""
    answers = [message for message in conversation.messages if message.role == "assistant"]
    pairs = list(zip(answers, keys, strict=False))  # those of the row's rest are left out
    return [key for answer, key in pairs[-1 if train_on == "last" else 0 :] if answer.weight > 0]


def normalized(text: str) -> str:
    """What is left of a text where two texts that ask alike are equal."""
    plain = normalize("NFKC", text).casefold()
    is_code = _CODE.search(plain)
    if not is_code and not _DIGIT.search(plain):
        parts = enumerate(_EMOTICON.split(plain))  # each second one is an emoticon
        words = "".join(part if at % 2 else part.translate(_WORDS) for at, part in parts)
        return words or "".join(plain.split()) or plain
    text = normalize("NFKC", text.translate(_SPELLED)).casefold()
    if not is_code:
        text = _AFTER_A_WORD.sub("", text)
    text = _without_last_mark(text)
    return _BETWEEN_DIGITS.sub("␣", text).translate(_SYMBOLS) or text


def _without_last_mark(text: str) -> str:
    text = text.rstrip().rstrip(" \n?.") or text
    bare = text.rstrip(" \n?.!,:;")
    after_a_word = bare[-1:].isalpha() and (not bare[-1:].isascii() or bare[-2:].isalpha())
    return bare if after_a_word else text
