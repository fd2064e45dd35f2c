"""What the embedded base is worth: the same fine-tuning from it and from random weights.

    python -m benchmarks.starts --out runs/starts

Fine-tunes twice on the sample as README's first command does, asks every hundredth step's model the
held-out prompts (greedy), and draws validation loss and share of right answers by step
(docs/starts.png, with the plot extra). What is done already isn't done again. The two tuned folders
are left for `python -m benchmarks.held_out`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import minimind
from benchmarks.environment import environment
from benchmarks.held_out import GREEDY, GROUPS, ask, read_prompts
from benchmarks.tuning import tune
from minimind.model.transformer import Transformer

FIGURE = Path(__file__).parents[1] / "docs" / "starts.png"
BASE, RANDOM = "the embedded base", "random weights"
EVERY = 100  # steps between two validations, and two rounds of questions
WEIGHTS = "weights/"  # what names of a checkpoint's weights begin with


def write_start(name: str, folder: Path) -> None:
    """The folder to start from: the embedded base, or its shape with random weights.

    Raises:
        ValueError: other weights stand there.
    """
    model, tokenizer = minimind.load()
    if name == RANDOM:
        model = Transformer(model.config).initialize(seed=0)
    if folder.exists():
        weights, found = model.state_dict(), minimind.load(folder)[0].state_dict()
        if weights.keys() != found.keys() or not all(map(_same, weights.values(), found.values())):
            raise ValueError(f"{folder} is another base's; name another --out")
        return
    minimind.save(folder, model, tokenizer)


def _same(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(ours, theirs)


def follow(start: Path, out: Path) -> list[dict[str, Any]]:
    """Answers by step: of the start, and of every checkpoint."""
    notes = out / "held_out.json"
    if notes.exists():
        known: list[dict[str, Any]] = json.loads(notes.read_text(encoding="utf-8"))
        return known
    model, tokenizer = minimind.load(start)
    prompts = read_prompts()
    checkpoints = sorted((out / "checkpoints").glob("step-*"))
    found = [{"step": 0, **ask(model, tokenizer, prompts, GREEDY)}]
    for checkpoint in checkpoints:
        tensors = load_file(checkpoint / "tensors.safetensors")
        weights = {n: x for n, x in tensors.items() if n.startswith(WEIGHTS)}
        model.load_state_dict({n.removeprefix(WEIGHTS): x for n, x in weights.items()})
        step = int(checkpoint.name.removeprefix("step-"))
        found.append({"step": step, **ask(model, tokenizer, prompts, GREEDY)})
        print(f"{out.name}: step {step}, {_right(found[-1], 'paraphrase'):.0%} right", flush=True)
    notes.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return found


def losses(out: Path) -> list[tuple[int, float]]:
    """Validation losses by step."""
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["step"], row["validation_loss"]) for row in rows if "validation_loss" in row]


def _right(found: dict[str, Any], kind: str) -> float:
    """The share of right answers to prompts of a kind: the languages have as many each."""
    shares = [found[group] for group in GROUPS if group.endswith(kind)]
    return sum(shares) / len(shares)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Two panels: validation loss, and the shares of right answers."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, result), colour in zip(results.items(), ("tab:blue", "tab:orange"), strict=True):
        left.plot(*zip(*result["losses"], strict=True), color=colour, label=name)
        steps = [found["step"] for found in result["answers"]]
        for kind, style in (("paraphrase", "-"), ("fact", ":")):
            shares = [100 * _right(found, kind) for found in result["answers"]]
            right.plot(steps, shares, style, color=colour, marker=".", label=f"{kind}s, {name}")
    left.set(xlabel="step", ylabel="validation loss, nats per token", ylim=(0, None))
    right.set(xlabel="step", ylabel="held-out prompts answered right, %", ylim=(0, 100))
    for panel in (left, right):
        panel.grid(alpha=0.3)
        panel.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/starts"))
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args(argv)
    results: dict[str, dict[str, Any]] = {}
    for name in (BASE, RANDOM):
        start, out = options.out / f"{name} start", options.out / name
        write_start(name, start)
        tune(start, out, save_every=EVERY)
        results[name] = {"answers": follow(start, out), "losses": losses(out)}
    print("| from | step | validation loss | paraphrases right | facts right |\n|--|--|--|--|--|")
    for name, result in results.items():
        by_step = dict(result["losses"])
        for found in result["answers"]:
            print(
                f"| {name} | {found['step']} | {by_step.get(found['step'], float('nan')):.4f} | "
                f"{_right(found, 'paraphrase'):.1%} | {_right(found, 'fact'):.1%} |"
            )
    print(json.dumps(environment() | {"starts": results}, ensure_ascii=False))
    try:
        draw(results, options.figure)
    except ImportError:
        print("no figure: pip install -e '.[plot]'", file=sys.stderr)


if __name__ == "__main__":
    main()
