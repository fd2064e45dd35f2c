"""A few named shapes of models to pretrain, and others like them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from minimind.model.config import ModelConfig
from minimind.tokenizer.files import parse_object


def qwen3_shape(
    *,
    layers: int,
    width: int,
    heads: int,
    kv_heads: int,
    vocab_size: int = 8192,
    intermediate_size: int | None = None,
    context: int = 1024,
) -> ModelConfig:
    """A small model of Qwen3's kind: q/k norm, grouped queries in heads of 64, a tied head.

    By default `intermediate_size` is 8/3 of the width, rounded up to a multiple of 64.
    """
    return ModelConfig(
        model_type="qwen3",
        vocab_size=vocab_size,
        hidden_size=width,
        intermediate_size=intermediate_size or -(-8 * width // (3 * 64)) * 64,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=64,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        qk_norm=True,
    )


SHAPES = {
    "tiny": qwen3_shape(layers=4, width=128, heads=2, kv_heads=1),  # 1.8 million parameters
    "small": qwen3_shape(layers=4, width=320, heads=5, kv_heads=1),  # 7.0, the embedded base's
    "medium": qwen3_shape(layers=12, width=512, heads=8, kv_heads=2),  # 38
}


def shape_named(name: str, vocab_size: int) -> ModelConfig:
    """One of SHAPES with the tokenizer's number of ids, or the shape in a JSON file.

    Raises:
        ValueError: there is no such name or file, the file isn't a config.json, or its vocabulary
            is too small.
    """
    if name in SHAPES:
        return replace(SHAPES[name], vocab_size=vocab_size)
    if not Path(name).is_file():
        raise ValueError(f"{name}: no such shape; use {', '.join(SHAPES)} or a JSON file")
    shape = ModelConfig.from_hf(parse_object(Path(name).read_bytes(), Path(name)), name)
    if vocab_size > shape.vocab_size:
        raise ValueError(
            f"{name}: vocab_size is {shape.vocab_size} and the tokenizer has {vocab_size} ids; "
            "raise it"
        )
    return shape
