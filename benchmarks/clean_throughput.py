"""Rows per second that `minimind.clean` looks at, its peak memory, and what each rule costs.

    python -m benchmarks.clean_throughput --rows 10000 100000

Rows are questions about Python's standard library, answered with lines drawn from its docstrings:
no two are alike, but that each hundredth is a copy and each hundredth nearly one. A measurement has
a process of its own, since a process's peak memory never falls; reading and writing are part of it.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.harness import Measures, markdown, spread
from benchmarks.workload import docstring_conversations
from minimind.clean.cleaning import DUPLICATE, NEAR_DUPLICATE, Cleaning, clean_rows
from minimind.clean.rules import DEFAULT, RULES
from minimind.data.reader import read_conversations

CASES: dict[str, Sequence[str]] = {
    "rules of one row": (),
    "and duplicates": (DUPLICATE,),
    "and near duplicates": (DUPLICATE, NEAR_DUPLICATE),
}
SOURCES = 2000  # conversations that rows are drawn from
LEAST_LINE = 20  # characters of a line of an answer
TIMED_ROWS = 2000  # by which rules are compared


def main() -> None:
    options = parse()
    if options.child:
        case, path = options.child
        print(json.dumps(clean(case, Path(path))))
        return
    results: dict[str, list[Measures]] = {}
    with tempfile.TemporaryDirectory() as name:
        for rows in options.rows:
            path = write_rows(Path(name) / "rows.jsonl", rows)
            for case in options.cases:
                runs = [child(case, path) for _ in range(options.rounds)]
                results[f"{rows:,} rows, {case}"] = runs
                print(f"{rows:,} rows, {case}: {runs}", file=sys.stderr)
        print(table(results) + "\n")
        by_rule = rule_times(write_rows(Path(name) / "rows.jsonl", TIMED_ROWS))
    print(rules_table(by_rule) + "\n")
    print(json.dumps(environment() | {"results": results, "microseconds by rule": by_rule}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000])
    parser.add_argument("--cases", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # what a child process does
    return parser.parse_args()


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """So many rows of two to eight lines of docstrings, the same for a seed and a Python."""
    rows = [row["messages"] for row in docstring_conversations(SOURCES, seed)]
    questions = [row[0]["content"] for row in rows]  # type: ignore[index]
    answers = [row[1]["content"] for row in rows]  # type: ignore[index]
    lines = [line for text in answers for line in text.splitlines() if len(line) >= LEAST_LINE]
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            if number % 100 < 98:
                question = rng.choice(questions)
                answer = "\n".join(rng.sample(lines, rng.randint(2, 8)))
            elif number % 100 == 99:  # nearly the row before, which is a copy
                answer += " Indeed."
            row = {"prompt": question, "completion": answer}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def child(case: str, path: Path) -> Measures:
    """Do a part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.clean_throughput", "--child", case, str(path)]
    answer: Measures = json.loads(subprocess.check_output(command))
    return answer


def clean(case: str, path: Path) -> Measures:
    """A child's work: the figures of one file."""
    cleaning = Cleaning(rules=RULES, dataset_rules=CASES[case], thresholds=DEFAULT)
    before = peak_memory()
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        started = time.perf_counter()
        report = clean_rows([str(path)], cleaning, Path(name) / "out", Path(name) / "rejected")
        seconds = time.perf_counter() - started
    return {
        "rows_per_second": report.rows / seconds,
        "imports_gb": before,
        "peak_gb": peak_memory(),
        "rejected": report.rows - report.kept,
    }


def peak_memory() -> float:
    """GB that this process has held at most, pages of mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def rule_times(path: Path) -> dict[str, float]:
    """Microseconds a row of each rule."""
    rows = list(read_conversations(path))
    times = {}
    for name, rule in RULES.items():
        started = time.perf_counter()
        for row in rows:
            rule(row, DEFAULT)
        times[name] = (time.perf_counter() - started) / len(rows) * 1e6
    return times


def table(results: dict[str, list[Measures]]) -> str:
    rows = []
    for case, runs in results.items():
        cells = [case, spread([run["rows_per_second"] for run in runs])]
        cells += [f"{max(run[name] for run in runs):.2f}" for name in ("imports_gb", "peak_gb")]
        rows.append([*cells, f"{runs[0]['rejected']:,.0f}"])
    header = ["case", "rows/s", "imports only, GB", "peak, GB", "rejected"]
    return markdown(header, rows)


def rules_table(times: dict[str, float]) -> str:
    total = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    rows = [[name, f"{value:.0f}", f"{value / total:.0%}"] for name, value in ordered]
    return markdown(["rule", "µs a row", "of all rules"], rows)


if __name__ == "__main__":
    main()
