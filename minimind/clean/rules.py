"""Rules for rows that teach a model little or harm it. Knows no files.

A rule is a function of a conversation and the thresholds; it gives evidence, or None. What a rule
can see in one row is here; duplicates are `near_duplicates`. Only what the assistant says is judged
where it is the answer that would be learned; a bad question with a good answer is good data.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from minimind.data.conversation import Conversation, Message, irregularities, parse_messages
from minimind.data.errors import excerpt
from minimind.text.look_alike import LOOK_ALIKE
from minimind.text.mojibake import broken_text
from minimind.text.ngrams import LONGEST, ngrams
from minimind.text.scripts import HANGUL_WEIGHT, scripts
from minimind.text.unsafe import unsafe_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Where each rule begins to object.

    Attributes:
        min_answer: letters and digits that an answer has at least, a Hangul syllable or a Chinese
            character counted twice; one digit or capital letter, to answer a choice, is enough.
        max_characters: of one message.
        repeated_lines: share of an answer's lines that stood before, from 6 lines on.
        repeated_ngrams: a factor on the shares of Gopher's rules, from 50 words on; 0 is off.
        repeated_unit: how often something of up to 20 characters may stand in a row.
        echo: letters of an answer, counted likewise, from which it counts as an echo.
        other_language: letters, likewise, of an answer without one letter of the question's script.
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
    """Why a row is rejected.

    Attributes:
        rule: its name.
        evidence: what it saw, in words.
    """

    rule: str
    evidence: str


def too_short(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer of no substance teaches to say nothing.

    A word may be all that was asked for, so that by default little is too short: raise `min_answer`
    for data whose answers ought to explain.
    """
    for answer in _answers(conversation):
        said = _normalized(answer)
        one_choice = len(said) == 1 and any(c.isdigit() or c.isupper() for c in answer)
        if said and _weight(said) < limits.min_answer and not one_choice:
            return f"the answer is {excerpt(answer)!r}"
    return None


def too_long(conversation: Conversation, limits: Thresholds) -> str | None:
    """A message longer than any context is a document, or several rows that ran together."""
    for message in conversation.messages:
        if len(message.content) > limits.max_characters:
            return f"{message.role}: {len(message.content):,} characters"
    return None


