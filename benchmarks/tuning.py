"""Fine-tune a base as README's first command does the embedded one, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from minimind.base.recipe.pretraining import share_of_cores
from minimind.sft.options import BASE_LEARNING_RATE

DATA = Path(__file__).parents[1] / "tests" / "data"
SAMPLE = (DATA / "conversations.jsonl", DATA / "facts.jsonl")
EPOCHS = 4


def tune(base: Path, out: Path, *, save_every: int = 0, at_once: int = 1) -> None:
    """Fine-tune `base` on the sample, unless it is done; what is printed goes to `OUT.log`.

    Args:
        base: a model's folder.
        out: the run's.
        save_every: steps between two validations and checkpoints, of which all are left; 0 for
            an epoch, and the newest two.
        at_once: how many such processes share the machine's cores.

    Raises:
        subprocess.CalledProcessError: the run failed.
    """
    record = out / "run.json"
    if record.exists() and json.loads(record.read_text(encoding="utf-8"))["outcome"]["finished"]:
        return
    command = [sys.executable, "-m", "minimind.sft", *map(str, SAMPLE), "--model", str(base)]
    command += ["--out", str(out), "--learning-rate", str(BASE_LEARNING_RATE)]
    command += ["--epochs", str(EPOCHS)]
    if save_every:
        command += ["--save-every", str(save_every), "--eval-every", str(save_every)]
        command += ["--keep-checkpoints", "1000"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.with_name(f"{out.name}.log").open("a", encoding="utf-8") as log:
        subprocess.run(
            [*command, "--resume"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=share_of_cores(at_once),
            check=True,
        )
