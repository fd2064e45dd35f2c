"""Run the main job on data and weights that nobody here made, and write down what came of it.

    python -m benchmarks.real_runs korean  --data DIR
    python -m benchmarks.real_runs dolly   --data DIR --model SMOLLM2_DIR --epochs 3
    python -m benchmarks.real_runs identity --data DIR --model SMOLLM2_DIR

DIR holds korean_chatbot.ko.jsonl, dolly_151.en.jsonl and identity.json. Prints Markdown for
RESULTS.md: validation loss, supervised tokens/s, peak memory, five prompts before and after.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import minimind
from benchmarks.environment import environment


@dataclass(frozen=True)
class Case:
    file: str
    prompts: tuple[str, ...]
    fill: tuple[tuple[str, str], ...] = ()  # placeholders and what they become


CASES = {
    "korean": Case(
        "korean_chatbot.ko.jsonl",
        (
            "안녕하세요?",
            "오늘 너무 피곤해",
            "친구랑 싸웠어",
            "여행 가고 싶다",
            "좋아하는 사람이 생겼어",
        ),
    ),
    "dolly": Case(
        "dolly_151.en.jsonl",
        (
            "What is a good way to learn to cook?",
            "Name three animals that live in the sea.",
            "Why do leaves fall in autumn?",
            "Give me ideas for a weekend in a big city.",
            "Explain what a budget is.",
        ),
    ),
    "identity": Case(
        "identity.json",
        (
            "Who are you?",
            "What is your name?",
            "Who created you?",
            "Are you ChatGPT?",
            "Hello, what can you do?",
        ),
        (("{{name}}", "Mini"), ("{{author}}", "the minimind team")),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0],
        epilog="Other options go to minimind.sft.",
        allow_abbrev=False,
    )
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--model", help="folder of the base; default: the embedded one")
    parser.add_argument("--out", type=Path, help="keep the run here")
    arguments, options = parser.parse_known_args()
    case = CASES[arguments.case]
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / case.file
        text = (arguments.data / case.file).read_text(encoding="utf-8")
        for placeholder, value in case.fill:
            text = text.replace(placeholder, value)
        data.write_text(text, encoding="utf-8")
        out = arguments.out or Path(scratch) / "run"
        command = [str(data), "--out", str(out), *options]
        if arguments.model:
            command += ["--model", arguments.model]
        before = answers(arguments.model, case.prompts)
        done = subprocess.run(
            [sys.executable, "-m", "minimind.sft", *command],
            check=True, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        after = answers(str(out), case.prompts)
        record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    outcome = record["outcome"]
    memory = next(line for line in done.stdout.splitlines() if "peak memory" in line)
    print(f"```\n{done.stdout.split('training ')[0].strip()}\n```\n")
    print("| validation loss before | best (step) | last (step) | speed and memory |")
    print("|--|--|--|--|")
    print(
        f"| {outcome['first_loss']:.4f} | {outcome['best_loss']:.4f} ({outcome['best_step']}) "
        f"| {outcome['last_loss']:.4f} ({outcome['steps']}) | {memory} |\n"
    )
    print("| prompt | before | after |")
    print("|--|--|--|")
    for prompt, old, new in zip(case.prompts, before, after, strict=True):
        print(f"| {prompt} | {cell(old)} | {cell(new)} |")
    print()
    print(json.dumps(environment() | {"case": arguments.case} | outcome, ensure_ascii=False))


def answers(model: str | None, prompts: tuple[str, ...]) -> list[str]:
    """Greedy answers of at most 64 tokens."""
    loaded, tokenizer = minimind.load(model)
    return [
        minimind.reply(
            loaded,
            tokenizer,
            [{"role": "user", "content": prompt}],
            temperature=0,
            max_new_tokens=64,
        )
        for prompt in prompts
    ]


def cell(text: str) -> str:
    """Text for a Markdown table's cell, otherwise unedited."""
    return text.replace("|", "\\|").replace("\n", "<br>").strip() or "(nothing)"


if __name__ == "__main__":
    main()
