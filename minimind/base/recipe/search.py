"""Search shapes and learning rates at equal compute, each by a short pretraining; print a table.

    python -m minimind.base.recipe.search corpus/*.jsonl --out runs/search \\
        --shapes 4x320 6x256 10x192 --learning-rates 5e-4 1e-3 2e-3 --tokens 2000000

--tokens are those of the first shape; the others get as many as cost the same operations. What is
done already isn't done again: the same command goes on. Knows nothing of how a model is trained:
every run is `python -m minimind.pretrain` in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from minimind.base.recipe.pretraining import pretrain
from minimind.cli.command import fail, prepare_terminal
from minimind.model.config import ModelConfig
from minimind.model.pretrained import load_tokenizer
from minimind.model.transformer import Transformer
from minimind.pretrain.corpus import build_corpus
from minimind.pretrain.shapes import qwen3_shape

HEAD_DIM = 64
HEADER = (
    "| shape | parameters | learning rate | tokens | minutes | bits per byte | hangul | latin |\n"
    "|--|--|--|--|--|--|--|--|"
)


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Pretrain every shape with every learning rate, all for the same number of operations."""

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """As for pretraining."""
    out: Path
    """The folder of the runs."""
    shapes: tuple[str, ...] = ("6x256", "4x320", "3x384")
    """LAYERSxWIDTH; the width in heads of 64. The first one's --tokens are the compute."""
    learning_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3)
    """The peaks."""
    tokens: int = 2_000_000
    """Tokens that the first shape is trained on."""
    mix: tuple[float, ...] = ()
    """A weight per file, as for pretraining."""
    max_length: int = 512
    """Tokens per window."""
    tokens_per_step: int = 8192
    """Tokens of one optimizer step."""
    val_fraction: float = 0.01
    """Share of the documents to validate on."""
    at_once: int = 1
    """Runs at a time, each with its part of the cores: small models use few cores better."""

    def __post_init__(self) -> None:
        for name in ("files", "shapes", "learning_rates"):
            if not getattr(self, name):
                raise ValueError(f"{name.replace('_', '-')}: none are given; name some")
        for name in ("tokens", "at_once"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)}; use a positive number"
                )


def shape_of(name: str, vocab_size: int) -> ModelConfig:
    """What "6x256" means: 6 layers of width 256, half as many key-value heads as heads.

    Raises:
        ValueError: it isn't LAYERSxWIDTH.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", name)
    if not match or int(match[2]) % HEAD_DIM or not int(match[2]):
        raise ValueError(f"--shapes has {name}; write LAYERSxWIDTH, a width in heads of {HEAD_DIM}")
    layers, width = int(match[1]), int(match[2])
    heads = width // HEAD_DIM
    kv_heads = heads // 2 if heads % 2 == 0 else 1
    return qwen3_shape(
        layers=layers, width=width, heads=heads, kv_heads=kv_heads, vocab_size=vocab_size
    )


def operations_per_token(shape: ModelConfig, attended: float) -> float:
    """Floating-point operations of training on one token, forward and backward.

    6 for each weight of a matrix, the head's too (Kaplan et al. 2020, 2001.08361), and 12 for each
    pair of a token with one it sees, for each dimension of each head.

    Args:
        shape: the model's.
        attended: tokens that a token sees, itself too, on average.
    """
    width, heads = shape.hidden_size, shape.num_attention_heads * shape.head_dim
    kv_heads = shape.num_key_value_heads * shape.head_dim
    layer = width * (2 * heads + 2 * kv_heads + 3 * shape.intermediate_size)
    matrices = shape.num_hidden_layers * layer + shape.vocab_size * width
    return 6 * matrices + 12 * shape.num_hidden_layers * heads * attended


def search(options: SearchOptions) -> None:
    """Run what isn't done yet, and print the table as it grows."""
    tokenizer = load_tokenizer()
    shapes = {name: shape_of(name, tokenizer.vocab_size) for name in options.shapes}
    windows, _ = build_corpus(options.files, tokenizer, options.max_length)
    lengths = windows.column("input_length").astype(np.float64)
    attended = float((lengths * (lengths + 1) / 2).sum() / lengths.sum())
    costs = {name: operations_per_token(shape, attended) for name, shape in shapes.items()}
    compute = options.tokens * costs[options.shapes[0]]
    print(f"{compute:.3g} operations each\n\n{HEADER}", flush=True)

    def run(name: str, rate: float) -> str:
        out = options.out / f"{name}-{rate:g}"
        out.mkdir(parents=True, exist_ok=True)
        config = out / "shape.json"
        config.write_text(json.dumps(shapes[name].to_hf()), encoding="utf-8")
        choices: dict[str, object] = {
            "config": config,
            "learning-rate": rate,
            "tokens": round(compute / costs[name]),
            "max-length": options.max_length,
            "tokens-per-step": options.tokens_per_step,
            "val-fraction": options.val_fraction,
            "eval-every": 10**9,  # before the first step and after the last alone
        }
        pretrain(options.files, out, choices, options.mix, options.at_once)
        return _row(name, shapes[name], rate, out)

    runs = list(itertools.product(options.shapes, options.learning_rates))
    with ThreadPoolExecutor(options.at_once) as pool:
        for row in pool.map(run, *zip(*runs, strict=True)):
            print(row, flush=True)


def _row(name: str, shape: ModelConfig, rate: float, out: Path) -> str:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics: list[dict[str, Any]] = [json.loads(line) for line in lines]
    steps = [line for line in metrics if "tokens" in line]
    measured = [line for line in metrics if "validation_loss" in line][-1:]
    last = measured[0] if measured else {}
    figures = [last.get(f"bits_per_byte{of}") for of in ("", "_hangul", "_latin")]
    with torch.device("meta"):
        parameters = sum(p.numel() for p in Transformer(shape).parameters())
    cells = [
        name,
        f"{parameters:,}",
        f"{rate:g}",
        f"{sum(line['tokens'] for line in steps):,}",
        f"{sum(line['seconds'] for line in steps) / 60:.1f}",
        *("-" if figure is None else f"{figure:.4f}" for figure in figures),
    ]
    return f"| {' | '.join(cells)} |"


def main(argv: list[str] | None = None) -> int:
    """Parse the command line and search."""
    prepare_terminal()
    try:
        search(tyro.cli(SearchOptions, args=argv, prog="python -m minimind.base.recipe.search"))
    except (ValueError, OSError) as error:
        return fail(1, error)
    except KeyboardInterrupt:
        return fail(130, "interrupted; the same command goes on")
    return 0


if __name__ == "__main__":
    sys.exit(main())
