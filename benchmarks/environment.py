"""Name the machine, the versions and the commit that a figure belongs to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import torch

from minimind.training.environment import processor, versions


def environment(device: str = "cpu") -> dict[str, str]:
    """What every benchmark's JSON line carries."""
    return {"device": device, "machine": _processor(), "commit": _commit(), **versions()}


def _processor() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def _commit() -> str:
    here = Path(__file__).parent
    asked = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"
