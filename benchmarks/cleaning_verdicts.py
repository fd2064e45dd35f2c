"""Compare what `minimind.clean` rejects in real sets with verdicts on record.

    python -m benchmarks.cleaning_verdicts --data ../shared/data/sft

The sets are cleaned whole, with every rule at its default. Of a seeded sample of their rows each
rejection has a verdict in data/cleaning_verdicts.jsonl: "right" where the row has the defect that
the rule names, "wrong" where it hasn't. The false positive rate is wrong ones over rows sampled.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from benchmarks.environment import environment
from benchmarks.harness import markdown
from minimind.clean.cleaning import DATASET_RULES, Cleaning, clean_rows
from minimind.clean.rules import DEFAULT, RULES
from minimind.data.conversation import parse_conversation

VERDICTS = Path(__file__).parent / "data" / "cleaning_verdicts.jsonl"
# Rows that are read: of the short sets all.
SAMPLE = {
    "korean_chatbot.ko.jsonl": 3000,
    "chatterbot.en.jsonl": 500,
    "chatterbot.ko.jsonl": 454,
    "dolly_151.en.jsonl": 151,
    "gsm8k_train.en.jsonl": 3000,
}
SEED = 0


class Rejection(NamedTuple):
    """A rule that objects to a row."""

    file: str
    line: int
    rule: str


def main() -> int:
    options = parse()
    found = rejections(options.data)
    if options.list:
        for rejection, (evidence, row) in found.items():
            entry = {**rejection._asdict(), "evidence": evidence, "row": row}
            print(json.dumps(entry, ensure_ascii=False))
        return 0
    verdicts = read_verdicts()
    print(table(found, verdicts))
    unread = [rejection for rejection in found if rejection not in verdicts]
    for file, line, rule in unread:
        print(f"no verdict yet: {file}:{line}: {rule}", file=sys.stderr)
    counts = Counter(rejection.rule for rejection in found)
    print(json.dumps(environment() | {"rows": sum(SAMPLE.values()), "rejections": counts}))
    return 1 if unread else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the sets")
    parser.add_argument("--list", action="store_true", help="each rejection and its row, to read")
    return parser.parse_args()


def sample(data: Path) -> set[tuple[str, int]]:
    """File and line of the rows that are read."""
    chance = random.Random(SEED)
    rows = set()
    for name, count in SAMPLE.items():
        lines = (data / name).read_bytes().count(b"\n")
        rows |= {(name, line) for line in chance.sample(range(1, lines + 1), count)}
    return rows


def rejections(data: Path) -> dict[Rejection, tuple[str, str]]:
    """Evidence and row of each rejection among the rows sampled."""
    cleaning = Cleaning(
        rules=RULES,
        dataset_rules=DATASET_RULES,
        thresholds=DEFAULT,
        parse=partial(parse_conversation, prompt_key="question", answer_key="answer"),  # GSM8K's
    )
    chosen = sample(data)
    names = {str(data / name): name for name in SAMPLE}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        out, rejected = Path(folder) / "out.jsonl", Path(folder) / "rejected.jsonl"
        clean_rows(list(names), cleaning, out, rejected, names=names)
        for text in rejected.read_text(encoding="utf-8").splitlines():
            entry = json.loads(text)
            if (entry["file"], entry["line"]) in chosen:
                for verdict in entry["verdicts"]:
                    key = Rejection(entry["file"], entry["line"], verdict["rule"])
                    found[key] = (verdict["evidence"], entry["row"])
    return found


def read_verdicts() -> dict[Rejection, str]:
    """Rejection -> "right" or "wrong"."""
    rows = map(json.loads, VERDICTS.read_text(encoding="utf-8").splitlines())
    return {Rejection(row["file"], row["line"], row["rule"]): row["verdict"] for row in rows}


def false_positives(
    found: Iterable[Rejection], verdicts: Mapping[Rejection, str], rule: str
) -> tuple[float, float]:
    """Wrong rejections by a rule over rows sampled: over all of them, and in the worst set."""
    wrong = Counter(it.file for it in found if it.rule == rule and verdicts.get(it) == "wrong")
    worst = max(wrong[file] / rows for file, rows in SAMPLE.items())
    return wrong.total() / sum(SAMPLE.values()), worst


def table(found: Iterable[Rejection], verdicts: Mapping[Rejection, str]) -> str:
    """By rule, how many rejections there are and were wrong."""
    found = list(found)
    lines = []
    for rule in (*RULES, *DATASET_RULES):
        said = [verdicts.get(rejection) for rejection in found if rejection.rule == rule]
        rates = [f"{rate:.2%}" for rate in false_positives(found, verdicts, rule)]
        counts = [len(said), said.count("wrong"), *rates, said.count(None)]
        lines.append([rule, *map(str, counts)])
    rows = f"wrong of {sum(SAMPLE.values()):,} rows"
    header = ["rule", "rejections", "wrong", rows, "in the worst set", "without a verdict"]
    return markdown(header, lines)


if __name__ == "__main__":
    sys.exit(main())
