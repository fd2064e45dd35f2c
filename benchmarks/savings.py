"""What each exact saving of training gives: the same step with and without it.

    python -m benchmarks.savings --shape 26M
    python -m benchmarks.savings --sample             short rows with short answers

A saving is taken back by changing the batches, not the code, so that everything else is the same:

- "rows to their ends": inputs aren't cut after a row's last trained token;
- "all queries": the last layer attends from every token, not from the trained tails alone;
- "MLP and head everywhere": the last layer's MLP and the head work on every token of the tails
  (with loss weight 0 where nothing is trained), not at supervised positions alone;
- "none": all three taken back.

The gradients are the same each time: tests/test_savings.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.environment import environment
from benchmarks.harness import Measures, alternate, markdown, ratio, serve, spread
from benchmarks.train_throughput import Workload, add_training_options, ours
from benchmarks.workload import SHAPES
from minimind.data.dataset import Dataset
from minimind.data.packing import IGNORE_INDEX, Batch

SAMPLE = Path(__file__).parent.parent / "tests" / "data" / "conversations.jsonl"


def main() -> None:
    options = parse()
    if options.contestant:
        serve(contestant(options))
        return
    command = ["-m", "benchmarks.savings", *sys.argv[1:], "--contestant"]
    commands = {name: [*command, name] for name in VARIANTS}
    results = alternate(commands, options.rounds, options.threads)
    rows = "the sample" if options.sample else "docstrings"
    print(f"{options.only}, {rows}, {options.threads} threads\n\n{table(results)}\n")
    facts = environment(options.device) | {"threads": str(options.threads)}
    print(json.dumps(facts | {"results": results} if options.json else facts))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", dest="only", choices=SHAPES, default="26M")
    parser.add_argument("--sample", action="store_true", help="the sample's rows, not docstrings")
    add_training_options(parser)
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.files = [str(SAMPLE)] if options.sample else []
    return options


def contestant(options: argparse.Namespace) -> Callable[[], Measures]:
    workload = Workload(options)
    whole_rows, rewrite = VARIANTS[options.contestant]
    if whole_rows:
        to_their_ends(workload.dataset)
    return ours(workload, options, tokens_per_batch=4096, rewrite=rewrite)


def to_their_ends(dataset: Dataset) -> None:
    """Let training read all of each row but the last token, whatever is trained."""
    columns = dict(dataset.table.columns)
    columns["input_length"] = columns["length"] - 1
    dataset.table.columns = columns


def all_queries(batch: Batch) -> Batch:
    """Every token is in a tail."""
    return replace(
        batch,
        tails=torch.arange(len(batch)),
        tail_cu_seqlens=batch.cu_seqlens,
        tail_lengths=batch.lengths,
        supervised_in_tails=batch.supervised,
    )


def everywhere(batch: Batch) -> Batch:
    """Every token of the tails has a label; those that had none weigh nothing."""
    labels = batch.labels.clamp(min=0)
    trained = batch.labels != IGNORE_INDEX
    weights = trained.float()
    if batch.weights is not None:
        weights[batch.supervised] = batch.weights
    return replace(
        batch,
        labels=labels,
        supervised=batch.tails,
        supervised_in_tails=torch.arange(len(batch.tails)),
        weights=weights[batch.tails],
    )


VARIANTS: dict[str, tuple[bool, Callable[[Batch], Batch]]] = {
    "all savings": (False, lambda batch: batch),  # nothing is taken back
    "rows to their ends": (True, lambda batch: batch),
    "all queries": (False, all_queries),
    "MLP and head everywhere": (False, everywhere),
    "none": (True, lambda batch: everywhere(all_queries(batch))),
}


def table(results: dict[str, list[Measures]]) -> str:
    speeds = {name: [m["tokens"] / m["seconds"] for m in runs] for name, runs in results.items()}
    rows = []
    for name, speed in speeds.items():
        memory = f"{results[name][-1]['peak_gb']:.2f} GB"
        executed, least = (
            sum(m["executed_flops"] for m in results[n]) for n in (name, "all savings")
        )
        compared = [f"{executed / least:.3f}×", memory, ratio(speeds["all savings"], speed)]
        rows.append([name, spread(speed), *compared])
    header = ["taken back", "tokens/s", "operations", "peak memory", "all savings are"]
    return markdown(header, rows)


if __name__ == "__main__":
    main()
