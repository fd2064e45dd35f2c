"""Training speed: tokens per second, and the share of the machine's matrix-product peak.

    python -m benchmarks.train_throughput                          ours, shapes 5M and 26M
    python -m benchmarks.train_throughput --shape 26M --peers      beside others' loops
    python -m benchmarks.train_throughput --compiled               beside our compiled loop
    python -m benchmarks.train_throughput --model DIR data.jsonl   own weights, own rows

Everyone trains on the same conversations, 16 a step, and is timed over whole steps: forward,
backward, clipping, AdamW. Tokens are the conversations' own, whatever padding somebody adds. Each
contestant is a process; they take turns, and the peak is measured in turns with them, in the type
that products have: float32 on a CPU, unless --precision says otherwise.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import minimind
from benchmarks.environment import environment
from benchmarks.flops import executed_flops, model_flops
from benchmarks.harness import (
    Measures,
    alternate,
    markdown,
    matmul_peak,
    ratio,
    serve,
    spread,
    synchronize,
)
from benchmarks.workload import SHAPES, docstring_dataset
from minimind.data.build import DataOptions, build_dataset
from minimind.data.packing import cut, make_batch
from minimind.model.transformer import Transformer
from minimind.training.environment import choose_device
from minimind.training.loop import train_step
from minimind.training.precision import DTYPES, Precision, resolve_precision
from minimind.training.state import TrainConfig, TrainState

PER_STEP = 16  # conversations
OURS = {"ours": 4096, "ours, 1,024 a micro-batch": 1024}  # tokens of a micro-batch, at most
COMPILED = "ours, compiled"
PEAK = "matrix product"


def main() -> None:
    options = parse()
    if options.contestant:
        serve(contestant(options))
        return
    results = {}
    for shape in [str(options.model)] if options.model else options.shape:
        command = ["-m", "benchmarks.train_throughput", *sys.argv[1:], "--only", shape]
        names = [PEAK, *OURS, *([COMPILED] if options.compiled else [])]
        if options.peers:
            from benchmarks.peers import available

            names += available()
        commands = {name: [*command, "--contestant", name] for name in names}
        rounds = alternate(commands, options.rounds, options.threads)
        print(f"{shape}, {options.threads} threads\n\n{table(rounds)}\n", flush=True)
        results[shape] = rounds
    facts = environment(options.device) | {"threads": str(options.threads)}
    facts["precision"] = precision_of(options)
    print(json.dumps(facts | {"results": results} if options.json else facts))
    if options.plot:
        plot(results, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="JSONL rows; default docstrings")
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["5M", "26M"])
    add_training_options(parser)
    parser.add_argument("--compiled", action="store_true", help="ours, compiled, too")
    parser.add_argument("--peers", action="store_true", help="needs the bench extra")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peers and precision_of(options) != "fp32":
        parser.error("--peers are measured in fp32; use --precision fp32")
    return options


def precision_of(options: argparse.Namespace) -> Precision:
    """What products are computed in: asked for, else float32 on a CPU, so that all do the same."""
    device = choose_device(options.device)
    plain: Precision = "fp32" if device.type == "cpu" else "auto"
    return resolve_precision(options.precision or plain, device)


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark that trains can be asked."""
    parser.add_argument("--model", type=Path, help="a folder with weights, in place of --shape")
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="of products")
    parser.add_argument("--json", action="store_true", help="print every round's figures, too")
    parser.add_argument("--plot", type=Path)


class Workload:
    """The same rows for everybody, `PER_STEP` a step, over and over."""

    def __init__(self, options: argparse.Namespace) -> None:
        _, tokenizer = minimind.load()
        self.folder = options.model
        if options.model:
            model, tokenizer = minimind.load(options.model)
            self.config = model.config
        else:
            self.config = replace(SHAPES[options.only], max_position_embeddings=8192)
            if options.files:  # whose ids are the tokenizer's
                self.config = replace(self.config, vocab_size=tokenizer.vocab_size)
        if options.files:
            self.dataset, _, _ = build_dataset(
                options.files, tokenizer, DataOptions(max_length=512)
            )
        else:
            self.dataset = docstring_dataset(tokenizer, vocabulary=self.config.vocab_size)
        self.steps_per_round = options.steps

    def rounds(self) -> Iterator[list[np.ndarray]]:
        """Each round's steps: the rows of each."""
        order = np.arange(len(self.dataset))
        while True:
            used, order = np.split(order, [PER_STEP * self.steps_per_round])
            order = np.concatenate([order, used])
            yield np.split(used, self.steps_per_round)

    def new_model(self) -> Transformer:
        if self.folder:
            return minimind.load(self.folder)[0]
        return Transformer(self.config).initialize()

    def measures(self, steps: list[np.ndarray], seconds: float, executed: float | None) -> Measures:
        rows = np.concatenate(steps)
        lengths = self.dataset.column("length")[rows].tolist()
        counted = {} if executed is None else {"executed_flops": executed}
        return counted | {
            "seconds": seconds,
            "tokens": sum(lengths),
            "supervised": int(self.dataset.column("supervised")[rows].sum()),
            "model_flops": model_flops(self.config, lengths),
        }


