"""`python -m minimind.base.recipe.questions --out FILE --apart FILES`: ask for facts, once each.

Fact("color", banana, yellow)  ->  What is the color of a banana?  A banana is yellow.

The base has read the facts but no question. Few facts, each asked for in many wordings, teach to
choose among their answers; many facts, each asked for once, teach to say what was read.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from random import Random
from typing import Annotated, Any, NamedTuple

import tyro

from minimind.base.recipe import english
from minimind.base.recipe.facts import Fact, Word, World, read_world
from minimind.base.recipe.grammar import fill, read_sections
from minimind.base.recipe.statements import FOLDER, Speaker
from minimind.data.errors import DataError
from minimind.data.reader import read_rows

STYLE = "요"  # of Korean answers
SIGNS = {"add": 1, "subtract": -1}
NUMBERS = range(1, 10)
COMPARED = ("size", "speed", "weight")  # relations that a thing has to many others
SYSTEM = {"ko": "당신은 친절한 도우미입니다.", "en": "You are a helpful assistant."}
ONE_IN = 8  # conversations has a second question; one in as many a system prompt
HELD_OUT_LIMIT, TAUGHT_LIMIT = 0.6, 0.85  # of the character 4-grams that two prompts may share

_HANGUL = re.compile("[가-힣]")

Sum = dict[str, str]  # its numbers as slots: a, b and, the result, c


class Prompt(NamedTuple):
    """What is asked elsewhere, by its character 4-grams, and the share that may be the same."""

    grams: frozenset[str]
    limit: float


class Reserved(NamedTuple):
    """A fact that an answer mustn't give away: it holds all `words` and matches `pattern`."""

    words: list[str]
    pattern: re.Pattern[str]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write conversations that ask for facts of the small world, in Korean and English by turns."""

    out: Path
    """A JSONL file of "messages"."""
    apart: tuple[Path, ...] = ()
    """JSONL files to keep apart from: farther, and from the facts, if rows have a "pattern"."""
    most: int = 60
    """Facts of one relation."""
    seed: int = 0
    """The same seed writes the same file."""

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"--most is {self.most}; use 1 or more")
        if self.out.resolve() in {path.resolve() for path in self.apart}:
            raise ValueError(f"--out {self.out} is one of --apart; name another file")


class Asker:
    """Asks in one language.

    Args:
        world: the facts.
        language: en or ko.
        apart: rows to keep apart from, as in `Options.apart`.
        random: where every choice comes from.

    Raises:
        ValueError: a row is of a fact that isn't in the table.
    """

    def __init__(
        self, world: World, language: str, apart: list[dict[str, Any]], random: Random
    ) -> None:
        self.language = language
        self.random = random
        self.speaker = Speaker(world, language, random)
        self.templates = read_sections(FOLDER / f"questions.{language}.txt")
        self.prompts = [
            Prompt(_grams(text), HELD_OUT_LIMIT if "pattern" in row else TAUGHT_LIMIT)
            for row in apart
            for text in _asked(row)
            if (_HANGUL.search(text) is not None) == (language == "ko")
        ]
        self.reserved = [
            Reserved(self._words(row["intent"]), re.compile(row["pattern"], re.IGNORECASE))
            for row in apart
            if (row.get("kind"), row.get("language")) == ("fact", language)
        ]

    def conversations(self, most: int) -> Iterator[list[dict[str, str]]]:
        """All questions with their answers, some two in a row, some after a system prompt."""
        pairs = [p for name in self.templates for p in islice(self._pairs(name), most)]
        self.random.shuffle(pairs)
        while pairs:
            turns = [pairs.pop() for _ in range(1 + self._sometimes()) if pairs]
            system = [("system", SYSTEM[self.language])] * self._sometimes()
            said = chain(system, *(zip(("user", "assistant"), turn, strict=True) for turn in turns))
            yield [{"role": role, "content": text} for role, text in said]

    def _pairs(self, relation: str) -> Iterator[tuple[str, str]]:
        """Questions with their answers, apart from other prompts and no reserved fact."""
        *wordings, answer = self.templates[relation] or [""]
        abouts = self._sums(SIGNS[relation]) if relation in SIGNS else self._facts(relation)
        for about in self.random.sample(abouts, len(abouts)):
            said = self._say(answer.removeprefix("= "), about)
            asked = (self._say(w, about) for w in self.random.sample(wordings, len(wordings)))
            question = next(filter(self._is_apart, asked), None)
            if question and not self._is_reserved(said):
                self.prompts.append(Prompt(_grams(question), TAUGHT_LIMIT))
                yield question, said

    def _facts(self, relation: str) -> list[Fact | Sum]:
        """One fact of each word, so that a question has one answer; none that says nothing."""
        facts = [fact for fact in self.speaker.by_relation[relation] if not self._is_idle(fact)]
        by_word = {self._root(fact.subject): fact for fact in facts}
        return [*(facts if relation in COMPARED else by_word.values())]

    def _sums(self, sign: int) -> list[Fact | Sum]:
        sums = [(a, b, a + b) if sign > 0 else (a + b, b, a) for a in NUMBERS for b in NUMBERS]
        return [dict(zip("abc", map(str, numbers), strict=True)) for numbers in sums]

    def _say(self, template: str, about: Fact | Sum) -> str:
        if isinstance(about, Fact):
            return self.speaker.phrase(template, about, STYLE)
        return fill(template, self.language, about, STYLE)

    def _sometimes(self) -> bool:
        return self.random.randrange(ONE_IN) == 0

    def _is_apart(self, question: str) -> bool:
        grams = _grams(question)
        return all(len(grams & p.grams) <= p.limit * len(grams | p.grams) for p in self.prompts)

    def _is_reserved(self, answer: str) -> bool:
        return any(
            all(word.casefold() in answer.casefold() for word in reserved.words)
            and reserved.pattern.search(answer)
            for reserved in self.reserved
        )

    def _is_idle(self, fact: Fact) -> bool:
        """Whether it is as "a baby goose is a baby goose", or "a park is a place"."""
        if fact.relation == "baby":
            return self._root(fact.subject) in self._root(fact.value)
        return fact.relation == "kind" and fact.value.en in ("job", "place")

    def _words(self, intent: str) -> list[str]:
        """What "color lemon" is about, in this language: lemon, 레몬; "sum 6 3": 6 and 3."""
        relation, _, about = intent.partition(" ")
        if relation in ("sum", "difference"):
            return about.split()
        for fact in self.speaker.by_relation[relation]:
            if english.bare(fact.subject.en) == about:
                return [self._root(fact.subject)]
        raise ValueError(f"intent {intent}: facts.txt has no such fact; name relation and subject")

    def _root(self, word: Word) -> str:
        return english.bare(word.en) if self.language == "en" else word.ko.removesuffix("다")


def read_apart(paths: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Rows of "messages".

    Raises:
        DataError: a file can't be read, or a row isn't one of "messages".
    """
    found = []
    for row in read_rows(paths) if paths else ():
        if isinstance(row, DataError):
            raise row
        value: Any = row.value
        try:
            if not all(isinstance(text, str) for text in _asked(value)):
                raise TypeError
        except (TypeError, KeyError):
            fact, remedy = "isn't a row of messages", "give roles and contents"
            raise DataError("no_messages", fact, remedy, row.path, row.line) from None
        found.append(value)
    return found


def _asked(row: Any) -> list[str]:
    """What a row's user says, each turn by itself and all together."""
    said = [message["content"] for message in row["messages"] if message["role"] == "user"]
    return [*said, "\n".join(said)]


def _grams(text: str) -> frozenset[str]:
    plain = "".join(filter(str.isalnum, text.casefold()))
    return frozenset(plain[i : i + 4] for i in range(max(1, len(plain) - 3)))


def main(options: Options) -> None:
    """Write the file, and say how much it holds."""
    apart = read_apart(options.apart)
    askers = [
        Asker(read_world(), language, apart, Random(f"{language} {options.seed}"))
        for language in SYSTEM
    ]
    both = [list(asker.conversations(options.most)) for asker in askers]
    with options.out.open("w", encoding="utf-8") as file:
        for messages in filter(None, chain.from_iterable(zip_longest(*both))):
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    counts = (f"{len(rows):,} in {name}" for name, rows in zip(SYSTEM, both, strict=True))
    print(f"{options.out}: conversations: {', '.join(counts)}")


def command() -> None:
    """Parse and run."""
    try:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
    except (OSError, ValueError, re.error) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    command()
