"""Run `python -m minimind.pretrain` in a process of its own, unless it is done already."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def pretrain(
    files: Sequence[str],
    out: Path,
    choices: Mapping[str, object],
    mix: Sequence[float] = (),
    at_once: int = 1,
) -> None:
    """Pretrain into `out`; what it prints goes to `log.txt` there.

    Args:
        files: the text.
        out: the run's folder; a run with the same files, mix and tokens that has ended is left.
        choices: the other options, by their names on the command line; "tokens" is one of them.
        mix: a weight per file.
        at_once: how many such processes share the machine's cores.

    Raises:
        OSError: the run failed.
    """
    if _is_done(out / "run.json", files, choices["tokens"], mix):
        return
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "minimind.pretrain", *files, "--out", str(out)]
    command += [word for name, value in choices.items() for word in (f"--{name}", str(value))]
    if mix:
        command += ["--mix", *map(str, mix)]
    with (out / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, env=share_of_cores(at_once), check=False
        )
    if done.returncode:
        raise OSError(f"{out}: pretraining ended with code {done.returncode}; see log.txt there")


def share_of_cores(at_once: int) -> dict[str, str]:
    """The environment of one of so many processes that share the cores."""
    cores = max(1, len(os.sched_getaffinity(0)) // at_once)
    return {"OMP_NUM_THREADS": str(cores), **os.environ}


def _is_done(record: Path, files: Sequence[str], tokens: object, mix: Sequence[float]) -> bool:
    if not record.exists():
        return False
    found = json.loads(record.read_text(encoding="utf-8"))
    options, asked = found["options"], [list(files), tokens, list(mix)]
    same = [options[name] for name in ("files", "tokens", "mix")] == asked
    return bool(same and found["outcome"]["finished"])
