"""Say facts in many wordings, alone and in short texts. Knows no files but its templates.

Fact("color", banana, yellow)  ->  "A banana is yellow." or "Yellow is the color of bananas." ...
"""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from random import Random

from minimind.base.recipe import english
from minimind.base.recipe.facts import Fact, Word, World
from minimind.base.recipe.grammar import STYLES, expand, fill, read_sections

FOLDER = Path(__file__).parent
# Kinds that have nothing in common, so that "not a bird but a tool" is true.
GROUPS = (
    ("animal", "bird", "insect", "reptile", "amphibian", "sea animal"),
    ("fruit", "vegetable", "grain", "food", "seasoning", "drink", "flower", "tree"),
    (
        *("tool", "machine", "household item", "kitchen tool", "school supply", "vehicle"),
        *("toy", "garment", "furniture~", "instrument"),
    ),
    ("job",),
    ("country",),
    ("sport",),
    ("place",),
)
EDIBLE = ("food", "seasoning", "drink")  # some animals and plants are these, too
WEIGHTS = {
    "capital": 5.0,
    "opposite": 3.0,
    "color": 3.0,
    "translate": 3.0,
    "legs": 2.0,
    "next": 3.0,
}
"""How often a relation is spoken of, beside the square root of how many facts it has."""


class Speaker:
    """Says what is true in one language.

    Args:
        world: the facts.
        language: en or ko.
        random: where every choice comes from.
    """

    def __init__(self, world: World, language: str, random: Random) -> None:
        self.world = world
        self.language = language
        self.random = random
        self.templates = read_sections(FOLDER / f"statements.{language}.txt")
        self.by_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in world.facts:
            self.by_relation[fact.relation].append(fact)
        self.relations = list(self.by_relation)
        self.weights = [
            len(facts) ** 0.5 * WEIGHTS.get(relation, 1.0)
            for relation, facts in self.by_relation.items()
        ]

    def style(self) -> str:
        """How a Korean text ends its sentences."""
        return self.random.choice(STYLES)

    def fact(self) -> Fact:
        """Some fact, rare relations as well as common ones."""
        relation = self.random.choices(self.relations, self.weights)[0]
        return self.random.choice(self.by_relation[relation])

    def say(self, fact: Fact, style: str) -> str:
        """One fact in one sentence."""
        return self.phrase(self.random.choice(self.templates[fact.relation]), fact, style)

    def reword(self, fact: Fact, count: int, style: str) -> list[str]:
        """One fact in up to `count` different sentences."""
        templates = self.templates[fact.relation]
        chosen = self.random.sample(templates, min(count, len(templates)))
        return [self.phrase(template, fact, style) for template in chosen]

    def phrase(self, template: str, fact: Fact, style: str) -> str:
        """Put a fact into a template."""
        slots = {"s": self.of(fact.subject), "v": self.of(fact.value)}
        if fact.relation == "translate":
            other = fact.value.ko if self.language == "en" else english.bare(fact.value.en)
            slots |= {"s": slots["s"], "v": other}
        if fact.kind is not None:
            slots |= {"k": self.of(fact.kind), "other": self.of(self.unlike(fact.kind))}
        text = expand(template, {}, self.random)
        return fill(text, self.language, slots, style)

    def of(self, word: Word) -> str:
        """A word in this language."""
        return word.en if self.language == "en" else word.ko

    def unlike(self, kind: Word) -> Word:
        """A kind that no thing of the given kind belongs to."""
        others = [name for group in GROUPS if kind.en not in group for name in group]
        kinds = [name for name in others if name not in EDIBLE]
        return self.world.kinds[self.random.choice(kinds)]

    # Short texts, each a document.

    def alone(self) -> str:
        """One sentence."""
        return self.say(self.fact(), self.style())

    def repeated(self) -> str:
        """One fact, said in several ways."""
        return " ".join(self.reword(self.fact(), self.random.randint(2, 5), self.style()))

    def mixed(self) -> str:
        """Facts about anything."""
        style = self.style()
        said = [self.say(self.fact(), style) for _ in range(self.random.randint(3, 7))]
        if (self.language == "en" or style == "요") and self.random.random() < 0.6:
            said.insert(self.random.randrange(len(said)), self.of(self.saying()))
        return " ".join(said)

    def saying(self) -> Word:
        """Something true that no relation holds."""
        return self.random.choice(self.world.sayings)

    def alike(self) -> str:
        """The same relation of several things, mostly in one wording."""
        relation = self.random.choices(self.relations, self.weights)[0]
        facts = self.by_relation[relation]
        facts = self.random.sample(facts, min(self.random.randint(3, 7), len(facts)))
        style = self.style()
        if self.random.random() < 0.5:
            template = self.random.choice(self.templates[relation])
            return " ".join(self.phrase(template, fact, style) for fact in facts)
        return " ".join(self.say(fact, style) for fact in facts)

    def described(self) -> str:
        """Most of what is known of one thing, with a beginning and sometimes an end."""
        style = self.style()
        words = [word for word, facts in self.world.about.items() if len(facts) >= 3]
        word = self.random.choice(words)
        facts = self.random.sample(self.world.about[word], len(self.world.about[word]))
        heard = Counter[str]()
        facts = [f for f in facts if heard.update([f.relation]) or heard[f.relation] <= 2]
        said = [
            text for fact in facts for text in self.reword(fact, self.random.randint(1, 2), style)
        ]
        subject = Fact("opening", word, word)
        if self.random.random() < 0.7:
            said.insert(0, self.say(subject, style))
        if self.random.random() < 0.4:
            said.append(self.say(subject._replace(relation="closing"), style))
        return " ".join(said[:10])

    def listed(self) -> str:
        """Things of one kind or of one color, and a fact of some of them."""
        style = self.style()
        if self.random.random() < 0.6:
            section = self.random.choice([s for s in self.world.kinds if s.rstrip("~") != "shape"])
            kind = self.world.kinds[section]
            words = [thing.word for thing in self.world.things[section.rstrip("~")]]
            name, slots = "list", {"k": self.of(kind)}
        else:
            value = self.random.choice(self.by_relation["color"]).value
            words = [fact.subject for fact in self.by_relation["color"] if fact.value == value]
            name, slots = "same color", {"v": self.of(value)}
        if len(words) < 2:
            return self.alike()
        words = self.random.sample(words, min(self.random.randint(2, 5), len(words)))
        text = expand(self.random.choice(self.templates[name]), {}, self.random)
        plain = [self.of(word) for word in words]
        slots["list"] = english.joined(plain) if self.language == "en" else ", ".join(plain)
        said = [fill(text, self.language, slots, style)]
        for word in self.random.sample(words, self.random.randint(1, len(words))):
            said.append(self.say(self.random.choice(self.world.about[word]), style))
        return " ".join(said)
