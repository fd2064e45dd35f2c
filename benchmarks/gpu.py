"""Check the graphed step on a GPU and measure it, in one call.

    python -m benchmarks.gpu --seconds 420
    python -m benchmarks.gpu --only 'ours: *' 'first command'     parts by name; --list names them
    python -m benchmarks.gpu --small --device cpu                 a little of each, to try it out

The most important parts come first. A process does one after the other; where a part fails, hangs
or takes its process along, that is printed, and the next one goes on in a new process. At the end
come a table and one line of JSON. Under $OUT, where that is set, gpu.json has all figures, and
gpu.log what the processes printed.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.environment import environment
from benchmarks.gpu_parts import Part, parts
from benchmarks.harness import Measures, markdown
from minimind.model import compiling
from minimind.training.environment import choose_device

PART_SECONDS = 120.0  # that one part may take
REPEATABLE = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what PyTorch asks for
FAILED, SKIPPED, SPENT, LIVES = "failed", "skipped", "part_seconds", "lives"  # keys of an answer


def main(arguments: list[str] | None = None) -> int:
    started = time.monotonic()
    options = parse(arguments)
    device = choose_device(options.device)
    if options.work:
        work(device, options.small)
        return 0
    chosen = {
        name: part
        for name, part in parts(device, options.small).items()
        if any(fnmatch.fnmatch(name, pattern) for pattern in options.only)
    }
    if options.list:
        print("\n".join(chosen))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        out = Path(os.environ.get("OUT") or folder)
        out.mkdir(parents=True, exist_ok=True)
        with (out / "gpu.log").open("a", encoding="utf-8") as log:
            results = run(chosen, options, log, started)
        facts = environment(str(device)) | {"results": results}
        (out / "gpu.json").write_text(json.dumps(facts), encoding="utf-8")
    print("\n".join(["", *describe(results), "", table(results), ""]))
    print(json.dumps(environment(str(device)) | {"results": shortened(results)}))
    return int(any(FAILED in answer for answer in results.values()))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=420.0, help="that all of it may take")
    parser.add_argument("--only", nargs="+", default=["*"], help="parts, by name or pattern")
    parser.add_argument("--list", action="store_true", help="print the parts' names, and end")
    parser.add_argument("--small", action="store_true", help="tiny settings, to try it out")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)  # a child process
    return parser.parse_args(arguments)


def run(
    chosen: dict[str, Part], options: argparse.Namespace, log: TextIO, started: float
) -> dict[str, Measures]:
    """Each part's figures, or why there are none."""
    command = ["-m", "benchmarks.gpu", "--work", "--device", options.device]
    command += ["--small"] if options.small else []
    results: dict[str, Measures] = {}
    workers: dict[bool, Worker] = {}  # alone or not
    try:
        for name, part in chosen.items():
            left = options.seconds - (time.monotonic() - started)
            if left <= 0:
                results[name] = {SKIPPED: True}
                continue
            if part.alone not in workers:
                workers[part.alone] = Worker(command, log, REPEATABLE if part.alone else {})
            worker = workers[part.alone]
            results[name] = worker.do(name, min(left, PART_SECONDS))
            if part.alone or not worker.lives:
                workers.pop(part.alone).close()
            ended = time.monotonic() - started
            print(f"[{ended:5.1f}] {name}: {results[name].get(FAILED, 'done')}", flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return results


class Worker:
    """A process that does parts, one at a time; what else it prints goes to a log.

    Args:
        command: what to run after the Python interpreter.
    """

    def __init__(self, command: Sequence[str], log: TextIO, variables: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | variables,
            start_new_session=True,  # so that its own processes end with it
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._log, self.lives = log, True
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def do(self, name: str, seconds: float) -> Measures:
        """A part's figures, or why there are none; then the process may live no more."""
        assert self._process.stdin is not None
        end = time.monotonic() + seconds
        try:
            self._process.stdin.write(f"{name}\n")
            self._process.stdin.flush()
            while (line := self._lines.get(timeout=max(0.0, end - time.monotonic()))) is not None:
                if line.startswith('{"'):
                    answer: Measures = json.loads(line)
                    self.lives = answer.pop(LIVES)
                    return answer
                self._log.write(line)
            fact = f"its process ended with {self._process.wait()}"
        except queue.Empty:
            fact = f"it took longer than {seconds:.0f} s"
        except BrokenPipeError:
            fact = f"its process had ended with {self._process.wait()}"
        self.lives = False
        return {FAILED: fact}

    def close(self) -> None:
        """End the process and those that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):  # a name that nobody reads
                pipe.close()  # type: ignore[union-attr]


def work(device: torch.device, small: bool) -> None:
    """A child's side: a part for each line of standard input, a line of JSON for each part."""
    available, lives = parts(device, small), True
    for line in sys.stdin:
        started = time.perf_counter()
        try:
            answer = available[line.strip()].do()
        except Exception as error:  # whatever it is, the next part may go well
            traceback.print_exc()
            answer = {FAILED: f"{type(error).__name__}: {error}".splitlines()[0]}
        answer[SPENT] = time.perf_counter() - started
        torch._dynamo.reset()
        compiling.compiled.cache_clear()  # what failed to compile isn't tried again
        gc.collect()
        if device.type == "cuda":
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except RuntimeError:  # an error on the GPU stays until the process ends
                lives = False
        print(json.dumps(answer | {LIVES: lives}), flush=True)
        if not lives:
            return


def describe(results: dict[str, Measures]) -> list[str]:
    """A line on each part that has no speed."""
    lines = []
    for name, answer in results.items():
        if "tokens_per_second" in answer or FAILED in answer or SKIPPED in answer:
            continue
        if name == "loss curves":
            answer = {key: _curve(figures) for key, figures in answer.items() if key != SPENT}
        figures = ", ".join(f"{key} {_short(x)}" for key, x in answer.items() if key != SPENT)
        lines.append(f"{name}: {figures}")
    lines += [f"{name}: FAILED: {x[FAILED]}" for name, x in results.items() if FAILED in x]
    skipped = [name for name, answer in results.items() if SKIPPED in answer]
    return lines + ([f"skipped, no time was left: {'; '.join(skipped)}"] if skipped else [])


def table(results: dict[str, Measures]) -> str:
    """Speeds; MFU is model FLOP/s of the measured bf16 peak."""
    peak = results.get("peak", {}).get("flops_per_second", {}).get("bf16")
    rows = []
    for answer in results.values():
        if "tokens_per_second" not in answer:
            continue
        row = [answer["contestant"], answer["shape"], f"{answer['tokens_per_step']:,.0f}"]
        row += [f"{answer['tokens_per_second']:,.0f}"]
        row += [f"{answer['flops_per_second'] / peak:.1%}" if peak else ""]
        for key in ("ms", "host_ms", "peak_gb", "first_step"):
            row.append(f"{answer[key]:.1f}" if key in answer else "")
        row += [f"{answer['eager']} of {answer['batches']}" if "eager" in answer else ""]
        rows.append([*row, "; ".join(answer.get("notes", []))])
    header = ["contestant", "shape", "tokens a step", "tokens/s", "MFU", "ms a step"]
    header += ["host ms", "peak GB", "first step, s", "batches run eagerly", "notes"]
    return markdown(header, rows)


def _curve(figures: Measures) -> str:
    losses = figures["losses"]
    shown = [losses[0], *losses[7::8]] if len(losses) > 8 else losses
    words = " ".join(f"{loss:.3f}" for loss in shown)
    return f"{words} ({figures['skipped']} skipped, scale {figures['scale']:g})"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_short(x)}" for key, x in value.items())
    if isinstance(value, list):
        return " ".join(map(_short, value)) or "none"
    return str(value)


def shortened(value: Any) -> Any:
    """The same with four digits, without what a name or the table says."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        left_out = ("contestant", "shape", "notes", SPENT)
        return {key: shortened(x) for key, x in value.items() if key not in left_out}
    return [shortened(x) for x in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
