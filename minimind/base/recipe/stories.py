"""Tell little stories with true facts in them. Knows no files but its plots.

"@ x=fruit+color p=child" and a line  ->  Anna went to the market ... Bananas are yellow. ...
"""

from __future__ import annotations

import re

from minimind.base.recipe.facts import Fact, Thing, Word
from minimind.base.recipe.grammar import expand, fill, read_sections
from minimind.base.recipe.statements import FOLDER, Speaker

CREATURES = ("animal", "bird", "reptile", "amphibian")
SEA = "in the sea"
HE = {"girl": ("she", "her", "her"), "boy": ("he", "his", "him")}
NARRATED = frozenset(("translate", "kind"))  # said less often: they don't belong in a story


class Teller:
    """Tells stories in a speaker's language."""

    def __init__(self, speaker: Speaker) -> None:
        self.speaker = speaker
        self.sections = read_sections(FOLDER / f"stories.{speaker.language}.txt")
        lines = self.sections.pop("")
        for name in HE:  # names stand side by side
            self.sections[name] = " ".join(self.sections[name]).split()
        self.plots = list(zip(lines[::2], lines[1::2], strict=True))

        names = "|".join(name for section in HE for name in self.sections[section])
        self._names = re.compile(rf"(?<!\w)(?:{names})")

    def nameless(self, text: str) -> str:
        """A text without its children's names: two that differ in these alone are one story."""
        return self._names.sub("*", text)

    def story(self) -> str:
        """A story, each time with other persons, things and turns."""
        random = self.speaker.random
        cast, text = random.choice(self.plots)
        slots: dict[str, str] = {}
        things: dict[str, Word] = {}
        for part in cast.lstrip("@ ").split():
            name, _, what = part.partition("=")
            self._bind(name, what, slots, things)
        style = self.speaker.style()
        said: set[Fact] = set()

        def special(name: str, form: str) -> str | None:
            return self._fact(things[name], style, said) if form == "fact" else None

        text = expand(text, self.sections, random)
        return fill(text, self.speaker.language, slots, style, special)

    def _bind(self, name: str, what: str, slots: dict[str, str], things: dict[str, Word]) -> None:
        """Choose who or what a name stands for."""
        random = self.speaker.random
        section, _, needed = what.partition("+")
        if section == "child":
            section = random.choice(list(HE))
            for form, pronoun in zip(("he", "his", "him"), HE[section], strict=True):
                slots[f"{name}.{form}"] = pronoun
        if section in self.sections:
            taken = set(slots.values())
            lines = [line for line in self.sections[section] if line not in taken]
            slots[name] = expand(random.choice(lines), self.sections, random)
            return
        relations = set(needed.split(",")) - {""}
        word = random.choice(
            [
                thing.word
                for thing in self._things(section)
                if thing.word not in things.values()
                and relations <= {fact.relation for fact in self.speaker.world.about[thing.word]}
            ]
        )
        things[name] = word
        slots[name] = self.speaker.of(word)
        for fact in self.speaker.world.about[word]:
            slots.setdefault(f"{name}.{fact.relation}", self.speaker.of(fact.value))

    def _things(self, section: str) -> list[Thing]:
        if section == "pet":
            kept = [fact.subject for fact in self.speaker.by_relation["keep"]]
            return [Thing(word, section) for word in kept]
        sections = CREATURES if section == "creature" else (section,)
        things = [thing for one in sections for thing in self.speaker.world.things[one]]
        if section != "creature":
            return things
        at_sea = {f.subject for f in self.speaker.by_relation["lives"] if f.value.en == SEA}
        return [thing for thing in things if thing.word not in at_sea]  # no whales under trees

    def _fact(self, word: Word, style: str, said: set[Fact]) -> str:
        """Something true of a thing that the story hasn't said yet; nothing where all is said."""
        facts = [fact for fact in self.speaker.world.about[word] if fact not in said]
        telling = [fact for fact in facts if fact.relation not in NARRATED]
        if not facts or (not telling and self.speaker.random.random() < 0.7):
            return ""
        fact = self.speaker.random.choice(telling or facts)
        said.add(fact)
        return self.speaker.say(fact, style)
