"""The model card and the picture of the losses in a run's folder."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any


def model_card(record: dict[str, Any]) -> str:
    """A README for the run's folder, from what run.json holds."""
    options, outcome = record["options"], record["outcome"]
    base = options["model"] or "minimind's embedded base"
    losses = "no validation data: these are the last weights"
    if outcome["best_loss"] is not None:
        count = record["rows"]["validation"]
        losses = f"{describe_losses(outcome)}, of {count:,} {'row' if count == 1 else 'rows'}"
    return (
        f"# A chat model fine-tuned with minimind {record['versions']['minimind']}\n\n"
        f"- base: {base}\n"
        f"- data: {', '.join(options['files'])} "
        f"(SHA-256 of ids and mask: {record['identity']['data']})\n"
        f"- validation loss per supervised token: {losses}\n"
        f"- command: `{shlex.join(record['command'])}`\n"
        f"- format: ChatML; stops at `<|im_end|>`\n\n"
        "Options and versions are in run.json, losses by step in metrics.jsonl.\n"
    )


def describe_losses(outcome: dict[str, Any]) -> str:
    return (
        f"{outcome['first_loss']:.4f} before, {outcome['best_loss']:.4f} at its best "
        f"(step {outcome['best_step']}), {outcome['last_loss']:.4f} at the end"
    )


def loss_plot(metrics: Path, picture: Path) -> None:
    """Draw the losses by step, if the `plot` extra is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, label in (("loss", "training"), ("validation_loss", "validation")):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), label=label) if points else None
    axes.set(xlabel="optimizer step", ylabel="loss per supervised token")
    axes.legend()
    figure.savefig(picture)
