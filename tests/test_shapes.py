"""Shapes go by names, or stand in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.model.config import ModelConfig
from minimind.model.pretrained import BASE
from minimind.model.transformer import Transformer
from minimind.pretrain.shapes import SHAPES, qwen3_shape, shape_named


def test_a_named_shape_has_as_many_rows_as_the_tokenizer_ids() -> None:
    assert shape_named("small", 8192) == SHAPES["small"]
    assert shape_named("tiny", 500).vocab_size == 500


def test_small_is_the_embedded_bases_shape() -> None:
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    assert ModelConfig.from_hf(config) == SHAPES["small"]
    model = Transformer(SHAPES["small"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 7_048_512


def test_a_file_says_any_shape(tmp_path: Path) -> None:
    shape = qwen3_shape(layers=2, width=64, heads=3, kv_heads=1, vocab_size=300)
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(shape.to_hf()))
    assert shape_named(str(path), 300) == shape
    with pytest.raises(ValueError, match=r"shape\.json: vocab_size is 300 and .* 301 ids; raise"):
        shape_named(str(path), 301)


def test_a_wrong_name_is_told_the_right_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="huge: no such shape; use tiny, small, medium or a JSON"):
        shape_named("huge", 8192)
    path = tmp_path / "shape.json"
    path.write_text("layers: 3")
    with pytest.raises(ValueError, match=r"shape\.json: not JSON \("):
        shape_named(str(path), 8192)
    path.write_text("[3]")
    with pytest.raises(ValueError, match=r"shape\.json: holds no JSON object"):
        shape_named(str(path), 8192)
