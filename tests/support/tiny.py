"""A model so small that a whole run with it takes a second, with the embedded tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import minimind.model.pretrained
from minimind.model.pretrained import save
from minimind.model.transformer import Transformer
from minimind.pretrain.shapes import SHAPES
from minimind.tokenizer import Tokenizer

CONFIG = replace(
    SHAPES["small"],
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    max_position_embeddings=256,
)


def write_base(folder: Path, seed: int = 1, context: int = 256) -> Path:
    """A Hugging Face folder of the tiny model with fresh weights."""
    tokenizer = Tokenizer.load(minimind.model.pretrained.BASE)
    config = replace(CONFIG, max_position_embeddings=context)
    save(folder, Transformer(config).initialize(seed), tokenizer)
    return folder
