"""The roofline counts what must move, and takes the slower of the two limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import roofline
from benchmarks.roofline import Device, activation_bytes, least, parameters, shape_of, step_bytes
from benchmarks.workload import SHAPES
from minimind.model.transformer import Transformer

SHAPE = SHAPES["5M"]


def test_without_tokens_only_weights_gradients_and_moments_move() -> None:
    weights = sum(p.numel() for p in Transformer(SHAPE).parameters())
    # cast and used: 10 bytes; gradient three times: 12; AdamW: three tensors in and out, 24
    assert step_bytes(SHAPE, 0, 1.0) == weights * (10 + 12 + 24)


def test_each_token_adds_its_activations_and_each_supervised_one_its_logits() -> None:
    one = step_bytes(SHAPE, 1, 0.0) - step_bytes(SHAPE, 0, 0.0)
    assert one == activation_bytes(SHAPE)
    assert step_bytes(SHAPE, 10, 0.5) - step_bytes(SHAPE, 10, 0.0) == 5 * SHAPE.vocab_size * 8


def test_the_activations_counted_are_fewer_than_eager_training_keeps() -> None:
    model, sizes = Transformer(SHAPE).initialize(), dict[int, int]()
    weights = {parameter.data_ptr() for parameter in model.parameters()}

    def note(x: torch.Tensor) -> torch.Tensor:
        if x.data_ptr() not in weights:
            sizes[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        model(torch.zeros(1, 64, dtype=torch.long))
    kept = sum(sizes.values()) / 64
    assert 0.5 * kept < activation_bytes(SHAPE) / 4 <= kept  # bf16, written and read


def test_the_head_is_counted_at_supervised_positions_only() -> None:
    device = Device("x", 1.0, 1e15, "")
    whole, half = (least(SHAPE, [100] * 4, share, device).seconds for share in (1.0, 0.5))
    assert whole - half == 6 * 200 * SHAPE.vocab_size * SHAPE.hidden_size


@pytest.mark.parametrize("slow", ["flops", "bytes"])
def test_the_slower_limit_holds(slow) -> None:
    device = Device("x", 1e9 if slow == "flops" else 1e15, 1e15 if slow == "flops" else 1e9, "")
    result = least(SHAPE, [100] * 4, 0.5, device)
    expected = result.by_operations if slow == "flops" else result.by_bytes
    assert result.seconds == expected > 1e-3


def test_a_shape_may_be_a_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SHAPE.to_hf()), encoding="utf-8")
    assert parameters(shape_of(str(path))) == parameters(SHAPE)


def test_all_devices_are_shown_with_their_source(monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["roofline", "--shape", "64M"])
    roofline.main()
    printed = capsys.readouterr().out
    for device in roofline.DEVICES.values():
        assert device.name in printed
        assert device.source in printed
    assert "MiniMind's README: 1.10 h" in printed
