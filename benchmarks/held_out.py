"""Score tuned models on prompts that are not in the sample: right, ended, in the right language.

    python -m benchmarks.held_out runs/conversations-1 [minimind/base ...]

Greedy, and sampled as the guide does (temperature 0.7, top-p 0.9) with three seeds. Two columns say
what the score is worth: how often a prompt's pattern matches the answers to other prompts, and how
many prompts the model's commonest answer alone would get right.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minimind
from benchmarks.environment import environment
from minimind.evaluate.evaluation import Evaluation, evaluate
from minimind.evaluate.metrics import Case, regex
from minimind.evaluate.questions import Question, read_questions
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig
from minimind.tokenizer import Tokenizer

PROMPTS = Path(__file__).parent / "data" / "held_out.jsonl"
GREEDY = SampleConfig(temperature=0, max_new_tokens=256)
SAMPLED = tuple(SampleConfig(temperature=0.7, top_p=0.9, seed=seed) for seed in range(3))
ROWS = 32  # prompts answered side by side
GROUPS = ("ko paraphrase", "en paraphrase", "ko fact", "en fact")
HEADER = (
    f"| model | answers | {' | '.join(GROUPS)} | end by themselves | in the prompt's language "
    "| patterns match others' | commonest answer |\n" + "|--" * (len(GROUPS) + 6) + "|"
)


@dataclass(frozen=True)
class Asked:
    """A prompt of the file.

    Attributes:
        question: what is asked, and the pattern.
        group: one of GROUPS.
        intent: what it is about: prompts of one intent may have one answer.
    """

    question: Question
    group: str
    intent: str


def read_prompts() -> list[Asked]:
    """All prompts, in the file's order."""
    lines = PROMPTS.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Asked(question, f"{row['language']} {row['kind']}", row["intent"])
        for question, row in zip(read_questions([str(PROMPTS)]), rows, strict=True)
    ]


def ask(
    model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Asked], sampling: SampleConfig
) -> dict[str, Any]:
    """What came of all prompts.

    Returns:
        Shares from 0 to 1: of the prompts of each group, those right; of all prompts, those whose
        answers `ended` and are `in_language` (of those with letters); `others`, of all pairs of a
        pattern and the answer to a prompt of its language and another intent, those that match;
        `commonest`, of all prompts, those that the commonest answer is right for; and it.
    """
    evaluation = Evaluation(
        sampling=sampling, scoring=False, metrics=("regex",), rows_per_batch=ROWS
    )
    questions = [prompt.question for prompt in prompts]
    records = list(evaluate(model, tokenizer, questions, evaluation))
    answers = [record.answer or "" for record in records]
    right: defaultdict[str, list[float]] = defaultdict(list)
    for prompt, record in zip(prompts, records, strict=True):
        right[prompt.group].append(record.sums["regex"][0])
    [(commonest, _)] = Counter(answers).most_common(1)
    scored = [record.sums["language"][0] for record in records if "language" in record.sums]
    return {
        **{group: _mean(values) for group, values in right.items()},
        "ended": _mean([record.sums["ended"][0] for record in records]),
        "in_language": _mean(scored),
        "others": _mean(_matches_of_others(prompts, answers)),
        "commonest": _mean([_matches(prompt, commonest) for prompt in prompts]),
        "commonest_answer": commonest,
    }


def _matches_of_others(prompts: Sequence[Asked], answers: Sequence[str]) -> list[float]:
    return [
        _matches(prompt, answer)
        for prompt in prompts
        for other, answer in zip(prompts, answers, strict=True)
        if prompt.group[:2] == other.group[:2] and prompt.intent != other.intent
    ]


def _matches(prompt: Asked, answer: str) -> float:
    return regex(Case("", answer, pattern=prompt.question.pattern)) or 0.0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def describe(name: str, answers: str, asked: Sequence[dict[str, Any]]) -> str:
    """A row of the table: the mean over seeds, and their range where there are several."""
    columns = (*GROUPS, "ended", "in_language", "others", "commonest")
    cells = [_cell([found[column] for found in asked]) for column in columns]
    return f"| {name} | {answers} | {' | '.join(cells)} |"


def _cell(shares: Sequence[float]) -> str:
    mean = f"{_mean(shares):.1%}"
    spread = f" ({min(shares):.1%}–{max(shares):.1%})"
    return mean + spread * (len(shares) > 1 and min(shares) < max(shares))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("runs", nargs="+", help="folders of models")
    parser.add_argument("--greedy", action="store_true", help="greedy answers alone")
    options = parser.parse_args(argv)
    prompts = read_prompts()
    counts = Counter(prompt.group for prompt in prompts)
    print(", ".join(f"{counts[group]} {group}s" for group in GROUPS) + f"\n\n{HEADER}")
    results: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for run in options.runs:
        model, tokenizer = minimind.load(run)
        results[run] = {}
        for answers, samplings in (("greedy", (GREEDY,)), ("temperature 0.7", SAMPLED)):
            if samplings == SAMPLED and options.greedy:
                continue
            asked = [ask(model, tokenizer, prompts, sampling) for sampling in samplings]
            print(describe(run, answers, asked), flush=True)
            results[run][answers] = asked
    print(json.dumps(environment() | {"held_out": results}, ensure_ascii=False))


if __name__ == "__main__":
    main()
