"""Training speed: tokens per second, and the share of the machine's matrix-product peak.

    python -m benchmarks.train_throughput                          ours, shapes 5M and 26M
    python -m benchmarks.train_throughput --shape 26M --peers      beside others' loops
    python -m benchmarks.train_throughput --compiled               beside our compiled loop
    python -m benchmarks.train_throughput --tokens-per-step 65536  larger steps than 16 rows
    python -m benchmarks.train_throughput --model DIR data.jsonl   own weights, own rows

Everyone trains on the same conversations, and is timed over whole steps: forward, backward,
clipping, AdamW. Tokens are the conversations' own, whatever padding somebody adds. Ours is
`minimind.train`, as a long run has it: its batches are built within the clock, those of others
before it (TRL's within). A first round is for warming up; what our first step takes, with planning,
compiling and capturing, stands in a column of its own.

Each contestant is a process. On a CPU they take turns, and the peak is measured in turns with them;
on a GPU, whose memory they can't share, one comes after the other. The peak is that of the type
that products have: float32 on a CPU and bf16 on a GPU, unless --precision says otherwise.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
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
from minimind.data.dataset import Dataset
from minimind.data.padding import PLANNED_STEPS, pad
from minimind.data.plan import Steps
from minimind.model.transformer import Transformer
from minimind.training.environment import choose_device
from minimind.training.loop import train
from minimind.training.precision import DTYPES, Precision
from minimind.training.state import TrainConfig, TrainState

PER_STEP = 16  # conversations, unless --tokens-per-step says otherwise
CPU_BATCH = 4096  # tokens of a micro-batch, at most
STEPS = {"cpu": 2, "cuda": 20}  # of a round
PEAK, OURS, COMPILED, EAGER = "matrix product", "ours", "ours, compiled", "ours, eager"
DEFAULT_PRECISION: dict[str, Precision] = {"cpu": "fp32", "cuda": "bf16"}

Work = Callable[[], Measures]


def main() -> None:
    options = parse()
    if options.contestant:
        serve(contestant(options))
        return
    device, results = choose_device(options.device), {}
    for shape in [str(options.model)] if options.model else options.shape:
        command = ["-m", "benchmarks.train_throughput", *sys.argv[1:], "--only", shape]
        names = [PEAK, OURS, *([COMPILED] if options.compiled else [])]
        names += [EAGER] if device.type == "cuda" else []
        if options.peers:
            from benchmarks.peers import available

            names += available(device)
        commands = {name: [*command, "--contestant", name] for name in names}
        together = device.type == "cpu"
        rounds = alternate(commands, options.rounds, options.threads, together=together)
        print(f"{shape}, {options.threads} threads\n\n{table(rounds)}\n", flush=True)
        results[shape] = rounds
    facts = environment(str(device)) | {"threads": str(options.threads)}
    facts["precision"] = precision_of(options)
    print(json.dumps(facts | {"results": results} if options.json else facts))
    if options.plot:
        plot(results, options.plot)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", help="JSONL rows; default docstrings")
    parser.add_argument("--shape", nargs="*", choices=SHAPES, default=["5M", "26M"])
    add_training_options(parser)
    parser.add_argument(
        "--tokens-per-batch",
        type=int,
        help=f"of a micro-batch, at most; default {CPU_BATCH:,}, a whole step on a GPU",
    )
    parser.add_argument("--compiled", action="store_true", help="ours, compiled, too")
    parser.add_argument("--peers", action="store_true", help="needs the bench extra")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)  # what a child process does
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peers and precision_of(options) == "fp16":
        parser.error("--peers are measured in fp32 and bf16; name one as --precision")
    return options


def precision_of(options: argparse.Namespace) -> Precision:
    """What everyone's products are computed in."""
    return options.precision or DEFAULT_PRECISION[choose_device(options.device).type]


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """What every benchmark that trains can be asked."""
    parser.add_argument("--model", type=Path, help="a folder with weights, in place of --shape")
    parser.add_argument("--tokens-per-step", type=int, help=f"about; default {PER_STEP} rows")
    parser.add_argument("--steps", type=int, help="optimizer steps a round; default 2, on a GPU 20")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16"], help="of products")
    parser.add_argument("--json", action="store_true", help="print every round's figures, too")
    parser.add_argument("--plot", type=Path)


