"""Resume a run from its newest checkpoint, or say why it can't be resumed to the same bits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from minimind.data.chatml import CHAT_TEMPLATE
from minimind.data.packing import Steps
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training.checkpoint import load_checkpoint
from minimind.training.environment import processor, versions
from minimind.training.loop import TrainConfig, TrainState

# What of the environment the last bits depend on.
DECIDING = ("minimind", "torch", "threads", "processor", "device", "processes", "tokens per batch")
CHANGE_NO_DATA = ("resume", "overwrite")


class TrainingError(RuntimeError):
    """A run that can't continue; the last checkpoint is intact."""


@dataclass(frozen=True, kw_only=True)
class RunFingerprint:
    """What a run's weights depend on: JSON values, kept in each of its checkpoints.

    Attributes:
        identity: by name, what must be equal to resume: data, tokenizer, options.
        options: all of the command's, to say which of them changed the identity.
        environment: what may change, though the last bits may change with it.
        steps: of the whole run; there may be more when it is resumed.
    """

    identity: Mapping[str, Any]
    options: Mapping[str, Any]
    environment: Mapping[str, Any]
    steps: int

    @classmethod
    def of(
        cls,
        model: Transformer,
        tokenizer: Tokenizer,
        steps: Steps,
        config: TrainConfig,
        identity: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> RunFingerprint:
        """The fingerprint of a run with these; `identity` is what the command adds to it."""
        sizes = {f"config.json's {name}": value for name, value in model.config.to_hf().items()}
        training = {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items()}
        texts = {
            "tokenizer": tokenizer.fingerprint,
            "chat template": hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
        }
        on_cuda = model.device.type == "cuda"
        environment = versions() | {
            "processor": processor(),
            "device": torch.cuda.get_device_name(model.device) if on_cuda else model.device.type,
            "processes": distributed.world_size(),
            "tokens per batch": steps.tokens_per_batch,
        }
        values = {
            "identity": {**texts, **identity, **sizes, **training},
            "options": options,
            "environment": environment,
            "steps": len(steps),
        }
        return cls(**json.loads(json.dumps(values, default=str)))  # as it will be read again


def why_incompatible(saved: RunFingerprint, ours: RunFingerprint) -> str | None:
    """Why a run can't resume from a checkpoint, or None if it can."""
    for name, value in ours.identity.items():
        before = saved.identity.get(name)
        if before != value:
            changed = [
                f"--{option.replace('_', '-')} was {saved.options.get(option)} and is {now}"
                for option, now in ours.options.items()
                if saved.options.get(option) != now and option not in CHANGE_NO_DATA
            ]
            reasons = f" ({', '.join(changed)})" if changed else ""
            return (
                f"its checkpoint was trained with {name} {before}, this run has {value}{reasons}; "
                "use the same data and options, or another --out"
            )
    if ours.steps < saved.steps:
        return (
            f"its checkpoint is of a run of {saved.steps} steps, this one has {ours.steps}; "
            "use at least as many --epochs, --max-steps or --tokens, or another --out"
        )
    return None


def changes(saved: RunFingerprint, ours: RunFingerprint) -> list[str]:
    """What makes the resumed run differ from one that was never interrupted, a sentence each."""
    sentences = [
        f"not bit-exact: {name} was {saved.environment.get(name)} and is {ours.environment[name]}"
        for name in DECIDING
        if saved.environment.get(name) != ours.environment[name]
    ]
    if ours.steps > saved.steps:
        sentences.append(
            f"{ours.steps} steps are planned and were {saved.steps}: from here on the learning "
            "rate follows the longer run's cosine"
        )
    return sentences


def rows_hash(steps: Steps, step: int) -> str:
    """Of the rows that the last of `step` steps trained: another plan would have others."""
    return hashlib.sha256(steps.rows_of(step - 1).tobytes()).hexdigest()


def extra_state(
    fingerprint: RunFingerprint, losses: Mapping[int, float], steps: Steps, step: int
) -> dict[str, Any]:
    """What a checkpoint after `step` steps holds besides the state; `resume` reads it."""
    return {
        "fingerprint": asdict(fingerprint),
        "rows": rows_hash(steps, step),
        "validation_losses": list(losses.items()),
    }


def resume(
    out: Path, model: Transformer, state: TrainState, steps: Steps, ours: RunFingerprint
) -> dict[int, float]:
    """Load the newest whole checkpoint of the run in `out`, if it has one, and say so.

    Returns:
        The validation losses so far, by step.

    Raises:
        TrainingError: the checkpoint belongs to another run or version, or is damaged.
    """

    def check(extra: dict[str, Any]) -> None:
        if "origin" in extra:
            raise TrainingError(
                f"{out}: its checkpoint is of minimind 0.1.0; finish the run with that version, or "
                f"start a new one from its weights with --model {out} and another --out"
            )
        if problem := why_incompatible(RunFingerprint(**extra["fingerprint"]), ours):
            raise TrainingError(f"{out}: {problem}")

    precision = state.precision
    try:
        extra, passed_over = load_checkpoint(out / "checkpoints", model, state, check)
        same_rows = extra is None or extra["rows"] == rows_hash(steps, state.step)
    except (KeyError, TypeError, IndexError) as error:
        raise TrainingError(
            f"{out}: its checkpoint isn't what this version writes ({error!r}); resume with the "
            "minimind that wrote it, or use another --out"
        ) from error
    for sentence in passed_over:
        print(sentence)
    if extra is None:
        if passed_over:  # a run from the beginning would overwrite its results
            raise TrainingError(
                f"{out}: none of its checkpoints is whole; restore one, or start again in another "
                "--out"
            )
        return {}
    if not same_rows:
        raise TrainingError(
            f"{out}: step {state.step} of its checkpoint trained other rows than this plan has "
            "there; use the NumPy and the minimind that it was made with, or another --out"
        )
    print(f"resuming from step {state.step} of {len(steps)}")
    for sentence in changes(RunFingerprint(**extra["fingerprint"]), ours):
        print(sentence)
    if distributed.world_size() > 1 and state.precision != precision:  # weights are gathered in it
        print(f"not bit-exact: precision was {state.precision} and is {precision}")
        state.compute_in(precision)
    return dict(extra["validation_losses"])
