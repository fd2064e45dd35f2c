"""Save a run's resumable state so that a crash can't harm it.

    checkpoints/
        step-00000120/
            tensors.safetensors     float32 weights, AdamW's moments, random states
            best.safetensors        the best weights so far, if there are any: a hard link
            state.json              step, precision, learning rates, what the caller adds
            manifest.json           size and SHA-256 of the others, written last
        step-00000240/

A folder is written beside its place under another name, synced and renamed: one that has its final
name is complete. Nothing is ever unpickled. Whatever the number of processes, the first one writes
complete tensors, and any number of processes can resume from them.
"""

from __future__ import annotations

import gc
import json
import re
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from minimind.atomic_io import link_or_copy, sha256_of, sync, write_tensors
from minimind.model.transformer import Transformer
from minimind.training.distributed import is_main_process, world_size
from minimind.training.state import TrainState

TENSORS, STATE, MANIFEST = "tensors.safetensors", "state.json", "manifest.json"
BEST = "best.safetensors"
SPARE_BYTES = 2**20  # for what isn't tensors


def save_checkpoint(
    folder: Path,
    model: Transformer,
    state: TrainState,
    extra: dict[str, Any],
    keep: int = 2,
    best: Path | None = None,
) -> Path:
    """Write the state after `state.step` steps and drop all but the newest `keep` checkpoints.

    Newer ones, which this run passed over as damaged, are dropped, too. Every process must call it.
    `extra` is JSON values to find again on loading, `best` a file with the best weights so far.
    Returns the new checkpoint's folder.

    Raises:
        OSError: there is no room for it, or the disk fails; the earlier ones are complete.
    """
    target = folder / f"step-{state.step:08d}"
    tensors, plain = _gather(model, state)
    if not is_main_process():
        return target
    scratch = folder / f".writing-{target.name}"
    for unfinished in folder.glob(".writing-*"):
        shutil.rmtree(unfinished, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = sum(x.nbytes for x in tensors.values()), shutil.disk_usage(folder).free
    if needed + SPARE_BYTES > free:
        raise OSError(
            f"{folder}: a checkpoint takes {needed / 1e9:,.3f} GB and {free / 1e9:,.3f} GB are "
            "free; make room, then resume from the one before"
        )
    scratch.mkdir()
    write_tensors(scratch / TENSORS, tensors)
    _write_json(scratch / STATE, {**plain, "extra": extra})
    names = [TENSORS, STATE]
    if best is not None:
        link_or_copy(best, scratch / BEST)
        names.append(BEST)
    _write_json(scratch / MANIFEST, {name: _fingerprint(scratch / name) for name in names})
    for path in (*(scratch / name for name in (*names, MANIFEST)), scratch):
        sync(path)
    shutil.rmtree(target, ignore_errors=True)
    scratch.rename(target)
    for path in (folder, folder.parent):
        sync(path)
    kept = [path for path in _checkpoints(folder) if path <= target][-keep:]
    for other in set(_checkpoints(folder)) - set(kept):
        shutil.rmtree(other)
    return target


def newest_checkpoint(
    folder: Path, hash_tensors: bool = True
) -> tuple[Path | None, dict[str, Any], list[str]]:
    """The newest complete checkpoint, or None; its `extra`; a sentence for each damaged one."""
    passed_over: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
            optional = {BEST} & manifest.keys()
            for name in (TENSORS, STATE, *optional) if hash_tensors else (STATE,):
                if _fingerprint(path / name) != manifest[name]:
                    raise ValueError(f"{name} isn't what was written")
            state = json.loads((path / STATE).read_text(encoding="utf-8"))
            return path, state["extra"], passed_over
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            passed_over.append(f"{path}: is damaged ({error}); using the one before it")
    return None, {}, passed_over


def load_checkpoint(path: Path, model: Transformer, state: TrainState) -> None:
    """Put a checkpoint into `model` and `state`, in each process what belongs there."""
    from torch.distributed.checkpoint import state_dict

    plain = json.loads((path / STATE).read_text(encoding="utf-8"))
    # Cloned, since they are mapped: moments mustn't keep the file open.
    tensors = {name: tensor.clone() for name, tensor in load_file(path / TENSORS).items()}
    moments: dict[str, Any] = defaultdict(dict)
    for name, tensor in _under("optimizer/", tensors).items():
        parameter, _, key = name.partition("/")
        moments[parameter][key] = tensor
    optimizer = {"state": moments, "param_groups": plain.pop("groups")}
    full = state_dict.StateDictOptions(full_state_dict=True)
    state_dict.set_model_state_dict(model, _under("weights/", tensors), options=full)
    state_dict.set_optimizer_state_dict(model, state.optimizer, optimizer, options=full)
    if world_size() > 1:
        gc.collect()  # PyTorch's function leaves a cycle that holds the moments in one piece
    state.load_state_dict(plain)
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and state.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"], state.device)


def _gather(model: Transformer, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU (weights and moments on the main process only), and JSON values."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state_dicts: Any = get_state_dict(model, state.optimizer, options=options)
    weights, optimizer = state_dicts
    tensors = {f"weights/{name}": tensor for name, tensor in weights.items()}
    for parameter, moments in optimizer.get("state", {}).items():
        tensors |= {f"optimizer/{parameter}/{name}": x for name, x in moments.items()}
    tensors["random/cpu"] = torch.get_rng_state()
    if state.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(state.device).cpu()
    plain = state.state_dict() | {"groups": optimizer.get("param_groups")}
    del plain["optimizer"]  # it is above, by names
    return {name: tensor.contiguous() for name, tensor in tensors.items()}, plain


def remove_checkpoints(folder: Path) -> None:
    """Remove complete and unfinished checkpoints; what else lies there stays."""
    for path in (*_checkpoints(folder), *folder.glob(".writing-*")):
        shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    named = sorted(folder.glob("step-*"))  # a user's own copies, too, which aren't touched
    return [path for path in named if re.fullmatch(r"step-\d{8,}", path.name) and path.is_dir()]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {name[len(prefix) :]: x for name, x in tensors.items() if name.startswith(prefix)}


def _fingerprint(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False, indent=1) + "\n"
    # What UTF-8 can't write, such as bytes in a file's name, is escaped as in JSON.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