class Plan(Steps):
    """A long run over the rows as they stand, again and again.

    Args:
        tokens_per_step: about as many, as the library's own plans have; None: `PER_STEP` rows.
        tokens_per_batch: raised to the longest row's, as the commands do.
        count: how many steps, at least.
    """

    def __init__(
        self, dataset: Dataset, tokens_per_step: int | None, tokens_per_batch: int, count: int = 0
    ) -> None:
        longest = int(dataset.column("input_length").max())
        super().__init__(dataset, tokens_per_step or 1, max(tokens_per_batch, longest), 1, 0)
        # As a long run: its shape has a margin.
        self._indices = range(max(count, 2 * PLANNED_STEPS))
        numbers = np.arange(1, len(self) + 1)
        self._ends = PER_STEP * numbers
        if tokens_per_step is not None:
            passes = 1 + tokens_per_step * len(self) // self.tokens_per_epoch
            lengths = np.tile(self.lengths[self.rows].astype(np.int64), passes)
            middles = np.cumsum(lengths) - lengths / 2
            ends = np.searchsorted(middles, tokens_per_step * numbers)
            self._ends = np.maximum.accumulate(np.maximum(ends - numbers, 0)) + numbers

    def rows_of(self, index: int) -> np.ndarray:
        number = self._indices[index]
        rows = np.arange(self._ends[number - 1] if number else 0, self._ends[number])
        return self.rows[rows % len(self.rows)].astype(np.int64)


class Workload:
    """The same rows, steps, device and precision for everybody."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.precision = choose_device(options.device), precision_of(options)
        self.folder = options.model
        if options.model:
            model, tokenizer = minimind.load(options.model)
            self.config = model.config
        else:
            _, tokenizer = minimind.load()
            self.config = replace(SHAPES[options.only], max_position_embeddings=8192)
            if options.files:  # whose ids are the tokenizer's
                self.config = replace(self.config, vocab_size=tokenizer.vocab_size)
        if options.files:
            self.dataset, _, _ = build_dataset(
                options.files, tokenizer, DataOptions(max_length=512)
            )
        else:
            self.dataset = docstrings(None if options.model else self.config.vocab_size)
        self.steps_per_round = options.steps or STEPS[self.device.type]
        self.steps = 1 + (1 + options.rounds) * self.steps_per_round  # and to warm up
        self.tokens_per_step = options.tokens_per_step

    def plan(self, tokens_per_batch: int | None = None) -> Plan:
        """The steps; a micro-batch has by default what the library chooses for the device."""
        default = CPU_BATCH if self.device.type == "cpu" else 2**62
        budget = tokens_per_batch or default
        return Plan(self.dataset, self.tokens_per_step, budget, self.steps)

    def rounds(self) -> Iterator[list[np.ndarray]]:
        """Each round's steps: the rows of each."""
        plan = self.plan()
        for first in range(1, len(plan), self.steps_per_round):  # ours has done step 0
            yield [plan.rows_of(first + index) for index in range(self.steps_per_round)]

    def new_model(self) -> Transformer:
        if self.folder:
            return minimind.load(self.folder)[0].to(self.device)
        if self.device.type == "cpu":
            return Transformer(self.config).initialize()
        # Filled on the device: the CPU takes seconds for a large model.
        torch.manual_seed(0)
        with self.device:
            model = Transformer(self.config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02)
        return model

    def measures(self, steps: list[np.ndarray], seconds: float, executed: float | None) -> Measures:
        rows = np.concatenate(steps)
        lengths = self.dataset.column("length")[rows].tolist()
        counted = {} if executed is None else {"executed_flops": executed}
        return counted | {
            "seconds": seconds,
            "steps": len(steps),
            "tokens": sum(lengths),
            "supervised": int(self.dataset.column("supervised")[rows].sum()),
            "model_flops": model_flops(self.config, lengths),
        }


