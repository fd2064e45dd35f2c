"""Kill one of a run's processes at random times; torchrun starts them again. Look at what is left.

    python -m benchmarks.kill_ranks --kills 20

The run is that of `benchmarks.kill`, over two processes under `torchrun --max-restarts`, with
`--resume`. In the end weights and moments must be those of a run that was left alone, to the last
bit. The time from a kill to the next line of metrics is what a death costs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.environment import environment
from benchmarks.kill import OPTIONS, SAMPLE, TINY
from minimind.model.pretrained import BASE, save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer

RANKS = 2
EPOCHS = 12  # long enough to be killed a few times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save(folder / "base", Transformer(TINY).initialize(1), Tokenizer.load(BASE))
        assert start(folder, "whole", 0).wait() == 0
        numbers, seconds, equal, runs = random.Random(options.seed), [], 0, 0
        while len(seconds) < options.kills:
            runs += 1
            seconds += kill_run(folder, f"run-{runs}", numbers, options.kills - len(seconds))
            equal += same(folder / f"run-{runs}", folder / "whole")
    found = {"kills": len(seconds), "runs": runs, "equal": equal}
    found |= {"mean_seconds": statistics.mean(seconds), "most_seconds": max(seconds)}
    print(json.dumps(environment() | found))
    sys.exit(equal < runs)


def start(folder: Path, name: str, restarts: int) -> subprocess.Popen[bytes]:
    """The run, under torchrun."""
    launcher = f"--standalone --nproc-per-node {RANKS} --max-restarts {restarts}".split()
    settings = OPTIONS | {"epochs": EPOCHS, "model": folder / "base", "out": folder / name}
    words = [f"--{option}={value}" for option, value in settings.items()]
    command = [*launcher, "-m", "minimind.sft", str(SAMPLE), *words, "--resume"]
    environment = {"OMP_NUM_THREADS": "1", "MINIMIND_CACHE": str(folder / "cache")}
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *command],
            stdout=log,
            stderr=log,
            env=os.environ | environment,
        )


def kill_run(folder: Path, name: str, numbers: random.Random, most: int) -> list[float]:
    """Kill processes of a run until it is through; the seconds until training went on, each."""
    process, metrics = start(folder, name, 1000), folder / name / "metrics.jsonl"
    waits: list[float] = []
    wait_for_more(process, metrics)
    while process.poll() is None and len(waits) < most:
        time.sleep(numbers.uniform(0, 2))
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        victims = children.read_text().split() if process.poll() is None else []
        if not victims:
            break
        os.kill(int(numbers.choice(victims)), signal.SIGKILL)
        killed = time.monotonic()
        wait_for_more(process, metrics)
        waits.append(time.monotonic() - killed)
    assert process.wait() == 0, (folder / "log").read_text()
    return waits


def wait_for_more(process: subprocess.Popen[bytes], metrics: Path) -> None:
    """Until a line is written, or the run is through."""
    time.sleep(0.2)  # the others may write a line yet
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while process.poll() is None:
        if metrics.exists() and metrics.stat().st_mtime_ns > before:
            return
        time.sleep(0.05)


def same(out: Path, whole: Path) -> bool:
    """Whether best weights, last weights and moments are equal to the last bit."""
    last = max((whole / "checkpoints").glob("step-*")).relative_to(whole) / "tensors.safetensors"
    for name in (Path("model.safetensors"), Path("last/model.safetensors"), last):
        ours, theirs = load_file(out / name), load_file(whole / name)
        for key, tensor in theirs.items():  # nothing in training is drawn at random
            if not key.startswith("random/") and not torch.equal(tensor, ours[key]):
                return False
    return True


if __name__ == "__main__":
    main()