def empty_answer(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer without a letter, a digit or a picture teaches to stop at once."""
    for answer in _answers(conversation):
        if not any(unicodedata.category(c)[0] in "LN" or c in "♡♥" for c in answer) and not any(
            unicodedata.category(c) == "So" for c in answer
        ):
            return f"the answer is {excerpt(answer)!r}"
    return None


def echo(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer that only says the question again teaches to parrot."""
    for question, answer in _pairs(conversation):
        said = _normalized(answer)
        if _weight(said) >= limits.echo and said == _normalized(question):
            return f"question and answer are {excerpt(answer)!r}"
    return None


def repeated_lines(conversation: Conversation, limits: Thresholds) -> str | None:
    """Lines again and again are how a generator fails.

    Source: Rae et al. 2021 (Gopher), arXiv:2112.11446, table A1: duplicate line fraction 0.30.
    """
    for answer in _answers(conversation):
        # Closing braces and rules of a table repeat by nature: lines with words count.
        lines = [line.strip() for line in answer.splitlines() if sum(map(str.isalnum, line)) > 3]
        if len(lines) >= LEAST_LINES:
            share = 1 - len(set(lines)) / len(lines)
            if share > limits.repeated_lines:
                line, count = Counter(lines).most_common(1)[0]
                return f"{share:.0%} of {len(lines)} lines stood before; {count} × {line[:60]!r}"
    return None


def repeated_ngrams(conversation: Conversation, limits: Thresholds) -> str | None:
    """Phrases again and again are how a generator fails.

    Source: Rae et al. 2021 (Gopher), arXiv:2112.11446, table A1: the share of characters in the
    commonest 2-, 3- and 4-gram, and in all duplicate 5- to 10-grams. Gopher's documents have at
    least 50 words, and shorter answers aren't judged. The shares are doubled by default: answers
    are short, and sound ones go through steps worded alike (benchmarks/RESULTS.md, Cleaning).
    """
    for answer in _answers(conversation):
        words = answer[:LONGEST].split()
        if limits.repeated_ngrams and len(words) >= LEAST_WORDS:
            size = sum(map(len, words))
            for n, share in TOP_NGRAMS.items():
                gram, count = Counter(ngrams(words, n)).most_common(1)[0]
                found = count * sum(map(len, gram)) / size
                if count > 1 and found > share * limits.repeated_ngrams:
                    return f"{found:.0%} of the answer is {' '.join(gram)[:60]!r}, {count} times"
            for n, share in DUPLICATE_NGRAMS.items():
                found = _duplicate_share(words, n) / size
                if found > share * limits.repeated_ngrams:
                    return f"{found:.0%} of the answer are runs of {n} words that stood before"
    return None


def repeated_characters(conversation: Conversation, limits: Thresholds) -> str | None:
    """One character, syllable or word in a row is noise, also where there are no spaces."""
    for answer in _answers(conversation):
        for found in _UNIT.finditer(answer[:LONGEST]):
            count = len(found[0]) // len(found[1])
            if count >= limits.repeated_unit and any(map(str.isalpha, found[1])):
                return f"{found[1]!r} stands {count} times in a row"
    return None


def unsafe(conversation: Conversation, limits: Thresholds) -> str | None:
    """What an assistant must not say, by a list of patterns: see `unsafe`, and what it can't do."""
    for answer in _answers(conversation):
        if found := unsafe_text(answer):
            return f"{found[0]}: {found[1]!r}"
    return None


def broken_unicode(conversation: Conversation, limits: Thresholds) -> str | None:
    """Mojibake and lost characters teach to write them."""
    for message in conversation.messages:
        if found := broken_text(message.content):
            return f"{message.role}: {found}"
    return None


def other_language(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer in another script than its question teaches to change the language.

    Not where the question asks for it, has letters of both scripts, or the answer is code or
    broken, which is another rule's.
    """
    for question, answer in _pairs(conversation):
        asked, said = scripts(question), scripts(answer)
        if not (asked and said) or set(asked) & set(said):
            continue
        if "```" in answer or _ASKS_FOR_LANGUAGE.search(question) or broken_text(answer):
            continue
        if _weight(_normalized(answer)) >= limits.other_language:
            return f"asked in {_names(asked)}, answered in {_names(said)}: {excerpt(answer)!r}"
    return None


def refusal(conversation: Conversation, limits: Thresholds) -> str | None:
    """Stock phrases of other assistants' refusals teach to refuse, and to claim another name."""
    for answer in _answers(conversation):
        if found := _REFUSAL.search(answer):
            return f"the answer says {found[0]!r}"
    return None


def open_code_fence(conversation: Conversation, limits: Thresholds) -> str | None:
    """An answer whose code block never ends was cut, or teaches not to close one."""
    for answer in _answers(conversation):
        fences = len(_FENCE.findall(answer))
        if fences % 2:
            return f"{fences} lines begin with ```"
    return None


def control_tokens(conversation: Conversation, limits: Thresholds) -> str | None:
    """Template marks in a text were left by another tool; they would be learned as words.

    Where they only end each answer, as ###eos_token### does in a copy of Dolly, take them off.
    """
    for message in conversation.messages:
        if found := LOOK_ALIKE.search(message.content):
            return f"{message.role}: {found[0]!r}"
    return None


def role_order(conversation: Conversation, limits: Thresholds) -> str | None:
    """Turns out of turn are mostly an exporter's mistake."""
    found = irregularities(conversation)
    return ", ".join(found) or None


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
    conversation: Conversation | Iterable[Message | Mapping[str, object]],
    rules: Iterable[str | Rule] | None = None,
    thresholds: Thresholds = DEFAULT,
) -> list[Verdict]:
    """Say what is wrong with one conversation.

        [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "..."}]
        ->   [Verdict("empty_answer", "the answer is '...'")]

    Args:
        conversation: a Conversation, or a list of `{"role", "content"}` dicts.
        rules: names out of RULES, or functions like them; None for all of RULES.
        thresholds: where they begin to object.

    Returns:
        A Verdict for each rule that objects; an empty list if none does.

    Raises:
        DataError: the messages aren't a legal conversation.
        ValueError: no rule has that name, two have, or one gives what is no evidence.
    """
    if not isinstance(conversation, Conversation):
        conversation = Conversation(parse_messages(list(conversation)))
    return judge(conversation, named_rules(RULES if rules is None else rules), thresholds)


def judge(
    conversation: Conversation, rules: Mapping[str, Rule], thresholds: Thresholds
) -> list[Verdict]:
    """A Verdict for each rule, by its name, that objects.

    Raises:
        ValueError: a rule gives what is no evidence.
    """
    verdicts = []
    for name, rule in rules.items():
        evidence = rule(conversation, thresholds)
        if evidence is not None:
            if not (isinstance(evidence, str) and evidence):
                raise ValueError(
                    f"rule {name}: gave {evidence!r}; it gives evidence in words, or None"
                )
            verdicts.append(Verdict(name, evidence))
    return verdicts


def named_rules(rules: Iterable[str | Rule]) -> dict[str, Rule]:
    """Rules by their names.

    Raises:
        ValueError: no rule has that name, or two have.
    """
    found: dict[str, Rule] = {}
    for rule in rules:
        name = rule if isinstance(rule, str) else getattr(rule, "__name__", type(rule).__name__)
        if isinstance(rule, str) and rule not in RULES:
            raise ValueError(f"no rule is called {rule}; there are {', '.join(RULES)}")
        if name in found:
            raise ValueError(f"two rules are called {name}; give each a name of its own")
        found[name] = RULES[rule] if isinstance(rule, str) else rule
    return found


LEAST_LINES, LEAST_WORDS = 6, 50
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
# What templates and tokenizers, ours too, write around turns.
_UNIT = re.compile(r"(.{1,20}?)\1{9,}", re.DOTALL)
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
    # At a sentence's beginning, or after "I": "BERT is an AI model" is no refusal.
    r"|(?:^|[.!?,]\s*|(?:저는|나는|제가)\s.{0,12})"
    r"(?:AI|인공지능) ?(?:언어)? ?모델(?:로서|이기 때문에|이라서)"
    r"|죄송하지만,? .{0,30}"
    r"(?:도와드릴|도움을 드릴|제공할|제공해 드릴|답변할|답변드릴|대답할) 수 없",
    re.IGNORECASE | re.MULTILINE,
)


def _answers(conversation: Conversation) -> list[str]:
    return [message.content for message in conversation.messages if message.role == "assistant"]


def _pairs(conversation: Conversation) -> list[tuple[str, str]]:
    """Each answer with the question before it."""
    pairs, question = [], ""
    for message in conversation.messages:
        if message.role == "user":
            question = message.content
        elif message.role == "assistant" and question:
            pairs.append((question, message.content))
    return pairs


def _normalized(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _weight(text: str) -> int:
    """Letters and digits; what writes a syllable or a word in one counts twice."""
    return len(text) + (HANGUL_WEIGHT - 1) * len(_SYLLABLE.findall(text))


def _names(found: Counter[str]) -> str:
    return " and ".join(name for name, _ in found.most_common(2))


def _duplicate_share(words: Sequence[str], n: int) -> int:
    """Characters of the words that are part of an n-gram that stood before, each word once."""
    seen: set[tuple[str, ...]] = set()
    covered = [False] * len(words)
    for start, gram in enumerate(ngrams(words, n)):
        if gram in seen:
            covered[start : start + n] = [True] * n
        seen.add(gram)
    return sum(len(word) for word, marked in zip(words, covered, strict=True) if marked)
