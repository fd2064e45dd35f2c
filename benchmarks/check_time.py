"""Seconds and peak memory of `minimind.inspect --check`, which ought to take less than a minute.

    python -m benchmarks.check_time --rows 100000

The rows are those of `benchmarks.clean_throughput`. Each run is a process of its own with an empty
cache: it tokenizes, surveys, checks and writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.clean_throughput import write_rows
from benchmarks.environment import environment
from benchmarks.harness import Measures, markdown, spread


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000])
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    results: dict[str, list[Measures]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for rows in options.rows:
            path = write_rows(Path(folder) / "rows.jsonl", rows)
            results[f"{rows:,}"] = [check(path) for _ in range(options.rounds)]
    print(table(results) + "\n")
    print(json.dumps(environment() | {"load": os.getloadavg(), "results": results}))


def table(results: dict[str, list[Measures]]) -> str:
    lines = []
    for case, runs in results.items():
        times = [spread([run[name] for run in runs]) for name in ("seconds", "cpu_seconds")]
        peak = max(run["peak_gb"] for run in runs)
        lines.append([case, f"{runs[0]['tokens']:,.0f}", *times, f"{peak:.2f}"])
    return markdown(["rows", "tokens", "seconds", "of the CPU", "peak, GB"], lines)


def check(path: Path) -> Measures:
    """One run over a file of rows."""
    command = [sys.executable, "-m", "minimind.inspect", str(path), "--check", "--json"]
    with tempfile.TemporaryDirectory() as cache:
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        page = ["--html", str(Path(cache) / "page.html")]
        done = subprocess.run(
            [*command, *page],
            env={**os.environ, "MINIMIND_CACHE": cache},
            stdout=subprocess.PIPE,
            check=True,
        )
        seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "tokens": json.loads(done.stdout)["tokens"],
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_gb": after.ru_maxrss * 1024 / 1e9,
    }


if __name__ == "__main__":
    main()
