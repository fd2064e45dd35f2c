"""What commands share: devices, folders, validation, the metrics file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from minimind.data.dataset import Dataset
from minimind.data.masking import Example
from minimind.data.packing import make_steps
from minimind.model.transformer import Transformer
from minimind.run import _Metrics, choose_device, new_folder, validation_loss
from tests.tiny import CONFIG


def examples(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in torch.randint(4, 30, (count,), generator=generator).tolist():
        ids = torch.randint(0, CONFIG.vocab_size, (length,), generator=generator).tolist()
        rows.append(Example(ids, [False, False] + [True] * (length - 2)))
    return Dataset.from_examples(rows)


def test_the_validation_loss_is_the_mean_over_tokens_whatever_the_cut() -> None:
    model = Transformer(CONFIG).initialize(0)
    rows = examples(12)
    losses = []
    for budget in (30, 100, 10_000):
        (batches,) = make_steps(rows, tokens_per_step=10**6, tokens_per_batch=budget)
        losses.append(validation_loss(model, batches, "fp32"))
    total, count = 0.0, 0
    for row in rows:
        logits = model.logits(torch.tensor([row.input_ids]))[0].detach().double().log_softmax(-1)
        for position in range(2, len(row)):
            total -= float(logits[position - 1, row.input_ids[position]])
            count += 1
    assert losses == pytest.approx([total / count] * 3, rel=1e-6)


def test_validating_leaves_no_gradient_and_trains_on() -> None:
    model = Transformer(CONFIG).initialize(0)
    (batches,) = make_steps(examples(2), tokens_per_step=10**6)
    validation_loss(model, batches, "fp32")
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_a_device_that_is_not_there_is_named_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"device quantum: .*use auto, or a device that is here"):
        choose_device("quantum")
    assert choose_device("cpu") == torch.device("cpu")


def test_auto_takes_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for there, name in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert asked == []
        assert choose_device("auto") == torch.device(name)
    assert asked == ["high"]  # TF32, where a GPU was found too


def test_each_run_gets_the_first_free_number(tmp_path: Path) -> None:
    (tmp_path / "chats-1").mkdir()
    (tmp_path / "chats-3").mkdir()
    assert new_folder("chats", tmp_path) == tmp_path / "chats-2"


def test_metrics_of_steps_that_will_be_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    with _Metrics(path, step=1) as metrics:
        metrics.write({"step": 2, "loss": 2.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2.5}]
