"""Kill a run at random times, again and again, until it is through; then look at what it left.

    python -m benchmarks.kill --kills 200

A run of a tiny model has several epochs, several micro-batches a step, and validates and saves at
different steps. A life is a process that goes on with the run (`minimind.sft --resume`) until it is
through, or until SIGKILL at a random time: while it starts, trains, writes a checkpoint, writes the
model's folder. In the end weights and moments must be those of a run that was never killed, to the
last bit. Lives are forked from a process that has imported PyTorch: each starts in no time.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.environment import environment
from benchmarks.harness import markdown
from minimind.model.pretrained import BASE, save
from minimind.model.transformer import Transformer
from minimind.pretrain.shapes import SHAPES
from minimind.sft import __main__ as sft
from minimind.tokenizer import Tokenizer

SAMPLE = Path(__file__).parents[1] / "tests" / "data" / "conversations.jsonl"
TINY = replace(
    SHAPES["small"],
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
)
OPTIONS = {
    "limit": 40,
    "epochs": 3,
    "max-length": 128,
    "tokens-per-step": 260,
    "tokens-per-batch": 128,
    "val-fraction": 0.1,
    "eval-every": 5,
    "save-every": 3,
    "precision": "fp32",  # "auto" measures, and a life before the first checkpoint may find another
}
# What a life would import, some of it only when it is first used.
PRELOADED = [
    "minimind.sft",
    "torch._dynamo",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
]
MOMENTS = ("starting", "training", "writing a checkpoint", "writing the model's folder")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL, and what it cost."""

    moment: str
    lost_steps: int  # steps done that must be done again
    lost_seconds: float  # since the life's last checkpoint, or its start


@dataclass(frozen=True)
class Trial:
    """Runs that were killed, and how they compare."""

    kills: list[Kill]
    runs: int
    equal: int  # runs that ended like the one that was never killed
    steps: int  # of a run
    seconds: float  # of a run that isn't killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = kill_runs(Path(folder), options.kills, options.seed)
    print(report(trial))
    found = {"kills": len(trial.kills), "runs": trial.runs, "equal": trial.equal}
    print(json.dumps(environment() | found))
    sys.exit(trial.equal < trial.runs)


def kill_runs(folder: Path, kills: int, seed: int) -> Trial:
    """Kill runs in `folder` so many times, and let the last one come to its end."""
    save(folder / "base", Transformer(TINY).initialize(1), Tokenizer.load(BASE))
    _live(folder, folder / "whole")  # the first one tokenizes, too
    began = time.monotonic()
    _live(folder, folder / "again")
    seconds = time.monotonic() - began
    steps = max(_steps(folder / "whole"))
    found: list[Kill] = []
    numbers = random.Random(seed)
    outs = [folder / "again"]
    while len(found) < kills:
        outs.append(folder / f"run-{len(outs)}")
        while True:
            limit = numbers.uniform(0, seconds) if len(found) < kills else None
            kill = _live(folder, outs[-1], limit)
            if kill is None:
                break
            found.append(kill)
    equal = sum(_same(out, folder / "whole") for out in outs)
    return Trial(found, len(outs), equal, steps, seconds)


def _live(folder: Path, out: Path, seconds: float | None = None) -> Kill | None:
    """Go on with a run, to its end or until it is killed after so many seconds."""
    metrics = out / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    began = time.time()
    process = _context().Process(target=_train, args=(folder, out))
    process.start()
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
    if process.exitcode == 0:
        return None
    if process.exitcode != -9:
        raise RuntimeError(f"the run failed; see {folder / 'log'}")
    ended = time.time()
    checkpoints = sorted((out / "checkpoints").glob("step-*"))
    saved = int(checkpoints[-1].name.removeprefix("step-")) if checkpoints else 0
    last = checkpoints[-1].stat().st_mtime if checkpoints else 0.0
    trained = metrics.exists() and metrics.stat().st_mtime_ns != before
    done = max(_steps(out), default=0) if trained else 0
    moment = MOMENTS[trained]
    if any(path.stat().st_mtime >= began for path in out.glob("checkpoints/.writing-*")):
        moment = MOMENTS[2]
    elif any(path.stat().st_mtime >= began for path in out.glob("**/.saving-*")):
        moment = MOMENTS[3]
    return Kill(moment, max(0, done - saved), ended - max(began, last))


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    return context


def _train(folder: Path, out: Path) -> None:
    """A life's work."""
    with (folder / "log").open("a") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its own one outlives a killed process
    os.environ["MINIMIND_CACHE"] = str(folder / "cache")
    sft.ANSWER_TOKENS = 2
    options = [f"--{name}={value}" for name, value in OPTIONS.items()]
    places = [f"--model={folder / 'base'}", f"--out={out}", "--resume"]
    sys.exit(sft.main([str(SAMPLE), *places, *options]))


def _steps(out: Path) -> list[int]:
    """The steps in a run's metrics, whose last line may be cut short."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line)["step"] for line in lines if line.endswith("\n")]


def _same(out: Path, whole: Path) -> bool:
    """Whether weights, best weights and the whole last checkpoint are equal, byte by byte."""
    last = max((whole / "checkpoints").glob("step-*")).relative_to(whole) / "tensors.safetensors"
    names = [Path("model.safetensors"), Path("last/model.safetensors"), last]
    return all(filecmp.cmp(out / name, whole / name, shallow=False) for name in names)


def report(trial: Trial) -> str:
    """A table of what the kills cost, and whether the runs ended alike."""
    rows = []
    for moment in (*MOMENTS, "all"):
        kills = [kill for kill in trial.kills if moment in (kill.moment, "all")]
        if kills:
            steps, seconds = [k.lost_steps for k in kills], [k.lost_seconds for k in kills]
            rows.append([moment, str(len(kills)), _mean(steps), _mean(seconds)])
    header = ["killed while", "kills", "steps lost, mean (most)", "seconds lost, mean (most)"]
    return (
        f"{markdown(header, rows)}\n\n{trial.equal} of {trial.runs} runs ended with the weights "
        f"and moments of one that was never killed; a run has {trial.steps} steps, a checkpoint "
        f"every {OPTIONS['save-every']}, and takes {trial.seconds:.1f} s"
    )


def _mean(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.1f} ({max(values):.1f})"


if __name__ == "__main__":
    main()
