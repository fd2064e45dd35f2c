"""`python -m minimind.base.recipe.gather CORPUS --out FOLDER`: real texts as filtered documents."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from minimind.base.recipe.filter import EVERY, REVIEWS, Rule, objection

PASSAGE = 1200  # characters, about, of a passage cut from a book
SENTENCE = re.compile(r"(?<=[.!?”\"])\s+|(?<=니라)\s+")


def passages(text: str) -> Iterator[str]:
    """Cut a book at line ends, and lines as long as a book at sentence ends."""
    pieces: list[str] = []
    for line in text.splitlines():
        pieces += SENTENCE.split(line) if len(line) > 2 * PASSAGE else [line]
        while sum(map(len, pieces)) > PASSAGE or (not line and pieces):
            taken, size = [], 0
            while pieces and size <= PASSAGE:
                size += len(pieces[0])
                taken.append(pieces.pop(0))
            yield "\n".join(taken).strip()
    yield "\n".join(pieces).strip()


def without_joints(text: str) -> Iterator[str]:
    """The Bible in Basic English, whose verses lost the space between them: earth.And the ..."""
    yield from passages(re.sub(r"(?<=[a-z][.,:;?!])(?=[A-Z])", " ", text))


def blocks(text: str) -> Iterator[str]:
    """Texts parted by empty lines."""
    yield from re.split(r"\n\s*\n", text)


def storybooks(text: str) -> Iterator[str]:
    """African Storybooks that may be used for anything; not those under a CC-BY-NC license.

    Where blocks say their license, one that says none is no story; the Korean file has none at all.
    """
    says = "License:" in text
    for block in blocks(text):
        story, _, license_line = block.partition("License:")
        if not says or license_line.startswith(" [CC-BY]"):
            yield story.strip()


def lines(text: str) -> Iterator[str]:
    """A text a line."""
    yield from text.splitlines()


def rows(text: str) -> Iterator[str]:
    """The "text" of each row of JSONL."""
    for line in text.splitlines():
        yield json.loads(line)["text"]


class Source(NamedTuple):
    """Where texts come from.

    Attributes:
        name: of the file that is written, without .jsonl; its end is the language.
        files: a pattern of files in the corpus.
        cut: a file's text into documents.
        license: with whom to thank.
        rules: that keep documents out.
    """

    name: str
    files: str
    cut: Callable[[str], Iterator[str]]
    license: str
    rules: tuple[Rule, ...] = EVERY


SOURCES = (
    Source("books.en", "*_*.txt", passages, "public domain or CC0, Standard Ebooks"),
    Source("aesop.en", "aesop-for-children.txt", blocks, "public domain"),
    Source("storybooks.en", "asp-en.txt", storybooks, "CC-BY-4.0, African Storybook"),
    Source("storybooks.ko", "asp-ko.txt", storybooks, "CC-BY-4.0, African Storybook"),
    Source("fairytales.en", "fairytaleqa_sections.en.jsonl", rows, "Apache-2.0, FairytaleQA"),
    Source("bible.en", "bbe.en.txt", without_joints, "public domain, Bible in Basic English"),
    Source("bible.ko", "korrv.ko.txt", passages, "public domain, Korean Revised Version"),
    Source("react.ko", "react-ko.txt", passages, "CC-BY-4.0, React's documentation"),
    Source("vue.ko", "vue-ko.txt", passages, "CC-BY-4.0, Vue's documentation"),
    Source("rust.ko", "rust-ko.txt", passages, "MIT or Apache-2.0, the Rust book"),
    Source("opensource.ko", "opensource-guide-ko.txt", passages, "CC-BY-4.0, Open Source Guides"),
    Source("tensorflow.ko", "tensorflow-ko*.txt", passages, "CC-BY-4.0, TensorFlow"),
    Source("tldr.ko", "tldr-ko.txt", blocks, "CC-BY-4.0, tldr-pages"),
    Source("reviews.ko", "reviews.ko.txt", lines, "CC0, e9t/nsmc", REVIEWS),
)
GLOSSES = "WordNet 3.0 license, Princeton University; Debian's package wordnet-base"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Cut a corpus of real texts into documents, and leave out what a rule objects to."""

    corpus: Annotated[Path, tyro.conf.Positional]
    """The folder of texts."""
    out: Path
    """A folder: NAME.jsonl, rejected/NAME.jsonl with each reason, and provenance.json."""
    wordnet: Path | None = None
    """Where WordNet's index.noun and data.noun are, for glosses: /usr/share/wordnet."""


def glosses(folder: Path) -> Iterator[str]:
    """The commonest meaning of each noun that WordNet's authors met in texts.

    "hen: adult female chicken; adult female bird"
    """
    meanings = {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):  # a line of the license
            meanings[line[:8]] = line.rpartition(" | ")[2].strip()
    for line in (folder / "index.noun").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            # lemma n synsets pointers [symbols ...] senses tagged offset [offset ...]
            lemma, _, synsets, *rest = line.split()
            tagged, first = rest[-int(synsets) - 1], rest[-int(synsets)]
            if int(tagged) and lemma.isascii() and lemma.replace("_", "").isalpha():
                yield f"{lemma.replace('_', ' ')}: {meanings[first]}"


def keep(
    name: str, documents: Iterator[str], rules: tuple[Rule, ...], out: Path
) -> dict[str, object]:
    """Write the documents that no rule objects to, and the others with the reason; counts both."""
    seen: set[bytes] = set()
    counts: Counter[str] = Counter()
    size = 0
    (out / "rejected").mkdir(parents=True, exist_ok=True)
    with (
        (out / f"{name}.jsonl").open("w", encoding="utf-8") as kept,
        (out / "rejected" / f"{name}.jsonl").open("w", encoding="utf-8") as rejected,
    ):
        for text in filter(None, map(str.strip, documents)):
            key = hashlib.blake2b(" ".join(text.casefold().split()).encode()).digest()
            found = ("duplicate", "stood before") if key in seen else objection(text, rules)
            seen.add(key)
            counts[found[0] if found else "kept"] += 1
            if found:
                row = {"rule": found[0], "evidence": found[1], "text": text}
                rejected.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                size += len(text.encode())
                kept.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return {"bytes": size, "documents": dict(counts.most_common())}


def main(options: Options) -> None:
    """Gather every source that the corpus has."""
    provenance: dict[str, dict[str, object]] = {}
    for source in SOURCES:
        files = sorted(options.corpus.glob(source.files))
        if files:
            texts = (path.read_text(encoding="utf-8") for path in files)
            documents = (document for text in texts for document in source.cut(text))
            provenance[source.name] = {
                "license": source.license,
                "files": [path.name for path in files],
                **keep(source.name, documents, source.rules, options.out),
            }
    if options.wordnet:
        found = keep("glosses.en", glosses(options.wordnet), REVIEWS, options.out)
        provenance["glosses.en"] = {"license": GLOSSES, "files": ["data.noun"], **found}
    text = json.dumps(provenance, ensure_ascii=False, indent=2)
    (options.out / "provenance.json").write_text(text + "\n", encoding="utf-8")
    for name, facts in provenance.items():
        print(f"{name}: {facts['bytes']:,} bytes, {facts['documents']}")


def command() -> None:
    """Parse and run."""
    try:
        main(tyro.cli(Annotated[Options, tyro.conf.arg(name="")], description=__doc__))
    except OSError as error:
        sys.exit(f"error: {error}; name the folders of the corpus and of Debian's wordnet-base")


if __name__ == "__main__":
    command()
