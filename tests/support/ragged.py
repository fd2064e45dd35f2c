"""A tiny decoder and rows of random ids and lengths to train it on. Knows no text."""

from __future__ import annotations

from dataclasses import replace

import torch

from minimind.data.dataset import Dataset, Example
from minimind.model.config import ModelConfig
from minimind.model.transformer import Transformer

CONFIG = ModelConfig(
    model_type="qwen3",
    vocab_size=48,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    tie_word_embeddings=True,
    qk_norm=True,
)


def new_model(seed: int = 0, **fields: object) -> Transformer:
    """Fresh weights, the same for the same seed; larger than usual, so that they matter."""
    return Transformer(replace(CONFIG, **fields)).initialize(seed, std=0.1)


def ragged_rows(count: int, *, weighted: bool = False, seed: int = 0) -> Dataset:
    """Rows of 4 to 40 tokens: a context of 2 or more, then what is trained, with a gap in it."""
    generator = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    rows = []
    for _ in range(count):
        length = number(4, 41)
        start, gap = number(2, length), number(2, length)
        mask = [index >= start and index != gap for index in range(length)]
        mask[-1] = True
        ids = [number(0, CONFIG.vocab_size) for _ in mask]
        weights = [number(1, 5) / 2 if trained else 0.0 for trained in mask] if weighted else None
        rows.append(Example(ids, mask, weights))
    return Dataset.from_examples(rows)