@functools.cache
def docstrings(vocabulary: int | None) -> Dataset:
    """The docstrings' rows, their ids folded into a vocabulary if one is given."""
    return docstring_dataset(minimind.load()[1], vocabulary=vocabulary or 0)


def contestant(options: argparse.Namespace) -> Work:
    """What does one round of `options.contestant`."""
    name = options.contestant
    if name == PEAK:
        device = choose_device(options.device)
        dtype = DTYPES[precision_of(options)]
        return lambda: {"flops_per_second": matmul_peak(device, 2.0, dtype)}
    workload = Workload(options)
    if name in (OURS, COMPILED, EAGER):
        return ours(
            workload,
            options.tokens_per_batch,
            compiled=name == COMPILED,
            may_capture=name != EAGER,
        )
    from benchmarks.peers import PEERS

    return PEERS[name](workload)


def ours(
    workload: Workload,
    tokens_per_batch: int | None = None,
    *,
    compiled: bool = False,
    may_capture: bool = True,
) -> Work:
    """Our loop; its first step is done before the first round."""
    if compiled:  # never measure a fall-back under this name
        warnings.filterwarnings("error", message="not compiled")
    device, model = workload.device, workload.new_model()
    config = TrainConfig(precision=workload.precision, compile="on" if compiled else "off")
    state = TrainState(model, config)
    state.may_capture = state.may_capture and may_capture
    plan = workload.plan(tokens_per_batch)
    run = train(model, plan, config, state=state)
    synchronize(device)
    start = time.perf_counter()
    next(run)
    synchronize(device)
    first_step = time.perf_counter() - start

    def work() -> Measures:
        first = state.step
        synchronize(device)
        start = time.perf_counter()
        for _ in range(workload.steps_per_round):
            next(run)
        host = time.perf_counter() - start
        synchronize(device)
        seconds = time.perf_counter() - start
        indices = range(first, state.step)
        batches = [batch for index in indices for batch in plan[index]]
        shapes = [state.fixed_shape(batch) for batch in batches]
        padded = [pad(b, s)[1] if s else b for b, s in zip(batches, shapes, strict=True)]
        executed = sum(executed_flops(model.config, batch) for batch in padded)
        fast = state.graphs is not None or state.compiled
        return workload.measures([plan.rows_of(i) for i in indices], seconds, executed) | {
            "host_seconds": host,  # until the last step was queued
            "first_step": first_step,
            "batches": len(batches),
            "eager": shapes.count(None) if fast else len(batches),
            "graphs": state.graphs is not None,
            "notes": list(state.notes),
        }

    return work


def table(results: dict[str, list[Measures]]) -> str:
    peaks = [measures["flops_per_second"] for measures in results[PEAK]]
    rows = [[PEAK, "", "", "", f"{spread([p / 1e9 for p in peaks])} GFLOP/s", *[""] * 5]]
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
        row += [shares["executed_flops"]]
        row += [spread([1e3 * m["seconds"] / m["steps"] for m in rounds], ",.1f"), "", ""]
        if "first_step" in rounds[-1]:
            eager, batches = (sum(m[key] for m in rounds) for key in ("eager", "batches"))
            row[-2:] = [f"{rounds[-1]['first_step']:.1f}", f"{eager:,} of {batches:,}"]
        rows.append([*row, f"{rounds[-1]['peak_gb']:.2f} GB", ratio(speeds[OURS], speed)])
    header = ["contestant", "tokens/s", "supervised tokens/s", "of peak, model FLOP/s (MFU)"]
    header += ["of peak, executed", "ms a step", "first step, s", "batches run eagerly"]
    return markdown([*header, "peak memory", "ours is"], rows)


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
