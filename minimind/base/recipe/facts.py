"""The small world: things and what is true of them, in English and Korean. Knows no sentences.

facts.txt    dog=개 : legs four=네 개 : sound bark=멍멍 짖다
   ->        Thing(dog, 개, animal) and Fact("legs", dog, four), Fact("sound", dog, bark), ...
"""

from __future__ import annotations

from collections import defaultdict
from itertools import combinations, pairwise
from pathlib import Path
from typing import NamedTuple

TABLE = Path(__file__).parent / "facts.txt"
STEPS = ("day", "month", "season")  # orders that begin again; in the others, less comes before more


class Word(NamedTuple):
    """One meaning in both languages.

    Attributes:
        en: English; it ends in ~ if it isn't counted, in + if it is always plural, in ^ if there is
            only one.
        ko: Korean; verbs and adjectives in their dictionary form.
    """

    en: str
    ko: str


class Thing(NamedTuple):
    """Something to speak of: its word, and the section of the table that it stands in."""

    word: Word
    section: str


class Fact(NamedTuple):
    """Something true. `kind` is the subject's, where it has one."""

    relation: str
    subject: Word
    value: Word
    kind: Word | None = None


class World(NamedTuple):
    """Everything in a table.

    Attributes:
        things: in each section, in the table's order.
        facts: all of them.
        about: each thing's facts.
        kinds: the sections that are kinds of things, with their word.
        sayings: sentences in both languages.
    """

    things: dict[str, list[Thing]]
    facts: list[Fact]
    about: dict[Word, list[Fact]]
    kinds: dict[str, Word]
    sayings: list[Word]


def read_world(path: Path = TABLE) -> World:
    """Read a table of facts.

    Raises:
        ValueError: a line that isn't an entry, or a value whose Korean nothing has said.
    """
    world = World(defaultdict(list), [], defaultdict(list), {}, [])
    known: dict[str, str] = {}
    heading = ""  # of the section that is being read
    rows: list[Word] = []  # in it
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = line.strip()
        try:
            if line.startswith("== "):
                _close(world, heading, rows)
                heading, rows = line[3:], []
            elif line and not line.startswith("#"):
                rows.append(_entry(world, heading, line, known))
        except ValueError as error:
            raise ValueError(f"{path.name}:{number}: {error}") from None
    _close(world, heading, rows)
    for fact in world.facts:
        world.about[fact.subject].append(fact)
    return world


def _entry(world: World, heading: str, line: str, known: dict[str, str]) -> Word:
    """Take one line in; returns its thing's word."""
    if heading == "!saying":
        word = _word(line, {})
        world.sayings.append(word)
        return word
    name, *cells = line.split(" : ")
    word = _word(name.strip(), {})
    if not heading.startswith("!order"):
        known[word.en] = word.ko
        known[f"{heading.lstrip('!')} {word.en}"] = word.ko  # the color orange, not the fruit
    kind = None
    if not heading.startswith("!"):
        kind = _word(heading, {})
        world.kinds[kind.en] = kind
        world.facts.append(Fact("kind", word, kind, kind))
    world.things[heading.lstrip("!").split("=")[0].rstrip("~")].append(
        Thing(word, heading.lstrip("!").split("=")[0].rstrip("~"))
    )
    for cell in cells:
        relation, _, value = cell.strip().partition(" ")
        value = value.strip()
        korean = known.get(f"{relation} {value}")
        meant = Word(value, korean) if korean else _word(value, known)
        world.facts.append(Fact(relation, word, meant, kind))
    translates = not heading.startswith(("!order", "!unit", "!taste"))
    if translates and not word.en[0].isupper():
        world.facts.append(Fact("translate", word, word))
    return word


def _word(text: str, known: dict[str, str]) -> Word:
    english, equals, korean = text.partition("=")
    if not equals:
        if english not in known:
            raise ValueError(f"nothing says what {english!r} is in Korean; write {english}=...")
        korean = known[english]
    known[english] = korean.strip()
    return Word(english, korean.strip())


def _close(world: World, heading: str, rows: list[Word]) -> None:
    """Turn a section that is an order into facts about what comes next, or what is more."""
    if not heading.startswith("!order "):
        return
    kind = _word(heading.removeprefix("!order "), {})
    if kind.en not in STEPS:
        pairs = list(combinations(rows, 2))
        world.facts.extend(Fact(kind.en, less, more) for less, more in pairs)
        return
    world.facts.extend(
        Fact("next", first, second, kind) for first, second in pairwise([*rows, rows[0]])
    )
