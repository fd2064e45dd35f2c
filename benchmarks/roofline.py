"""The least time a training step can take on a GPU, by its datasheet. Nothing is measured here.

    python -m benchmarks.roofline --shape 64M --tokens 16384 --device all

By operations: what the model asks for (benchmarks/flops.py), its head at supervised positions only,
over the dense bf16 rate. By bytes: what must go through memory at least once over its bandwidth, in
mixed precision as we train:

    weights      float32 read and cast to bf16 once; bf16 read forward and backward
    gradients    float32 written, read for their norm, read by AdamW
    AdamW        float32 weights and two moments, read and written
    activations  what the backward pass needs, bf16: written once, read once
    logits       float32, of supervised positions: written once, read once

A real step takes longer than the larger of the two: kernels are launched, small products don't
fill the device, and nothing overlaps perfectly. Left out on purpose: what our last layer saves at
positions that aren't supervised, a few percent.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.flops import model_flops
from benchmarks.harness import markdown
from benchmarks.workload import SHAPES
from minimind.model.config import ModelConfig
from minimind.model.transformer import Transformer


@dataclass(frozen=True)
class Device:
    """A GPU as its maker describes it: dense bf16 with float32 sums, memory bandwidth."""

    name: str
    flops_per_second: float
    bytes_per_second: float
    source: str


DEVICES = {
    "3090": Device("RTX 3090", 71e12, 936e9, "NVIDIA Ampere GA102 architecture whitepaper"),
    "a100": Device("A100 80GB SXM", 312e12, 2039e9, "NVIDIA A100 80GB datasheet"),
    "h100": Device("H100 SXM", 989e12, 3350e9, "NVIDIA H100 datasheet, without sparsity"),
}

# MiniMind's README: one epoch of sft_t2t_mini with minimind-3 (64M), one RTX 3090, about 1.10 h,
# its author's estimate. Its trainer's defaults: 16 rows a step, each padded to 768 tokens.
# The number of rows isn't in that README: others' records of the same file say 905,718.
PUBLISHED_HOURS, PUBLISHED_ROWS, PUBLISHED_BATCH, PUBLISHED_LENGTH = 1.10, 905_718, 16, 768


@dataclass(frozen=True)
class Least:
    """Seconds that one optimizer step takes at least."""

    by_operations: float
    by_bytes: float

    @property
    def seconds(self) -> float:
        return max(self.by_operations, self.by_bytes)


def least(config: ModelConfig, lengths: list[int], supervised: float, device: Device) -> Least:
    """For one step over rows of these many tokens in one batch, a share of them supervised."""
    unread = (1 - supervised) * sum(lengths)
    operations = model_flops(config, lengths) - 6 * config.vocab_size * config.hidden_size * unread
    return Least(
        operations / device.flops_per_second,
        step_bytes(config, sum(lengths), supervised) / device.bytes_per_second,
    )


def step_bytes(config: ModelConfig, tokens: int, supervised: float) -> float:
    """What one step moves through memory, at least; see the head of this file."""
    weights = parameters(config) * (4 + 2 + 2 + 2)
    gradients = parameters(config) * 3 * 4
    adamw = parameters(config) * 3 * 2 * 4
    logits = supervised * tokens * config.vocab_size * 2 * 4
    return weights + gradients + adamw + activation_bytes(config) * tokens + logits


def activation_bytes(config: ModelConfig) -> int:
    """Of one token: two residual streams and two norms, q, k, v, what attention found, the MLP."""
    heads = config.num_attention_heads + config.num_key_value_heads
    per_layer = 4 * config.hidden_size + 2 * heads * config.head_dim + 3 * config.intermediate_size
    return 2 * 2 * config.num_hidden_layers * per_layer


def parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Transformer(config).parameters())


def main() -> None:
    options = parse()
    config = shape_of(options.shape)
    lengths = [options.length] * max(1, options.tokens // options.length)
    chosen = DEVICES if options.device == "all" else {options.device: DEVICES[options.device]}
    results = {name: least(config, lengths, options.supervised, chosen[name]) for name in chosen}
    if options.json:
        print(json.dumps({name: asdict(result) for name, result in results.items()}))
        return
    count = sum(lengths)
    print(
        f"{options.shape}: {parameters(config):,} parameters; a step of {count:,} tokens in rows "
        f"of {options.length}, {options.supervised:.0%} supervised\n"
    )
    header = ["device", "least, by operations", "by bytes", "tokens/s at most", "datasheet"]
    rows = [
        [
            device.name,
            f"{results[name].by_operations * 1e3:.2f} ms",
            f"{results[name].by_bytes * 1e3:.2f} ms",
            f"{count / results[name].seconds:,.0f}",
            device.source,
        ]
        for name, device in chosen.items()
    ]
    print(markdown(header, rows))
    if options.shape == "64M" and "3090" in chosen:
        print("\n" + published(config))


def published(config: ModelConfig) -> str:
    """MiniMind's published hour beside the least time for what its trainer would compute."""
    steps = PUBLISHED_ROWS / PUBLISHED_BATCH
    rows = [PUBLISHED_LENGTH] * PUBLISHED_BATCH
    hours = steps * least(config, rows, 1.0, DEVICES["3090"]).seconds / 3600
    sentence = (
        f"MiniMind's README: {PUBLISHED_HOURS:.2f} h an epoch on one RTX 3090 (an estimate). If "
        f"that is {PUBLISHED_ROWS:,} rows padded to {PUBLISHED_LENGTH}, {PUBLISHED_BATCH} a step, "
        f"the least time is {hours:.2f} h: {hours / PUBLISHED_HOURS:.0%} of what is published."
    )
    if hours > PUBLISHED_HOURS:
        sentence += " More than all can't be: its rows were fewer or shorter than assumed here."
    return sentence


def shape_of(name: str) -> ModelConfig:
    """One of the workload's shapes, or a config.json."""
    if name in SHAPES:
        return SHAPES[name]
    return ModelConfig.from_hf(json.loads(Path(name).read_text(encoding="utf-8")))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="64M", help=f"{', '.join(SHAPES)} or a config.json")
    parser.add_argument("--tokens", type=int, default=4096, help="of one step")
    parser.add_argument("--length", type=int, default=256, help="tokens of a row")
    parser.add_argument("--supervised", type=float, default=0.5, help="share of the tokens")
    parser.add_argument("--device", choices=[*DEVICES, "all"], default="all")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
