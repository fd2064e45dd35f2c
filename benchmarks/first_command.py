"""Where the time of README's first command goes.

    python -m benchmarks.first_command
    python -m benchmarks.first_command --device cpu --max-steps 20    options of minimind.sft

It runs once, in a folder of its own and with an empty cache, as the first time on a machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.environment import environment
from benchmarks.harness import Measures, markdown
from benchmarks.tuning import EPOCHS, SAMPLE

# What the command prints first after each part.
ROWS, PLANNED, SAVED, ANSWERED = "rows:", "training ", "validation loss per", "chat with it"
VALIDATED, FIRST_STEP = "validation_loss", "grad_norm"  # keys of metrics.jsonl


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(Path(folder), sys.argv[1:])
    print(markdown(["part", "seconds"], [[name, f"{s:.2f}"] for name, s in seconds.items()]))
    print(json.dumps(environment() | {"seconds": seconds}))


def measure(folder: Path, options: Sequence[str] = ()) -> Measures:
    """Seconds of each part of the command, in order, and of all.

    Raises:
        RuntimeError: the command failed.
    """
    imports = {name: import_seconds(name) for name in ("torch", "minimind.sft.__main__")}
    command = [sys.executable, "-u", "-m", "minimind.sft", *map(str, SAMPLE)]
    command += ["--epochs", str(EPOCHS), "--out", str(folder / "run"), *options]
    log, marks = folder / "log", dict[str, float]()
    started = time.perf_counter()
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env=os.environ | {"MINIMIND_CACHE": str(folder / "cache")},
        )
    metrics = folder / "run" / "metrics.jsonl"
    watcher = threading.Thread(target=_watch, args=(metrics, process, marks))
    watcher.start()
    assert process.stdout is not None
    for line in process.stdout:
        for mark in (ROWS, PLANNED, SAVED, ANSWERED):
            if line.startswith(mark):
                marks.setdefault(mark, time.perf_counter())
    ended = time.perf_counter()
    watcher.join()
    if code := process.wait():
        said = log.read_text(encoding="utf-8").strip().splitlines() or ["nothing"]
        raise RuntimeError(f"the command ended with {code}, and said: {said[-1]}")
    lines = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    later_steps = sum([line["seconds"] for line in lines if FIRST_STEP in line][1:])
    parts, before = {}, started
    for mark, name in (
        (ROWS, "imports, and rows read"),
        (PLANNED, "planned"),
        (VALIDATED, "first validation"),
        (FIRST_STEP, "first step"),
        (SAVED, "later steps, validating and saving"),
        (ANSWERED, "three answers"),
    ):
        parts[name] = marks[mark] - before
        before = marks[mark]
    between = parts.pop("later steps, validating and saving")
    answers = parts.pop("three answers")
    return {
        **parts,
        "later steps": later_steps,
        "validating and saving": between - later_steps,
        "three answers": answers,
        "ending": ended - before,
        "all": ended - started,
        **{f"import {name} alone": seconds for name, seconds in imports.items()},
    }


def import_seconds(module: str) -> float:
    """Of a Python that only imports it, as it starts."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
    return time.perf_counter() - started


def _watch(metrics: Path, process: subprocess.Popen[str], marks: dict[str, float]) -> None:
    """Note when the first validation and the first step stand in the metrics."""
    for key in (VALIDATED, FIRST_STEP):
        while not (metrics.exists() and f'"{key}"' in metrics.read_text(encoding="utf-8")):
            if process.poll() is not None:
                return
            time.sleep(0.005)
        marks[key] = time.perf_counter()


if __name__ == "__main__":
    main()
