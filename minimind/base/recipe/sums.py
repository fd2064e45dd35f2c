"""Say sums and differences of small numbers, plain and in little scenes. Knows no facts.

(2, 3)  ->  "2 plus 3 is 5."    "Tom has 2 apples and gets 3 more. Now Tom has 5 apples."
"""

from __future__ import annotations

from minimind.base.recipe import english, korean
from minimind.base.recipe.grammar import expand, fill, read_sections
from minimind.base.recipe.statements import FOLDER
from minimind.base.recipe.stories import HE, Teller

SMALL = 10  # most sums are of numbers up to this, and half of them make no more
LARGE = 50
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()


def spelled(number: int) -> str:
    """A number below 200 in English words."""
    if number < 20:
        return ONES[number]
    if number >= 100:
        return "one hundred" + (f" and {spelled(number - 100)}" if number > 100 else "")
    tens, one = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[one]}" if one else "")


class Reckoner:
    """Says sums in a teller's language, with the teller's children."""

    def __init__(self, teller: Teller) -> None:
        self.speaker = teller.speaker
        self.children = {name: teller.sections[name] for name in HE}
        self.templates = read_sections(FOLDER / f"sums.{self.speaker.language}.txt")

    def sums(self) -> str:
        """A few sums: of any numbers, with one number the same, or one sum in several wordings."""
        random = self.speaker.random
        style, how = self.speaker.style(), random.random()
        left, right = self._numbers()
        name = random.choice(("add", "subtract"))
        count = random.randint(1, 8)
        if how < 0.35:  # a column with one template: 1 plus 4 is 5. 2 plus 4 is 6. ...
            template = random.choice(self.templates[name])
            said = [
                self._say(template, name, start, right, style)
                for start in range(left, left + count + 1)
            ]
        elif how < 0.6:
            said = [self._some(name, left, right, style) for _ in range(count)]
        else:
            names = [random.choice(("add", "subtract", "compare")) for _ in range(count)]
            said = [self._some(name, *self._numbers(), style) for name in names]
        sentences = all(text.endswith(".") for text in said)  # 2 + 3 = 5 stands on its own line
        return (" " if sentences and random.random() < 0.8 else "\n").join(dict.fromkeys(said))

    def scene(self) -> str:
        """Something gets more or less, and how many there are then."""
        left, right = (max(1, number) for number in self._numbers())
        name = self.speaker.random.choice(("more", "less"))
        style = self.speaker.style()
        text = self._some(name, left, right, style)
        if self.speaker.random.random() < 0.5:
            text += " " + self._some({"more": "add", "less": "subtract"}[name], left, right, style)
        return text

    def _numbers(self) -> tuple[int, int]:
        random = self.speaker.random
        if random.random() < 0.15:
            return random.randint(0, LARGE), random.randint(0, LARGE)
        left = random.randint(0, SMALL)
        return left, random.randint(0, SMALL - left if random.random() < 0.6 else SMALL)

    def _some(self, name: str, left: int, right: int, style: str) -> str:
        template = self.speaker.random.choice(self.templates[name])
        return self._say(template, name, left, right, style)

    def _say(self, template: str, name: str, left: int, right: int, style: str) -> str:
        """Put two numbers, and what they make, into a template."""
        random = self.speaker.random
        if name in ("subtract", "less"):
            left, right, result = left + right, left, right
        else:
            result = left + right
        numbers = {"a": left, "b": right, "c": result, "d": right + random.randint(1, 9)}
        numbers |= {f"b{n}": right + n for n in (1, 2, 3)} | {"b+b": 2 * right}
        slots = {key: str(number) for key, number in numbers.items()}
        section = random.choice(list(HE))
        slots |= {"p": random.choice(self.children[section]), "p.he": HE[section][0]}
        thing = random.choice(self.templates["thing"])
        in_words = spelled if self.speaker.language == "en" else korean.reading
        slots |= {key.upper(): in_words(numbers[key]) for key in "abc"}

        if self.speaker.language == "ko":
            thing, counter = thing.split()

            def special(slot: str, form: str) -> str | None:
                if form != "n" and not form.startswith("n:"):
                    return None
                amount = f"{korean.counting(numbers[slot])} {counter}"
                return korean.inflect(amount, form[2:], style) if form[2:] else amount

        else:

            def special(slot: str, form: str) -> str | None:
                one = slot in numbers and numbers[slot] == 1
                if form == "n t":
                    return f"{numbers[slot]} {thing if one else english.plural(thing)}"
                return ("is" if one else "are") if form == "are" else None

        slots["t"] = thing
        text = expand(template, {}, random)
        return fill(text, self.speaker.language, slots, style, special)