def contestant(options: argparse.Namespace) -> Callable[[], Measures]:
    """What does one round of `options.contestant`."""
    if options.contestant == PEAK:
        device = choose_device(options.device)
        dtype = DTYPES[precision_of(options)]
        return lambda: {"flops_per_second": matmul_peak(device, 2.0, dtype)}
    workload = Workload(options)
    if options.contestant in OURS:
        return ours(workload, options, OURS[options.contestant])
    if options.contestant == COMPILED:
        return ours(workload, options, OURS["ours"], compiled=True)
    from benchmarks.peers import PEERS

    return PEERS[options.contestant](workload)


def ours(
    workload: Workload,
    options: argparse.Namespace,
    tokens_per_batch: int,
    *,
    compiled: bool = False,
) -> Callable[[], Measures]:
    """Our loop."""
    device = choose_device(options.device)
    model = workload.new_model().to(device)
    config = TrainConfig(precision=precision_of(options))
    state = TrainState(model, config)
    if compiled:
        warnings.simplefilter("error", UserWarning)  # never measure a fall-back under this name
        model.compile_training()
    rounds = workload.rounds()
    inputs = workload.dataset.column("input_length").astype(np.int64)

    def work() -> Measures:
        steps = next(rounds)
        groups = [cut(rows, inputs[rows], tokens_per_batch) for rows in steps]
        batches = [[make_batch(workload.dataset, group) for group in step] for step in groups]
        start = time.perf_counter()
        for step in batches:
            train_step(model, step, config, state, 1.0)
        synchronize(device)
        seconds = time.perf_counter() - start
        executed = sum(executed_flops(model.config, b) for step in batches for b in step)
        return workload.measures(steps, seconds, executed)

    return work


def table(results: dict[str, list[Measures]]) -> str:
    peaks = [measures["flops_per_second"] for measures in results[PEAK]]
    rows = [[PEAK, "", "", "", f"{spread([p / 1e9 for p in peaks])} GFLOP/s", "", ""]]
    speeds = {
        name: [m["tokens"] / m["seconds"] for m in rounds]
        for name, rounds in results.items()
        if name != PEAK
    }
    for name, speed in speeds.items():
        rounds = results[name]
        supervised = [m["supervised"] / m["seconds"] for m in rounds]
        shares = {kind: share(rounds, peaks, kind) for kind in ("model_flops", "executed_flops")}
        row = [name, spread(speed), spread(supervised), shares["model_flops"]]
        row += [shares["executed_flops"], f"{rounds[-1]['peak_gb']:.2f} GB"]
        rows.append([*row, ratio(speeds["ours"], speed)])
    header = ["contestant", "tokens/s", "supervised tokens/s", "of peak, model FLOP/s (MFU)"]
    return markdown([*header, "of peak, executed", "peak memory", "ours is"], rows)


def share(rounds: list[Measures], peaks: list[float], kind: str) -> str:
    """Of the peak, round by round."""
    if kind not in rounds[0]:
        return "not counted"
    return spread([m[kind] / m["seconds"] / p for m, p in zip(rounds, peaks, strict=True)], ".0%")


def plot(results: dict[str, dict[str, list[Measures]]], path: Path) -> None:
    """Median tokens/s of each contestant, a panel per shape."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    height = 1 + 0.35 * max(map(len, results.values()))
    figure, panels = pyplot.subplots(
        len(results), 1, figsize=(8, height * len(results)), squeeze=False, layout="constrained"
    )
    for panel, (shape, contestants) in zip(panels.flat, results.items(), strict=True):
        names = [name for name in contestants if name != PEAK][::-1]
        speeds = [
            statistics.median(m["tokens"] / m["seconds"] for m in contestants[n]) for n in names
        ]
        colors = ["#2a6fdb" if name.startswith("ours") else "#b0b0b0" for name in names]
        panel.bar_label(panel.barh(names, speeds, color=colors), fmt="{:,.0f}", padding=3)
        panel.set(title=f"{shape}: training, tokens/s", xlim=(0, 1.12 * max(speeds)))
        panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
