"""The model card and the picture of the losses in a run's folder."""

from __future__ import annotations

import io
import json
import shlex
from pathlib import Path
from typing import Any

from minimind.atomic_io import replace_file
from minimind.cli.summary import describe_losses, describe_weights
from minimind.training.fit import RunResult
from minimind.training.run_folder import CARD_TITLE, LAST


def model_card(record: dict[str, Any], result: RunResult, system: str | None) -> str:
    """A README for the run's folder, from what run.json holds."""
    options = record["options"]
    base = options["model"] or "minimind's embedded base"
    losses = describe_losses(result)
    if result.best_loss is not None:
        count = record["rows"]["validation"]
        losses = f"{losses}, of {count:,} {'row' if count == 1 else 'rows'}"
    card = (
        f"{CARD_TITLE} {record['versions']['minimind']}\n\n"
        f"- base: {base}\n"
        f"- data: {', '.join(options['files'])} "
        f"(SHA-256 of ids and mask: {record['identity']['data']})\n"
        f"- weights: {describe_weights(result)}; `{LAST}/` has those of step {result.steps}\n"
        f"- validation loss per supervised token: {losses}\n"
        f"- command: `{shlex.join(record['command'])}`\n"
        f"- format: ChatML; stops at `<|im_end|>`\n"
    )
    if system:
        card += (
            f"- system message of its training rows: {json.dumps(system, ensure_ascii=False)}. The "
            "chat template doesn't insert it: send it as the first message, as `minimind.chat` and "
            "`minimind.evaluate` do (it is recorded in minimind.json)\n"
        )
    return f"{card}\nOptions and versions are in run.json, losses by step in metrics.jsonl.\n"


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
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    replace_file(picture, drawn.getvalue())
