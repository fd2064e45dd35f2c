"""Turn templates into sentences. Knows no facts.

[a|b] one of two      <time> a line of the section "time"      {s:form} a word, inflected
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

from minimind.base.recipe import english, korean

STYLES = ("요", "요", "요", "요", "다", "니다")  # of Korean texts, as often as they stand here
INFLECT = {"en": english.inflect, "ko": korean.inflect}
_CHOICE = re.compile(r"\[([^\[\]]*)\]")
_SECTION = re.compile(r"<([^<>]+)>")
_SLOT = re.compile(r"\{([^{}:]+)(?::([^{}]*))?\}")
_SENTENCE = re.compile(r'(^|[.!]"? )("?)([a-z])')


def read_sections(path: Path) -> dict[str, list[str]]:
    """Lines under "== name" by that name; lines under none, such as plots, by ""."""
    sections: dict[str, list[str]] = {"": []}
    name = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("== "):
            name = line[3:].strip()
            sections[name] = []
        elif line.startswith("@"):
            name = ""
            sections[name].append(line)
        elif line.strip() and not line.startswith("#"):
            sections[name].append(line.strip())
    return sections


def expand(text: str, sections: Mapping[str, list[str]], random: Random) -> str:
    """Choose until nothing is left to choose.

    Raises:
        ValueError: no section has that name.
    """
    while found := _SECTION.search(text):
        if found[1] not in sections:
            raise ValueError(f"no section is called {found[1]!r}; there are {', '.join(sections)}")
        text = text[: found.start()] + random.choice(sections[found[1]]) + text[found.end() :]
    while found := _CHOICE.search(text):
        text = text[: found.start()] + random.choice(found[1].split("|")) + text[found.end() :]
    return text


def fill(
    text: str,
    language: str,
    slots: Mapping[str, str],
    style: str,
    special: Callable[[str, str], str | None] = lambda name, form: None,
) -> str:
    """Put words into a template's slots; a name that is no slot is itself the word.

    Args:
        special: given name and form, a whole text for a slot, or None.
    """

    def word(found: re.Match[str]) -> str:
        name, form = found[1], found[2] or ""
        text = special(name, form)
        return INFLECT[language](slots.get(name, name), form, style) if text is None else text

    return tidy(_SLOT.sub(word, text), language)


def tidy(text: str, language: str) -> str:
    """Single spaces; English sentences begin with a capital."""
    text = re.sub(r" +([.,!])", r"\1", " ".join(text.split()))
    if language == "ko":
        return text
    return _SENTENCE.sub(lambda found: found[1] + found[2] + found[3].upper(), text)
