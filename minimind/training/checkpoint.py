"""Save a run's resumable state so that a crash can't harm it. Knows no data and no schedule.

    checkpoints/
        step-00000120/
            tensors.safetensors     float32 weights, AdamW's moments, random states
            state.json              step, what probes decided, what the caller adds
            manifest.json           size and SHA-256 of the others, written last
        step-00000240/

A folder is written beside its place under another name, synced and renamed: one that has its final
name is whole. Nothing is ever unpickled. Whatever the number of processes, the first one writes
whole tensors, and any number of processes can go on from them.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind.atomic_io import sync, write_tensors
from minimind.model.transformer import Transformer
from minimind.training.distributed import gather_state, is_main_process, shard_state
from minimind.training.loop import TrainState

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
SPARE_BYTES = 2**20  # for what isn't tensors


def save_checkpoint(
    folder: Path, model: Transformer, state: TrainState, extra: dict[str, Any], keep: int = 2
) -> Path:
    """Write the state after `state.step` steps and drop all but the newest `keep` checkpoints.

    Later ones, which this run went back from, are dropped too. Every process must call it.

    Args:
        folder: holds the checkpoints.
        model: its weights.
        state: between two steps.
        extra: JSON values to find again on loading.
        keep: how many to leave.

    Returns:
        The new checkpoint's folder.

    Raises:
        OSError: there is no room for it, or the disk fails; the earlier ones are whole.
    """
    target = folder / f"step-{state.step:08d}"
    tensors, plain = _gather(model, state)
    if not is_main_process():
        return target
    scratch = folder / f".writing-{target.name}"
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, tensors)
    scratch.mkdir()
    write_tensors(scratch / TENSORS, tensors)
    _write_json(scratch / STATE, {**plain, "extra": extra})
    manifest = {name: _fingerprint(scratch / name) for name in (TENSORS, STATE)}
    for name in (TENSORS, STATE):
        sync(scratch / name)
    _write_json(scratch / MANIFEST, manifest)
    for path in (scratch / MANIFEST, scratch):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    for path in (folder, folder.parent):
        sync(path)
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
        tensors = load_file(path / TENSORS)  # mapped: moments mustn't keep the file open
        _scatter({n: x.clone() for n, x in tensors.items()}, plain, model, state)
        return extra, passed_over
    return None, passed_over


def read_extra(folder: Path) -> dict[str, Any] | None:
    """What the newest whole checkpoint has as `extra`; None if there is none."""
    for path in reversed(_checkpoints(folder)):
        if _problem(path) is None:
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            extra: dict[str, Any] = state["extra"]
            return extra
    return None


def _gather(model: Transformer, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything a run consists of between two steps: tensors on the CPU, and JSON values.

    The tensors are the main process's alone.
    """
    weights, optimizer = gather_state(model, state.optimizer)
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    others: dict[str, dict[str, Any]] = {}  # of the optimizer's state, by parameter
    for parameter, values in optimizer.get("state", {}).items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{parameter}/{name}"] = value
            else:
                others.setdefault(parameter, {})[name] = value
    tensors["random/cpu"] = torch.get_rng_state()
    if state.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(state.device).cpu()
    plain = {**state.state_dict(), "groups": optimizer.get("param_groups"), "others": others}
    del plain["optimizer"]  # it is above, by names
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, plain


def _scatter(
    tensors: dict[str, Tensor], plain: dict[str, Any], model: Transformer, state: TrainState
) -> None:
    """Put what `_gather` returned back in its places, in each process what belongs there."""
    moments: dict[str, dict[str, Any]] = plain.pop("others")
    for name, tensor in _under("optimizer/", tensors).items():
        parameter, _, key = name.partition("/")
        moments.setdefault(parameter, {})[key] = tensor
    optimizer = {"state": moments, "param_groups": plain.pop("groups")}
    shard_state(model, state.optimizer, _under("weights/", tensors), optimizer)
    state.load_state_dict(plain)
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and state.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], state.device)


def _check_room(folder: Path, tensors: dict[str, Tensor]) -> None:
    needed, free = sum(x.nbytes for x in tensors.values()), shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise OSError(
            f"{folder}: a checkpoint takes {needed / 1e9:,.3f} GB and {free / 1e9:,.3f} GB are "
            "free; make room, then go on from the one before"
        )


def _checkpoints(folder: Path) -> list[Path]:
    named = sorted(folder.glob("step-*"))  # somebody's own copies, too, which are let be
    return [path for path in named if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]


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
