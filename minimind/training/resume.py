"""Resume a run from its newest checkpoint, or say why it can't be resumed to the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minimind.data.plan import Steps
from minimind.data.template import chat_template
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training.checkpoint import BEST, load_checkpoint, newest_checkpoint
from minimind.training.environment import processor, versions
from minimind.training.run_folder import CHECKPOINTS, METRICS
from minimind.training.state import TrainConfig, TrainState

HARMLESS = ("python", "tokenizers", "safetensors", "numpy")  # the last bits don't depend on them
OF_A_CALL = ("--resume", "--overwrite", "--out")  # a run may be moved
FREE = ("activation_checkpointing", "compile")  # a run may be resumed with or without them


class TrainingError(RuntimeError):
    """A run that can't continue; the last checkpoint is intact."""


def run_fingerprint(
    model: Transformer,
    tokenizer: Tokenizer,
    steps: Steps,
    config: TrainConfig,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run's weights depend on: JSON values, kept in each of its checkpoints.

    identity      by name, what must be equal to resume; the command adds its own
    options       of the command, by name, to say which of them changed the identity
    environment   what may change, though the last bits may change with it
    steps         of the complete run; there may be more when it is resumed
    """
    template = chat_template(tokenizer.framed, tokenizer.thinking)
    on_cuda = model.device.type == "cuda"
    values = {
        "identity": {
            "tokenizer": tokenizer.fingerprint,
            "chat template": hashlib.sha256(template.encode()).hexdigest(),
            **identity,
            **{f"config.json's {name}": value for name, value in model.config.to_hf().items()},
            **{f"--{n.replace('_', '-')}": x for n, x in asdict(config).items() if n not in FREE},
        },
        "options": {n: x for n, x in options.items() if n not in OF_A_CALL},
        "environment": {
            **versions(),
            "processor": processor(),
            "device": torch.cuda.get_device_name(model.device) if on_cuda else model.device.type,
            "processes": distributed.world_size(),
            "tokens per batch": steps.tokens_per_batch,
            "compile": config.compile,
        },
        "steps": len(steps),
    }
    fingerprint: dict[str, Any] = json.loads(json.dumps(values, default=str))  # as a checkpoint's
    return fingerprint


def _changes(
    saved: Mapping[str, Any], ours: Mapping[str, Any], names: Iterable[str] | None = None
) -> list[str]:
    return [
        f"{name} was {saved.get(name)} and is {ours[name]}"
        for name in names or ours
        if saved.get(name) != ours[name]
    ]


def rows_hash(steps: Steps, step: int) -> str:
    """Of the rows that the last of `step` steps trained: another plan would have others."""
    return hashlib.sha256(steps.rows_of(step - 1).tobytes()).hexdigest()


def resume(
    out: Path, model: Transformer, state: TrainState, steps: Steps, ours: Mapping[str, Any]
) -> tuple[dict[int, float], Path | None]:
    """Load the newest complete checkpoint of the run in `out`, if it has one, and say so.

    `ours` is this run's `run_fingerprint`. Returns the validation losses so far, by step, and the
    file with the best weights so far, if there are any.

    Raises:
        TrainingError: the checkpoint belongs to another run or version, or is damaged.
    """
    path, extra, passed_over = newest_checkpoint(out / CHECKPOINTS)
    for sentence in passed_over:
        print(sentence)
    if path is None:
        if passed_over:  # a run from the beginning would overwrite its results
            raise TrainingError(
                f"{out}: none of its checkpoints is complete; restore one, or start again in "
                "another --out"
            )
        if distributed.is_main_process() and (out / METRICS).exists():
            print("no checkpoint yet: starting from the beginning")
        return {}, None
    precision = state.precision
    try:
        saved = extra["fingerprint"]
        changed = _changes(saved["identity"], ours["identity"])[:1]
        if ours["steps"] < saved["steps"]:
            changed += _changes(saved, ours, ["steps"])
        if changed:
            changed += _changes(saved["options"], ours["options"])  # may name the same again
            raise TrainingError(
                f"{out}: its checkpoint is of another run: {', '.join(dict.fromkeys(changed))}; "
                "use the same data and options, at least as many steps, or another --out"
            )
        load_checkpoint(path, model, state)
        same_rows = extra["rows"] == rows_hash(steps, state.step)
        losses = dict(extra["validation_losses"])
        best = path / BEST if losses else None
        if best and not best.exists():
            raise KeyError(BEST)
        deciding = [name for name in ours["environment"] if name not in HARMLESS]
        inexact = _changes(saved["environment"], ours["environment"], deciding)
    except (KeyError, TypeError, IndexError) as error:
        raise TrainingError(
            f"{out}: its checkpoint is of another version of minimind ({error!r}); finish the run "
            f"with that version, or start a new one from its weights with --model {out} and "
            "another --out"
        ) from error
    if not same_rows:
        raise TrainingError(
            f"{out}: step {state.step} of its checkpoint trained other rows than this plan has "
            "there; use the NumPy and the minimind that it was made with, or another --out"
        )
    print(f"resuming from step {state.step} of {len(steps)}")
    if distributed.world_size() > 1 and state.precision != precision:  # FSDP was set up for this
        inexact.append(f"precision was {state.precision} and is {precision}")
        state.set_precision(precision)
    for change in inexact:
        print(f"not bit-exact: {change}")
    if ours["steps"] > saved["steps"]:
        print(
            f"{ours['steps']} steps are planned and were {saved['steps']}: from here on the "
            "learning rate follows the longer run's cosine"
        )
    return losses, best
