"""What share of the small world serves best: the same short pretraining with several shares of it.

    python -m benchmarks.world_share corpus/*.jsonl --out runs/shares --shares 0.3 0.6 0.85

The files called world.* get a share of the tokens together, all others the rest, each file by its
size. Of each model: bits per byte of held-back text, the world's and the rest's, by script; and,
fine-tuned on the sample, the share of held-out prompts that it answers right (greedy). What is done
already isn't done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import minimind
from benchmarks.environment import environment
from benchmarks.held_out import GREEDY, GROUPS, ask, read_prompts
from benchmarks.tuning import tune
from minimind.base.recipe.pretraining import pretrain
from minimind.data.dataset import Dataset
from minimind.data.selection import split_by_prompt
from minimind.model.pretrained import load_tokenizer
from minimind.pretrain.corpus import build_corpus, scripts_of
from minimind.tokenizer import Tokenizer
from minimind.training.scoring import score

KINDS = ("world hangul", "world latin", "rest hangul", "rest latin")
HEADER = f"| share | tokens | {' | '.join((*KINDS, *GROUPS))} |\n" + "|--" * 10 + "|"


def is_world(file: str) -> bool:
    return Path(file).name.startswith("world.")


def weights(windows: Dataset, files: Sequence[str], share: float) -> list[float]:
    """A weight per file: the world's files have `share` together, each by its size."""
    sizes = np.bincount(
        windows.column("file"), weights=windows.column("input_length"), minlength=len(files)
    )
    world = np.array([is_world(file) for file in files])
    if not 0 < share < 1 or world.all() or not world.any():
        raise ValueError("use shares between 0 and 1, of files called world.* and others")
    parts = np.where(world, share / sizes[world].sum(), (1 - share) / sizes[~world].sum())
    return [round(weight, 6) for weight in (sizes * parts).tolist()]


def kinds_of(dataset: Dataset, tokenizer: Tokenizer, files: Sequence[str]) -> list[str]:
    """For each window what its document is: one of KINDS, or like them ("rest none")."""
    scripts = scripts_of(dataset, tokenizer)
    return [
        f"{'world' if is_world(files[file]) else 'rest'} {script}"
        for file, script in zip(dataset.column("file"), scripts, strict=True)
    ]


def bits_by_kind(run: Path, held_back: Dataset, files: Sequence[str]) -> dict[str, float]:
    """Bits per byte of each of KINDS that something is held back of."""
    model, tokenizer = minimind.load(run)
    scores = score(model, held_back, tokenizer)
    kinds = np.array(kinds_of(held_back, tokenizer, files))
    return {
        kind: scores.select(kinds == kind).bits_per_byte for kind in KINDS if (kinds == kind).any()
    }


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.3, 0.6, 0.85])
    parser.add_argument("--config", default="small", help="a shape, as for pretraining")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--tokens", type=int, default=2_000_000)
    parser.add_argument("--tokens-per-step", type=int, default=8192)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--val-fraction", type=float, default=0.01)
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time")
    options = parser.parse_args(argv)
    windows, _ = build_corpus(options.files, load_tokenizer(), options.max_length)
    training, held_back = split_by_prompt(windows, options.val_fraction)
    mixes = {share: weights(training, options.files, share) for share in options.shares}
    names = ("config", "learning_rate", "tokens", "tokens_per_step", "max_length", "val_fraction")
    choices = {name.replace("_", "-"): getattr(options, name) for name in names}
    choices["eval-every"] = 10**9  # scored here instead

    def train(share: float) -> tuple[Path, Path]:
        base = options.out / f"{share:g}"
        pretrain(options.files, base, choices, mixes[share], options.at_once)
        tune(base, base / "tuned", at_once=options.at_once)
        return base, base / "tuned"

    print(HEADER, flush=True)
    results: dict[str, dict[str, Any]] = {}
    prompts = read_prompts()
    with ThreadPoolExecutor(options.at_once) as pool:
        for share, (base, tuned) in zip(mixes, pool.map(train, mixes), strict=True):
            bits = bits_by_kind(base, held_back, options.files)
            right = ask(*minimind.load(tuned), prompts, GREEDY)
            results[f"{share:g}"] = {"bits_per_byte": bits, "held_out": right}
            cells = [f"{bits[kind]:.4f}" if kind in bits else "-" for kind in KINDS]
            cells += [f"{right[group]:.1%}" for group in GROUPS]
            print(f"| {share:.0%} | {options.tokens:,} | {' | '.join(cells)} |", flush=True)
    print(json.dumps(environment() | {"shares": results}, ensure_ascii=False))


if __name__ == "__main__":
    main()
