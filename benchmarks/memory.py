"""Memory and speed of training at different micro-batch sizes.

    python -m benchmarks.memory --shape 26M --tokens-per-batch 1024 2048 4096

The peak is of the whole process, PyTorch itself included (on CUDA: of the GPU's memory). Each size
has a process of its own, since a process's peak never falls; they take turns, round by round.
`scoring` is evaluation: the loss of the same rows without gradients, at the largest size.
`benchmarks.loss_memory` measures the loss alone, at large vocabularies.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.environment import environment
from benchmarks.harness import Measures, alternate, markdown, ratio, serve, spread
from benchmarks.train_throughput import Workload, add_training_options, ours
from benchmarks.workload import SHAPES
from minimind.training.environment import choose_device
from minimind.training.scoring import score

SCORING = "scoring"


def main() -> None:
    options = parse()
    if options.contestant:
        serve(contestant(options))
        return
    device = choose_device(options.device)
    command = ["-m", "benchmarks.memory", *sys.argv[1:], "--contestant"]
    names = [*map(str, sorted(options.tokens_per_batch, reverse=True)), SCORING]
    if options.peers:
        from benchmarks.peers import available

        names += available(device)
    commands = {name: [*command, name] for name in names}
    together = device.type == "cpu"
    results = alternate(commands, options.rounds, options.threads, together=together)
    print(f"{options.only}, {options.threads} threads\n\n{table(results)}\n")
    facts = environment(str(device)) | {"threads": str(options.threads)}
    print(json.dumps(facts | {"results": results} if options.json else facts))
    if options.plot:
        plot(results, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", dest="only", choices=SHAPES, default="26M")
    parser.add_argument("--tokens-per-batch", type=int, nargs="*", default=[1024, 2048, 4096])
    add_training_options(parser)
    parser.add_argument("--peers", action="store_true", help="needs the bench extra")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.set_defaults(files=[])
    return parser.parse_args()


def contestant(options: argparse.Namespace) -> Callable[[], Measures]:
    """What does one round of `options.contestant`."""
    workload = Workload(options)
    if options.contestant == SCORING:
        return scoring(workload, options)
    if options.contestant.isdigit():
        return ours(workload, int(options.contestant))
    from benchmarks.peers import PEERS

    return PEERS[options.contestant](workload)


def scoring(workload: Workload, options: argparse.Namespace) -> Callable[[], Measures]:
    """Evaluation of each round's rows."""
    model = workload.new_model()
    rounds = workload.rounds()

    def work() -> Measures:
        steps = next(rounds)
        rows = workload.dataset.select(np.concatenate(steps))
        start = time.perf_counter()
        budget = max(options.tokens_per_batch)
        score(model, rows, tokens_per_batch=budget, precision=workload.precision)
        return workload.measures(steps, time.perf_counter() - start, None)

    return work


def table(results: dict[str, list[Measures]]) -> str:
    speeds = {name: [m["tokens"] / m["seconds"] for m in runs] for name, runs in results.items()}
    largest = next(iter(speeds.values()))
    rows = [
        [name, f"{results[name][-1]['peak_gb']:.2f} GB", spread(speed), ratio(speed, largest)]
        for name, speed in speeds.items()
    ]
    return markdown(["tokens a micro-batch", "peak memory", "tokens/s", "of the largest's"], rows)


def plot(results: dict[str, list[Measures]], path: Path) -> None:
    """Peak memory and speed over the micro-batch's tokens."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    results = {size: runs for size, runs in results.items() if size.isdigit()}
    sizes = [int(size) for size in results]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot(sizes, [runs[-1]["peak_gb"] for runs in results.values()], "o-")
    left.set(title="peak memory, GB", xlabel="tokens a micro-batch", ylim=0)
    speeds = [[m["tokens"] / m["seconds"] for m in runs] for runs in results.values()]
    right.plot(sizes, [statistics.median(speed) for speed in speeds], "o-")
    right.set(title="tokens/s", xlabel="tokens a micro-batch", ylim=0)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
