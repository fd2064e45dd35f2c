"""A model so small that a whole run with it takes a second, with the embedded tokenizer."""

from __future__ import annotations

from pathlib import Path

import minimind.model.pretrained
from minimind.model.config import ModelConfig
from minimind.model.pretrained import save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer

CONFIG = ModelConfig(
    model_type="qwen3",
    vocab_size=8192,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rms_norm_eps=1e-6,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_position_embeddings=256,
    tie_word_embeddings=True,
    qkv_bias=False,
    o_bias=False,
    mlp_bias=False,
    qk_norm=True,
)


def write_base(folder: Path) -> Path:
    """A Hugging Face folder of the tiny model with fresh weights."""
    tokenizer = Tokenizer.load(minimind.model.pretrained.BASE)
    save(folder, Transformer(CONFIG).initialize(1), tokenizer)
    return folder
