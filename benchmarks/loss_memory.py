"""Time and memory of the loss at a large vocabulary, beside the naive loss with full logits.

    python -m benchmarks.loss_memory --rows 8192 --vocabulary 151936 --hidden 1024

Every measurement has a process of its own, since a process's peak memory never falls; the variants
take turns, round by round. On a machine that does other things too, CPU seconds say more than
seconds. Knows no model: states and head are random.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.environment import environment
from minimind.training import loss

WARM_UP_ROWS = 64


def main() -> None:
    options = parse()
    if options.measure:
        print(json.dumps(measure(options, options.measure)))
        return
    variants = ["naive"] * options.naive + [str(size) for size in options.chunk_mb]
    runs: dict[str, list[dict[str, float]]] = {variant: [] for variant in variants}
    for _ in range(options.rounds):
        for variant in variants:
            command = [sys.executable, "-m", "benchmarks.loss_memory", *sys.argv[1:]]
            command += ["--measure", variant]
            runs[variant].append(json.loads(subprocess.check_output(command)))
            print(variant, runs[variant][-1], file=sys.stderr)
    results = {variant: summarize(many) for variant, many in runs.items()}
    print(f"{options.rows} rows, V = {options.vocabulary}, C = {options.hidden}, {options.dtype}")
    print(f"{'chunk':>8} {'added GB':>9} {'seconds':>8} {'spread':>15} {'CPU s':>8}")
    for variant, row in results.items():
        name = variant if variant == "naive" else f"{variant} MiB"
        spread = f"{row['seconds_min']:.2f}-{row['seconds_max']:.2f}"
        print(
            f"{name:>8} {row['added_gb']:9.2f} {row['seconds']:8.2f} {spread:>15} "
            f"{row['cpu_seconds']:8.2f}"
        )
    given = {name: value for name, value in vars(options).items() if name != "measure"}
    facts = {"warm_up_rows": WARM_UP_ROWS, "load": os.getloadavg()[0]}
    print(json.dumps(given | environment(options.device) | facts | {"results": results}))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8192, help="supervised positions")
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chunk-mb", type=int, nargs="*", default=[loss.CHUNK_BYTES // 2**20])
    parser.add_argument("--no-naive", dest="naive", action="store_false")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # what a child process does
    return parser.parse_args()


def measure(options: argparse.Namespace, variant: str) -> dict[str, float]:
    """One forward and backward pass: seconds, and bytes beyond the inputs at the peak."""
    if variant != "naive":
        loss.CHUNK_BYTES = int(variant) * 2**20
    device = torch.device(options.device)
    generator = torch.Generator(device).manual_seed(0)
    shape = (options.vocabulary, options.hidden)
    weight = torch.empty(shape, device=device).normal_(0, 0.02, generator=generator)
    weight.requires_grad_()
    states = torch.randn(options.rows, options.hidden, device=device, generator=generator)
    states.requires_grad_()
    labels = torch.randint(options.vocabulary, (options.rows,), device=device, generator=generator)

    def run(rows: int) -> None:
        weight.grad = states.grad = None
        half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(options.dtype)
        with torch.autocast(device.type, half) if half else nullcontext():
            function = naive if variant == "naive" else loss.summed_cross_entropy
            total = function(states[:rows], weight, labels[:rows]) / rows
        total.backward()

    run(WARM_UP_ROWS)
    weight.grad = states.grad = None
    before = held(device)
    start, cpu = time.perf_counter(), time.process_time()
    run(options.rows)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "added": peak(device) - before}


def naive(states: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(states, weight).float(), labels, reduction="sum")


def held(device: torch.device) -> int:
    """Bytes in use now."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def peak(device: torch.device) -> int:
    """The most bytes that were in use."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def summarize(runs: list[dict[str, float]]) -> dict[str, float]:
    seconds = [run["seconds"] for run in runs]
    return {
        "added_gb": max(run["added"] for run in runs) / 1e9,
        "seconds": statistics.median(seconds),
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "cpu_seconds": statistics.median(run["cpu_seconds"] for run in runs),
    }


if __name__ == "__main__":
    main()
