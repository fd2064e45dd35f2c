"""Time, memory and disk against the number of rows; the way to the first step; importing.

    python -m benchmarks.scaling --rows 10000 100000 --first-step --imports --plan

Rows are the sample's, each varied by a number of its own, so that none is a copy of another; a size
has a process of its own, since a process's peak memory never falls.

    --plan         open a dataset of 10 million rows (a synthetic table), build the step at 90% of
                   its epoch
    --going-on     python -m minimind.sft --resume at 90% of an epoch of 10 million such rows
    --first-step   python -m minimind.sft, from its start to the first optimizer step
    --imports      `import minimind` beside `import torch`; with --peers beside others that are here
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import minimind
from benchmarks.environment import environment
from benchmarks.harness import Measures, markdown, peak_memory, ratio, spread
from minimind.data.build import DataOptions, DataReport, build_dataset
from minimind.data.dataset import COLUMNS
from minimind.data.plan import make_steps
from minimind.data.selection import split_by_prompt
from minimind.data.storage import DatasetWriter, read_dataset
from minimind.tokenizer import Tokenizer
from minimind.training import checkpoint
from minimind.training.resume import rows_hash

SAMPLE = Path("tests/data/conversations.jsonl")
BASE = Path(minimind.__file__).parent / "base"
TOKENS_PER_STEP = 16 * 41  # the command's default: 16 mean rows
PLANNED_ROWS = 10_000_000
FIRST_STEP_ROWS = 10_000
PEERS = ("transformers.trainer", "trl", "litgpt")  # transformers alone imports nearly nothing
LARGE_FILE = 14e9  # bytes; what memory is extrapolated to


def main() -> None:
    options = parse()
    if options.child:
        name, path = options.child
        print(json.dumps({"size": size, "plan": plan}[name](Path(path))))
        return
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.rows:
            sizes = [measure_size(rows, folder) for rows in options.rows]
            results["sizes"] = sizes
            print(sizes_table(sizes))
            if len(sizes) > 1:
                print(growth(sizes))
        if options.plan:
            write_large_table(folder / "planned", options.plan)
            results["plan"] = planned = child("plan", folder / "planned")
            figures = "; ".join(f"{name} {value:.2f}" for name, value in planned.items())
            print(f"\n{options.plan:,} rows: {figures}")
        if options.going_on:
            results["going_on"] = gone_on = going_on(folder, options.going_on)
            print(f"\n{options.going_on:,} rows, going on at 90% of an epoch; seconds until")
            for mark, (wall, cpu) in gone_on.items():
                print(f"    {mark}: {wall:.1f}, of them {cpu:.1f} on the CPU")
        if options.first_step:
            file = write_rows(folder / "first.jsonl", FIRST_STEP_ROWS)
            results["first_step"] = first = first_steps(file, folder, options.rounds)
            print("\n" + first_step_table(first))
    if options.imports:
        peers = [name for name in PEERS if options.peers and find_spec(name)]
        results["imports"] = times = imports(["torch", "minimind", *peers], max(5, options.rounds))
        print()
        for name, seconds in times.items():
            print(f"import {name}: {spread(seconds, '.2f')} s, ", end="")
            print(f"{ratio(seconds, times['torch'])} torch's")
    if options.json:
        print(json.dumps(environment() | {"results": results}))
    if options.plot:
        plot(results["sizes"], options.plot)  # type: ignore[arg-type]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plan", type=int, nargs="?", const=PLANNED_ROWS, metavar="ROWS")
    parser.add_argument("--going-on", type=int, nargs="?", const=PLANNED_ROWS, metavar="ROWS")
    parser.add_argument("--first-step", action="store_true")
    parser.add_argument("--imports", action="store_true")
    parser.add_argument("--peers", action="store_true", help="needs the bench extra")
    parser.add_argument("--json", action="store_true", help="also print a line of JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="of the sizes")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)  # what a child process does
    return parser.parse_args()


# Sizes


def write_rows(path: Path, count: int, seed: int = 0) -> Path:
    """The sample's rows in random order, again and again, each varied by its number."""
    rows = [json.loads(line) for line in SAMPLE.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            first, *others = rng.choice(rows)["messages"]
            varied = {**first, "content": f"{first['content']} ({number})"}
            file.write(json.dumps({"messages": [varied, *others]}, ensure_ascii=False) + "\n")
    return path


def measure_size(rows: int, folder: Path) -> Measures:
    """Build, open again, split, plan and build a step of a file of so many rows, in a process."""
    file = write_rows(folder / f"{rows}.jsonl", rows)
    measures = {"rows": float(rows), "file_bytes": float(file.stat().st_size)} | child("size", file)
    file.unlink()
    return measures


def size(file: Path) -> Measures:
    """A child's work: the figures of one file."""
    tokenizer = Tokenizer.load(BASE)
    before = peak_memory()
    with tempfile.TemporaryDirectory(dir=file.parent) as cache:
        started = time.perf_counter()
        _, report, folder = build_dataset([file], tokenizer, DataOptions(), Path(cache))
        built = time.perf_counter()
        peak = peak_memory()
        dataset, _, _ = build_dataset([file], tokenizer, DataOptions(), Path(cache))
        opened = time.perf_counter()
        training, _ = split_by_prompt(dataset, 0.05)  # as the command does
        steps = make_steps(training, tokens_per_step=TOKENS_PER_STEP, tokens_per_batch=4096)
        planned = time.perf_counter()
        assert steps[0]
        first = time.perf_counter()
        on_disk = sum(path.stat().st_size for path in folder.iterdir())
        return {
            "tokens": report.tokens,
            "build": built - started,
            "cached": opened - built,
            "plan": planned - opened,
            "first_step": first - planned,
            "import_gb": before,
            "build_gb": peak,
            "peak_gb": peak_memory(),
            "disk_per_token_byte": on_disk / (report.tokens * dataset.input_ids.itemsize),
        }


def exponent(sizes: Sequence[Measures], name: str) -> float:
    """k where `name` grows as rows to the k: least squares of the logarithms."""
    rows = [math.log(size["rows"]) for size in sizes]
    return statistics.linear_regression(rows, [math.log(size[name]) for size in sizes]).slope


def growth(sizes: Sequence[Measures]) -> str:
    """What the sizes say about larger ones."""
    small, large = min(sizes, key=lambda s: s["rows"]), max(sizes, key=lambda s: s["rows"])
    per_row = (large["build_gb"] - small["build_gb"]) / (large["rows"] - small["rows"])
    rows = LARGE_FILE / (large["file_bytes"] / large["rows"])
    return (
        f"build time ~ rows^{exponent(sizes, 'build'):.2f}, "
        f"peak while building ~ rows^{exponent(sizes, 'build_gb'):.2f}, "
        f"with plan ~ rows^{exponent(sizes, 'peak_gb'):.2f}; "
        f"from {small['rows']:,.0f} to {large['rows']:,.0f} rows the peak while building grows "
        f"{large['build_gb'] / small['build_gb']:.3f}×, with plan "
        f"{large['peak_gb'] / small['peak_gb']:.3f}×; extrapolated in a straight line to "
        f"{LARGE_FILE / 1e9:.0f} GB ({rows / 1e6:.0f} million rows): "
        f"{large['build_gb'] + per_row * rows:.1f} GB while building"
    )


def sizes_table(sizes: Sequence[Measures]) -> str:
    header = ["rows", "MB", "build s", "cached s", "plan s", "first step s"]
    header += ["peak, imports only GB", "build GB", "with plan GB", "disk / token bytes"]
    rows = []
    for size in sizes:
        row = [f"{size['rows']:,.0f}", f"{size['file_bytes'] / 1e6:.1f}", f"{size['build']:.2f}"]
        row += [f"{size[name]:.3f}" for name in ("cached", "plan", "first_step")]
        row += [f"{size[name]:.3f}" for name in ("import_gb", "build_gb", "peak_gb")]
        rows.append([*row, f"{size['disk_per_token_byte']:.2f}"])
    return markdown(header, rows)


# The plan of a large dataset


def write_large_table(folder: Path, rows: int) -> None:
    """A dataset as `build_dataset` leaves it, of random lengths; its tokens are holes in files."""
    folder.mkdir()
    writer = DatasetWriter(folder, 2**16)
    table = {name: np.zeros(rows, dtype) for name, dtype in COLUMNS.items()}
    lengths = np.random.default_rng(0).integers(16, 256, rows)
    table["start"][:] = np.cumsum(lengths) - lengths
    table["length"][:] = lengths
    table["input_length"][:] = lengths - 2
    table["supervised"][:] = lengths // 2
    for name in COLUMNS:
        table[name].tofile(folder / f"table.{name}.bin")
    tokens = int(lengths.sum())
    for name, width in (("input_ids.bin", 2), ("loss_mask.bin", 1)):
        with (folder / name).open("wb") as file:
            file.truncate(tokens * width)
    writer.finish(vars(DataReport()))


def plan(folder: Path) -> Measures:
    """A child's work: open, plan, and build the step at 90% of the epoch."""
    started = time.perf_counter()
    dataset, _ = read_dataset(folder)
    opened = time.perf_counter()
    steps = make_steps(dataset, tokens_per_step=16 * 136, tokens_per_batch=4096)
    assert steps[len(steps) * 9 // 10]
    ready = time.perf_counter()
    return {"open s": opened - started, "to the step s": ready - opened, "peak GB": peak_memory()}


def going_on(folder: Path, rows: int) -> dict[str, tuple[float, float]]:
    """Stop the command after a step, move its checkpoint to 90% of the epoch, go on from there.

    Returns:
        Seconds from the start, and of them on the CPU, until it goes on, and after a step.
    """
    file, out = write_rows(folder / "few.jsonl", 50), folder / "going-on"
    cache = folder / "going-on-cache"
    options = ["--val-fraction", "0.00001", "--tokens-per-step", "2176", "--precision", "fp32"]
    command = ["env", f"MINIMIND_CACHE={cache}", sys.executable, "-u", "-m", "minimind.sft"]
    command += [str(file), "--out", str(out), *options]
    subprocess.run([*command, "--dry-run"], check=True, stdout=subprocess.DEVNULL)
    (built,) = (path.parent for path in cache.glob("*/report.json"))
    shutil.rmtree(built)
    write_large_table(built, rows)
    keys = np.random.default_rng(1).integers(0, 2**64, rows, np.uint64, endpoint=False)
    keys.tofile(built / "table.key.bin")
    np.memmap(built / "loss_mask.bin", np.bool_, "r+")[:] = True
    DatasetWriter(built, 2**16).finish(vars(DataReport()))
    command += ["--resume", "--max-minutes", "0"]
    subprocess.run(command, check=True, capture_output=True)
    training, _ = split_by_prompt(read_dataset(built)[0], 0.00001)
    steps = make_steps(training, tokens_per_step=2176)
    done = steps.steps_per_epoch * 9 // 10
    old = out / "checkpoints" / "step-00000001"
    new = old.rename(old.with_name(f"step-{done:08d}"))
    state = json.loads((new / checkpoint.STATE).read_text(encoding="utf-8"))
    state["step"], state["extra"]["rows"] = done, rows_hash(steps, done)
    (new / checkpoint.STATE).write_text(json.dumps(state), encoding="utf-8")
    names = (checkpoint.TENSORS, checkpoint.STATE)
    manifest = {name: checkpoint._fingerprint(new / name) for name in names}
    (new / checkpoint.MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")

    marks = {}
    started = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(("resuming", "stopped")):
                wall = time.perf_counter() - started
                ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
                cpu = (int(ticks[11]) + int(ticks[12])) / os.sysconf("SC_CLK_TCK")
                marks[line.split(" of ")[0]] = wall, cpu
    return marks


# The command's first step


def first_steps(file: Path, folder: Path, rounds: int) -> dict[str, list[Measures]]:
    """The command on a file it sees for the first time, and on one it knows."""
    results: dict[str, list[Measures]] = {"tokenized": [], "from the cache": []}
    for number in range(rounds):
        cache = folder / f"cache-{number}"
        for case, many in results.items():
            many.append(first_step(file, folder / f"run-{number}-{case[:4]}", cache))
    return results


def first_step(file: Path, out: Path, cache: Path) -> Measures:
    """Seconds from the command's start to each of its marks."""
    command = [sys.executable, "-u", "-m", "minimind.sft", str(file), "--max-steps", "1"]
    marks = {}
    started = time.perf_counter()
    process = subprocess.Popen(
        ["env", f"MINIMIND_CACHE={cache}", *command, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("rows:"):
            marks["rows read"] = time.perf_counter() - started
        if line.startswith("training ") and "parameters" in line:
            marks["planned"] = time.perf_counter() - started
            break
    for name in ("validated", "first step"):
        while not _has_lines(out / "metrics.jsonl", len(marks) - 1):
            assert process.poll() is None or name == "first step", "the command failed"
            time.sleep(0.005)
        marks[name] = time.perf_counter() - started
    process.communicate()
    return marks


def _has_lines(path: Path, count: int) -> bool:
    return path.exists() and path.read_bytes().count(b"\n") >= count


def first_step_table(results: dict[str, list[Measures]]) -> str:
    names = list(next(iter(results.values()))[0])
    rows = [
        [case, *(spread([marks[name] for marks in many], ".1f") for name in names)]
        for case, many in results.items()
    ]
    return markdown([f"{FIRST_STEP_ROWS:,} rows; seconds until", *names], rows)


# Imports


def imports(modules: Sequence[str], rounds: int) -> dict[str, list[float]]:
    """Seconds of a Python that only imports, in turns; the first round warms up."""
    times: dict[str, list[float]] = {module: [] for module in modules}
    for number in range(rounds + 1):
        for module, many in times.items():
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
            if number:
                many.append(time.perf_counter() - started)
    return times


def child(name: str, path: Path) -> Measures:
    """Do a part in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--child", name, str(path)]
    answer: Measures = json.loads(subprocess.check_output(command))
    return answer


def plot(sizes: Sequence[Measures], path: Path) -> None:
    """Time and memory against rows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.5), layout="constrained")
    rows = [size["rows"] for size in sizes]
    time_axes, memory_axes = figure.subplots(1, 2)
    for name, label in (("build", "tokenize"), ("cached", "open again"), ("plan", "split, plan")):
        time_axes.loglog(rows, [size[name] for size in sizes], marker="o", label=label)
    for name, label in (
        ("peak_gb", "tokenize, split and plan"),
        ("build_gb", "tokenize"),
        ("import_gb", "Python and PyTorch alone"),
    ):
        memory_axes.semilogx(rows, [size[name] for size in sizes], marker="o", label=label)
    time_axes.set(xlabel="rows", ylabel="seconds")
    memory_axes.set(xlabel="rows", ylabel="GB at the peak", ylim=0)
    time_axes.legend()
    memory_axes.legend()
    figure.savefig(path)


if __name__ == "__main__":
    main()
