"""Rules for rows that teach a model little or harm it, each by one row alone.

A rule is a function of a conversation and the thresholds that returns evidence in words, or None.
Most rules judge only what the assistant says: a bad question with a good answer is good data.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minimind.data.conversation import (
    Conversation,
    Message,
    irregularities,
    parse_conversation,
    parse_messages,
)
from minimind.data.errors import excerpt
from minimind.data.normal_form import normalize
from minimind.text.look_alike import LOOK_ALIKE
from minimind.text.mojibake import broken_text
from minimind.text.ngrams import LONGEST, ngrams
from minimind.text.scripts import HANGUL_WEIGHT, scripts
from minimind.text.unsafe import unsafe_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Limits of the rules.

    Attributes:
        min_answer: least letters and digits of an answer, a Hangul syllable or a Chinese character
            counted twice; one digit or capital letter, the answer to a choice, is always enough.
        max_characters: of one message.
        repeated_lines: largest share of an answer's lines that repeat an earlier line; answers of
            6 lines or more.
        repeated_ngrams: factor on the limits of Gopher's rules; answers of 50 words or more; 0
            turns the rule off.
        repeated_unit: repetitions in a row, of up to 20 characters, that are too many.
        echo: least letters of an echo, counted as for min_answer.
        other_language: least letters, counted as for min_answer, of an answer in another language.
    """

    min_answer: int = 2
    max_characters: int = 20_000
    repeated_lines: float = 0.3
    repeated_ngrams: float = 2.0
    repeated_unit: int = 20
    echo: int = 12
    other_language: int = 12

    def __post_init__(self) -> None:
        for name in ("min_answer", "repeated_ngrams", "echo", "other_language"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more")
        for name in ("max_characters", "repeated_unit"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; use 2 or more")
        if not 0 <= self.repeated_lines <= 1:
            raise ValueError(f"repeated_lines is {self.repeated_lines}; use 0 to 1")


DEFAULT = Thresholds()

Rule = Callable[[Conversation, Thresholds], "str | None"]


class Verdict(NamedTuple):
    """Why a row is rejected: the rule's name, and in words what it found."""

    rule: str
    evidence: str


def too_short(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer with fewer letters than `min_answer`.

    One word may answer a question in full, so that the default is low. Raise `min_answer` for data
    whose answers should explain.
    """
    for answer in _answers(conversation):
        letters = _letters(answer)
        one_choice = len(letters) == 1 and any(c.isdigit() or c.isupper() for c in answer)
        if letters and _letter_count(letters) < limits.min_answer and not one_choice:
            return f"the answer is {excerpt(answer)!r}"
    return None


def too_long(conversation: Conversation, limits: Thresholds) -> str | None:
    """A message of more than `max_characters`: mostly a document, or several rows in one."""
    for message in conversation.messages:
        if len(message.content) > limits.max_characters:
            return f"{message.role}: {len(message.content):,} characters"
    return None


def empty_answer(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer without a letter, a digit or a symbol such as an emoji."""
    for answer in _answers(conversation):
        categories = map(unicodedata.category, answer)
        if not any(category[0] in "LN" or category == "So" for category in categories):
            return f"the answer is {excerpt(answer)!r}"
    return None


def echo(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer that only repeats the question."""
    for question, answer in _pairs(conversation):
        letters = _letters(answer)
        if _letter_count(letters) >= limits.echo and letters == _letters(question):
            return f"question and answer are {excerpt(answer)!r}"
    return None


def repeated_lines(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer that repeats its lines, as a text generator does when it fails.

    Source: Rae et al. 2021 (Gopher), arXiv:2112.11446, table A1: duplicate line fraction 0.30.
    """
    for answer in _answers(conversation):
        # Only lines with words count: closing braces and rulers of tables repeat in sound text.
        lines = [line.strip() for line in answer.splitlines() if sum(map(str.isalnum, line)) > 3]
        if len(lines) >= MIN_LINES:
            share = 1 - len(set(lines)) / len(lines)
            if share > limits.repeated_lines:
                line, count = Counter(lines).most_common(1)[0]
                return f"{share:.0%} of {len(lines)} lines are repeated; {count} × {line[:60]!r}"
    return None


def repeated_ngrams(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer that repeats its phrases.

    Source: Rae et al. 2021 (Gopher), arXiv:2112.11446, table A1: the share of characters in the
    most common 2-, 3- and 4-gram, and in all duplicate 5- to 10-grams. Gopher's documents have at
    least 50 words, and shorter answers aren't judged. The limits are doubled by default: answers
    are short, and sound ones repeat the wording of their steps (benchmarks/RESULTS.md, Cleaning).
    """
    for answer in _answers(conversation):
        words = answer[:LONGEST].split()
        if limits.repeated_ngrams and len(words) >= MIN_WORDS:
            size = sum(map(len, words))
            for n, limit in TOP_NGRAMS.items():
                gram, count = Counter(ngrams(words, n)).most_common(1)[0]
                share = _characters_of(gram, words) / size
                if count > 1 and share > limit * limits.repeated_ngrams:
                    return f"{share:.0%} of the answer is {' '.join(gram)[:60]!r}, {count} times"
            for n, limit in DUPLICATE_NGRAMS.items():
                share = _duplicate_characters(words, n) / size
                if share > limit * limits.repeated_ngrams:
                    return f"{share:.0%} of the answer are repeated runs of {n} words"
    return None


def repeated_characters(conversation: Conversation, limits: Thresholds) -> str | None:
    """A character, syllable or word many times in a row, in text without spaces too."""
    for answer in _answers(conversation):
        least = min(limits.repeated_unit, LONGEST)  # `re` takes no number that is much larger
        for found in re.finditer(_UNIT % (least - 1), answer[:LONGEST], re.DOTALL):
            count = len(found[0]) // len(found[1])
            if count >= limits.repeated_unit and any(map(str.isalpha, found[1])):
                return f"{found[1]!r} {count} times in a row"
    return None


def unsafe(conversation: Conversation, limits: Thresholds) -> str | None:
    """Words of a short list of unsafe patterns; text/unsafe.py says what such a list can't do."""
    for answer in _answers(conversation):
        if found := unsafe_text(answer):
            return f"{found[0]}: {found[1]!r}"
    return None


def broken_unicode(conversation: Conversation, limits: Thresholds) -> str | None:
    """Text that was decoded with the wrong encoding, or lost characters."""
    for message in conversation.messages:
        if found := broken_text(message.content):
            return f"{message.role}: {found}"
    return None


def other_language(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer in another script than its question.

    Not where the question asks for another language or has letters of the answer's script, nor
    where the answer is code, or broken, which is another rule's.
    """
    for question, answer in _pairs(conversation):
        asked, answered = scripts(question), scripts(answer)
        if not (asked and answered) or set(asked) & set(answered):
            continue
        if "```" in answer or _ASKS_FOR_LANGUAGE.search(question) or broken_text(answer):
            continue
        if _letter_count(_letters(answer)) >= limits.other_language:
            return f"asked in {_names(asked)}, answered in {_names(answered)}: {excerpt(answer)!r}"
    return None


def refusal(conversation: Conversation, limits: Thresholds) -> str | None:
    """Stock phrases in which other assistants refuse, or call themselves an AI model."""
    for answer in _answers(conversation):
        if found := _REFUSAL.search(answer):
            return f"the answer says {found[0]!r}"
    return None


def open_code_fence(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer whose code block isn't closed: mostly it was cut."""
    for answer in _answers(conversation):
        fences = len(_FENCE.findall(answer))
        if fences % 2:
            return f"{fences} lines begin with ```"
    return None


def control_tokens(conversation: Conversation, limits: Thresholds) -> str | None:
    """Another tool's template marks in a text: the model would learn to write them.

    If they only end each answer, as ###eos_token### does in a copy of Dolly, remove them.
    """
    for message in conversation.messages:
        if found := LOOK_ALIKE.search(message.content):
            return f"{message.role}: {found[0]!r}"
    return None


def role_order(conversation: Conversation, limits: Thresholds) -> str | None:
    """An unusual order of turns: mostly a mistake of the tool that exported the rows."""
    return ", ".join(irregularities(conversation)) or None


RULES: dict[str, Rule] = {
    rule.__name__: rule
    for rule in (
        role_order,
        empty_answer,
        too_short,
        too_long,
        echo,
        repeated_lines,
        repeated_ngrams,
        repeated_characters,
        broken_unicode,
        control_tokens,
        open_code_fence,
        other_language,
        refusal,
        unsafe,
    )
}


def check_conversation(
    conversation: Conversation | Mapping[str, object] | Iterable[Message | Mapping[str, object]],
    rules: Iterable[str | Rule] | None = None,
    thresholds: Thresholds = DEFAULT,
) -> list[Verdict]:
    """Check one conversation against rules.

        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]
        ->   [Verdict("empty_answer", "the answer is '...'")]

    Args:
        conversation: a Conversation, a row of any accepted shape, or a list of
            `{"role", "content"}` dicts.
        rules: names out of RULES, or functions like them; None for all of RULES.
        thresholds: of the rules.

    Returns:
        A Verdict for each rule that the conversation breaks.

    Raises:
        DataError: it isn't a legal conversation.
        TypeError: it is none of the above.
        ValueError: no rule has that name, two have the same, or a rule fails, or returns neither
            evidence nor None.
    """
    if isinstance(conversation, Mapping):
        conversation = parse_conversation(conversation)
    elif not isinstance(conversation, Conversation):
        conversation = Conversation(parse_messages(conversation))
    return judge(conversation, _named_rules(RULES if rules is None else rules), thresholds)


def judge(
    conversation: Conversation, rules: Mapping[str, Rule], thresholds: Thresholds
) -> list[Verdict]:
    """A Verdict for each rule that the conversation breaks; see `check_conversation`."""
    verdicts = []
    place = f"{conversation.path}:{conversation.line}: " if conversation.path else ""
    for name, rule in rules.items():
        try:
            evidence = rule(conversation, thresholds)
        except Exception as error:  # whatever a user's rule raises
            fact = f"rule {name} fails with {type(error).__name__}: {error}"
            raise ValueError(f"{place}{fact}; fix it, or leave it out") from error
        if evidence is not None:
            if not (isinstance(evidence, str) and evidence):
                fact = f"rule {name} returns {evidence!r}"
                raise ValueError(f"{place}{fact}; return evidence in words, or None")
            verdicts.append(Verdict(name, evidence))
    return verdicts


def _named_rules(rules: Iterable[str | Rule]) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for rule in rules:
        name = rule if isinstance(rule, str) else getattr(rule, "__name__", type(rule).__name__)
        if isinstance(rule, str) and rule not in RULES:
            raise ValueError(f"no rule is called {rule}; use some of {', '.join(RULES)}")
        if name in found:
            raise ValueError(f"two rules are called {name}; give each a name of its own")
        found[name] = RULES[rule] if isinstance(rule, str) else rule
    return found


MIN_LINES, MIN_WORDS = 6, 50
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_UNIT = r"(.{1,20}?)\1{%d,}"
_SYLLABLE = re.compile("[가-힣\u4e00-\u9fff]")
_FENCE = re.compile(r"^ {0,3}```", re.MULTILINE)
_ASKS_FOR_LANGUAGE = re.compile(
    r"translat|in (?:english|korean|french|spanish|german|japanese|chinese|latin|russian)"
    r"|(?:english|korean|french|spanish|german|japanese|chinese|latin|russian) (?:word|for|name)"
    r"|번역|영어|한국어|한글|일본어|중국어|영문|로마자|프랑스어|독일어|스페인어|철자|코드|code",
    re.IGNORECASE,
)
_REFUSAL = re.compile(
    r"\bas an? (?:AI|artificial intelligence)(?: language)? model(?:,| I\b)"
    r"|\bI(?:'|’)?m (?:just |only )?an AI(?: language model)?,? (?:and|so|but) I (?:can(?:'|’|no)t)"
    r"|\bI(?:'|’| a)m sorry,? but I (?:can(?:no|'|’)t|am (?:not able|unable) to) "
    r"(?:assist|help|fulfil|comply|provide|answer)"
    # Only at a sentence's beginning or after "I": "BERT is an AI model" is no refusal.
    r"|(?:^|[.!?,]\s*|(?:저는|나는|제가)\s.{0,12})"
    r"(?:AI|인공지능) ?(?:언어)? ?모델(?:로서|이기 때문에|이라서)"
    r"|죄송하지만,? .{0,30}"
    r"(?:도와드릴|도움을 드릴|제공할|제공해 드릴|답변할|답변드릴|대답할) 수 없",
    re.IGNORECASE | re.MULTILINE,
)


def _answers(conversation: Conversation) -> list[str]:
    """What the assistant says; beside calls it needs to say nothing."""
    return [m.content for m in conversation.messages if m.role == "assistant" and _says(m)]


def _says(message: Message) -> bool:
    return bool(message.content or not message.calls)


def _pairs(conversation: Conversation) -> list[tuple[str, str]]:
    """Each answer with the question before it."""
    pairs, question = [], ""
    for message in conversation.messages:
        if message.role == "user":
            question = message.content
        elif message.role == "assistant" and question and _says(message):
            pairs.append((question, message.content))
    return pairs


def _letters(text: str) -> str:
    """A text's letters and digits, in one case and one Unicode form."""
    return "".join(filter(str.isalnum, normalize("NFKC", text).casefold()))


def _letter_count(letters: str) -> int:
    """How many there are; a Hangul syllable and a Chinese character count twice."""
    return len(letters) + (HANGUL_WEIGHT - 1) * len(_SYLLABLE.findall(letters))


def _names(found: Counter[str]) -> str:
    return " and ".join(name for name, _ in found.most_common(2))


def _characters_of(gram: Sequence[str], words: Sequence[str]) -> int:
    """Characters of the words in an n-gram, wherever it stands, each word counted once."""
    n, covered = len(gram), [False] * len(words)
    for start, found in enumerate(ngrams(words, n)):
        if found == gram:
            covered[start : start + n] = [True] * n
    return sum(len(word) for word, marked in zip(words, covered, strict=True) if marked)


def _duplicate_characters(words: Sequence[str], n: int) -> int:
    """Characters of the words in n-grams that repeat an earlier one, each word counted once."""
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(words)
    for start, gram in enumerate(ngrams(words, n)):
        if gram in seen:
            covered[start : start + n] = [True] * n
        seen.add(gram)
    return sum(len(word) for word, marked in zip(words, covered, strict=True) if marked)
