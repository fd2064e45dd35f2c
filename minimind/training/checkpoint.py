"""Save a run's resumable state so that a crash can't harm it. Knows no data and no schedule.

    checkpoints/
        step-00000120/
            tensors.safetensors     float32 weights and AdamW's moments
            state.json              step, precision, what the caller adds
            manifest.json           size and SHA-256 of the others, written last
        step-00000240/

A folder is written beside its place under another name, synced and renamed: one that has its final
name is whole. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minimind.model.transformer import Transformer
from minimind.training.loop import TrainState

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


def save_checkpoint(
    folder: Path, model: Transformer, state: TrainState, extra: dict[str, Any], keep: int = 2
) -> Path:
    """Write the state after `state.step` steps and drop all but the newest `keep` checkpoints.

    Later ones, which this run went back from, are dropped too.

    Args:
        folder: holds the checkpoints.
        model: its weights.
        state: between two steps.
        extra: JSON values to find again on loading.
        keep: how many to leave.

    Returns:
        The new checkpoint's folder.
    """
    target = folder / f"step-{state.step:08d}"
    scratch = folder / f".writing-{target.name}"
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    scratch.mkdir(parents=True)
    plain = state.state_dict()
    optimizer = plain.pop("optimizer")
    tensors = {f"weights/{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer["state"].items():
        tensors |= {f"optimizer/{index}/{name}": value for name, value in moments.items()}
    tensors["random"] = torch.get_rng_state()
    save_file(
        {name: x.detach().cpu().contiguous() for name, x in tensors.items()}, scratch / TENSORS
    )
    _write_json(scratch / STATE, {**plain, "groups": optimizer["param_groups"], "extra": extra})
    manifest = {name: _fingerprint(scratch / name) for name in (TENSORS, STATE)}
    _write_json(scratch / MANIFEST, manifest)
    for path in (*(scratch / name for name in (TENSORS, STATE, MANIFEST)), scratch):
        _sync(path)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    _sync(folder)
    kept = [path for path in _checkpoints(folder) if path <= target][-keep:]
    for other in set(_checkpoints(folder)) - set(kept):
        shutil.rmtree(other)
    return target


def load_checkpoint(
    folder: Path,
    model: Transformer,
    state: TrainState,
    check: Callable[[dict[str, Any]], None] = lambda extra: None,
) -> tuple[dict[str, Any] | None, list[str]]:
    """Put the newest whole checkpoint into `model` and `state`.

    `check` sees what was saved as `extra` first, and may raise.

    Returns:
        What was saved as `extra` (None if there is no checkpoint), and a sentence for each newer
        one that was passed over because it is damaged.
    """
    passed_over: list[str] = []
    for path in reversed(_checkpoints(folder)):
        if problem := _problem(path):
            passed_over.append(f"{path}: {problem}; passed over for the one before it")
            continue
        plain = json.loads((path / STATE).read_text(encoding="utf-8"))
        extra: dict[str, Any] = plain.pop("extra")
        check(extra)
        tensors = load_file(path / TENSORS)
        model.load_state_dict(_under("weights/", tensors))
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _under("optimizer/", tensors).items():
            index, _, key = name.partition("/")
            moments.setdefault(int(index), {})[key] = tensor
        plain["optimizer"] = {"state": moments, "param_groups": plain.pop("groups")}
        state.load_state_dict(plain)
        torch.set_rng_state(tensors["random"])
        return extra, passed_over
    return None, passed_over


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"))


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name in (TENSORS, STATE):
            if _fingerprint(path / name) != manifest[name]:
                return f"{name} isn't what was written"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it is incomplete ({error})"
    return None


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}


def _fingerprint(path: Path) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
