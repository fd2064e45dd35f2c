"""`python -m minimind.base.recipe.world --out ko.jsonl en.jsonl`: write the small world's texts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Annotated

import tyro
from tqdm import tqdm

from minimind.base.recipe.facts import read_world
from minimind.base.recipe.statements import Speaker
from minimind.base.recipe.stories import Teller
from minimind.base.recipe.sums import Reckoner

LANGUAGES = ("ko", "en")
SHARES = {
    "story": 36,
    "described": 16,
    "repeated": 12,
    "mixed": 8,
    "alike": 8,
    "listed": 5,
    "alone": 3,
    "sums": 11,
    "scene": 4,
}
"""How many of a hundred tries are of each kind of text."""
PATIENCE = 1000  # texts in a row that were there before: the world is told


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write texts about a small world, in Korean and English; no two are the same."""

    out: tuple[Path, Path]
    """The Korean and the English file."""
    megabytes: float = 25.0
    """Both files together, half each."""
    seed: int = 0
    """The same seed writes the same files."""


def texts(language: str, seed: int) -> Iterator[str]:
    """Texts that differ in more than names, until no new ones come."""
    speaker = Speaker(read_world(), language, Random(f"{language} {seed}"))
    teller = Teller(speaker)
    reckoner = Reckoner(teller)
    makers: dict[str, Callable[[], str]] = {
        "story": teller.story,
        "sums": reckoner.sums,
        "scene": reckoner.scene,
        "described": speaker.described,
        "repeated": speaker.repeated,
        "mixed": speaker.mixed,
        "alike": speaker.alike,
        "listed": speaker.listed,
        "alone": speaker.alone,
    }
    seen: set[bytes] = set()
    repeats = 0
    while repeats < PATIENCE:
        kind = speaker.random.choices(list(SHARES), list(SHARES.values()))[0]
        text = makers[kind]()
        key = hashlib.blake2b(teller.nameless(text).casefold().encode(), digest_size=8).digest()
        repeats = repeats + 1 if key in seen else 0
        if key not in seen:
            seen.add(key)
            yield text


def main(options: Options) -> None:
    """Write both files, and say how varied they are."""
    for language, path in zip(LANGUAGES, options.out, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        left = int(options.megabytes * 1e6 / len(LANGUAGES))
        lengths, words = [], Counter[str]()
        with path.open("w", encoding="utf-8") as file, tqdm(total=left, unit="B") as bar:
            for text in texts(language, options.seed):
                size = len(text.encode())
                if size > left:
                    break
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                left -= size
                lengths.append(size)
                words.update(text.casefold().split())
                bar.update(size)
        print(
            f"{path}: {len(lengths):,} texts, {sum(lengths):,} bytes, "
            f"{len(words):,} different words of {words.total():,}"
        )


def command() -> None:
    """Parse and run."""
    main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))


if __name__ == "__main__":
    command()
