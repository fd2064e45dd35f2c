"""Tell whether a run may go on from a checkpoint, and whether to the last bit. Prints nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Of the surroundings, what the last bits depend on.
DECIDING = (
    "minimind",
    "torch",
    "threads",
    "processor",
    "device",
    "processes",
    "tokens per batch",
)
NEVER_THE_REASON = ("resume", "overwrite")


class TrainingError(RuntimeError):
    """A run that can't continue; the last checkpoint is intact."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What a run's weights come from; JSON values, kept in each of its checkpoints.

    Attributes:
        identity: by name, what must be equal to go on: data, tokenizer, options.
        options: all options, to say what made the data another.
        surroundings: versions, threads, the processor: what may change, but for the last bits.
        planned: steps of the whole run, which may grow.
    """

    identity: Mapping[str, Any]
    options: Mapping[str, Any]
    surroundings: Mapping[str, Any]
    planned: int


def refusal(saved: Origin, ours: Origin) -> str | None:
    """Why a run can't go on from a checkpoint, or None where it can."""
    for name, value in ours.identity.items():
        before = saved.identity.get(name)
        if before != value:
            changed = [
                f"--{option.replace('_', '-')} was {saved.options.get(option)} and is {now}"
                for option, now in ours.options.items()
                if saved.options.get(option) != now and option not in NEVER_THE_REASON
            ]
            reasons = f" ({', '.join(changed)})" if changed else ""
            return (
                f"its checkpoint was trained with {name} {before}, this run has {value}{reasons}; "
                "use the same data and options, or another --out"
            )
    if ours.planned < saved.planned:
        return (
            f"its checkpoint is of a run of {saved.planned} steps, this one has {ours.planned}; "
            "use at least as many --epochs, --max-steps or --tokens, or another --out"
        )
    return None


def changes(saved: Origin, ours: Origin) -> list[str]:
    """What will be different from a run that was never interrupted, a sentence each."""
    sentences = [
        f"not bit-exact: {name} was {saved.surroundings.get(name)} and is {now}"
        for name, now in ours.surroundings.items()
        if name in DECIDING and saved.surroundings.get(name) != now
    ]
    if ours.planned > saved.planned:
        sentences.append(
            f"{ours.planned} steps are planned and were {saved.planned}: from here on the learning "
            "rate follows the longer run's cosine"
        )
    return sentences
