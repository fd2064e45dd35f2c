"""Measure contestants in turns, each in a process of its own, and print what came out.

A contestant is a command that, once ready, does one round for each line of its standard input and
answers each with a line of JSON. Only one works at a time; all have the machine alone.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Measures = dict[str, Any]  # numbers by name, mostly
MATMUL = {"cpu": 2048, "cuda": 8192}  # rows and columns of the product that tells a peak


class Contestant:
    """A running process, warmed up; `round()` makes it do its work once.

    Args:
        command: what to run after the Python interpreter, as in ["-m", "benchmarks.x", "--serve"].
        threads: cores it may use.
    """

    def __init__(self, command: Sequence[str], threads: int) -> None:
        count = str(threads)
        environment = os.environ | {"OMP_NUM_THREADS": count, "RAYON_NUM_THREADS": count}
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()  # ready: nobody else is measured while it warms up

    def round(self) -> Measures:
        """One round's figures, as the contestant gave them."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Measures:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(('{"', "{}")):  # peers print other things, too
                answer: Measures = json.loads(line)
                return answer
        raise RuntimeError(f"contestant ended: {self._process.args}")

    def close(self) -> None:
        """Let it end."""
        self._process.communicate()


def serve(work: Callable[[], Measures]) -> None:
    """A contestant's side: one round for each line of standard input, after one to warm up."""
    work()
    print("{}", flush=True)
    for _ in sys.stdin:
        print(json.dumps(work() | {"peak_gb": peak_memory()}), flush=True)


def alternate(
    commands: Mapping[str, Sequence[str]], rounds: int, threads: int, *, together: bool = True
) -> dict[str, list[Measures]]:
    """Let contestants take turns, round by round; or, if they don't fit in memory `together`, let
    each do all its rounds before the next one starts.
    """
    if not together:
        alone = [alternate({n: c}, rounds, threads) for n, c in commands.items()]
        return {name: measures for result in alone for name, measures in result.items()}
    contestants = {name: Contestant(command, threads) for name, command in commands.items()}
    results: dict[str, list[Measures]] = {name: [] for name in commands}
    for number in range(rounds):
        for name, contestant in contestants.items():
            results[name].append(contestant.round())
            print(f"round {number + 1}, {name}: {results[name][-1]}", file=sys.stderr)
    for contestant in contestants.values():
        contestant.close()
    return results


def matmul_peak(
    device: torch.device, seconds: float = 1.0, dtype: torch.dtype = torch.float32
) -> float:
    """FLOP/s of a large matrix product, the median of as many as fit into some seconds.

    Not the best of them: the cores of a shared machine are faster at one moment than at the next,
    and a training step gets its average share of both.
    """
    size = MATMUL[device.type]
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out, times = torch.empty_like(a), []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait for a GPU to finish."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory() -> float:
    """GB that this process has held at most; of the GPU's memory, if it uses one."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """The median, and from where to where it went."""
    median = format(statistics.median(values), form)
    return f"{median} ({min(values):{form}}–{max(values):{form}})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Round by round, ours over theirs."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)], ".2f") + "×"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as RESULTS.md has them."""
    lines = [header, ["--"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
