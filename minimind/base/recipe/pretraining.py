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
        out: the run's folder; a run with the same options that has ended is left as it is.
        choices: the other options, by their names on the command line.
        mix: a weight per file.
        at_once: how many such processes share the machine's cores.

    Raises:
        ValueError: `out` holds a run with other options.
        OSError: the run failed.
    """
    asked = {"files": list(files), "mix": list(mix), **choices}
    if _is_done(out, json.loads(json.dumps(asked, default=str))):
        return
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
    """The environment of one of so many processes that share the cores; unchanged for one alone."""
    if at_once == 1:
        return dict(os.environ)
    cores = max(1, len(os.sched_getaffinity(0)) // at_once)
    return {**os.environ, "OMP_NUM_THREADS": str(cores)}


def _is_done(out: Path, asked: dict[str, object]) -> bool:
    """Whether the run has ended; notes with what options it was begun, or holds it to them."""
    note = out / "asked.json"
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != asked:
            raise ValueError(f"{out} was made with other options (asked.json); name another --out")
    else:
        out.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(asked, ensure_ascii=False), encoding="utf-8")
    record = out / "run.json"
    if not record.exists():
        return False
    return bool(json.loads(record.read_text(encoding="utf-8"))["outcome"]["finished"])
