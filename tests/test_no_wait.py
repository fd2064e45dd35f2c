"""A whole step on tensors that hold no numbers: whatever must wait for one is an error.

There is no GPU here. PyTorch's fake tensors have shapes and types only, so a step that asks the
device for a value, or for a size that depends on values, stops with an error; and CUDA's branches
(flash attention with grouped queries, GradScaler, fused AdamW told by a flag) pass PyTorch's own
checks of shapes and types. Copies back to the host show on the meta device, which can't be copied
from. What neither can show: kernels, streams, pinned memory.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.attention.varlen
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.data.packing import Batch, make_batch
from minimind.data.padding import shape_of_run
from minimind.model import attention
from minimind.model.transformer import Transformer
from minimind.training.graphs import StepGraphs, _capturable
from minimind.training.loop import train_step
from minimind.training.state import TrainConfig, TrainState
from tests.support.ragged import CONFIG, ragged_rows

FLASH = torch.ops.torch_attn._varlen_attn.default


def micro_batches(weighted: bool) -> list[Batch]:
    """Three of three ragged rows each."""
    rows = ragged_rows(9, weighted=weighted)
    return [make_batch(rows, group) for group in np.split(np.arange(9), 3)]


class Seen(TorchDispatchMode):
    """Remembers which operators ran, with the types of their first tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[str, torch.dtype | None]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = args[0] if args and isinstance(args[0], torch.Tensor) else None
        self.operators.append((str(func), None if first is None else first.dtype))
        return func(*args, **(kwargs or {}))

    def count(self, name: str) -> int:
        return sum(operator == name for operator, _ in self.operators)


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision takes CUDA's kernel, as on a GPU."""
    half = (torch.float16, torch.bfloat16)
    monkeypatch.setattr(attention, "flash_serves", lambda q: q.dtype in half)


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["whole", "checkpointing"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_asks_the_device_for_a_value(precision, checkpointing, weighted) -> None:
    batches = micro_batches(weighted)
    config = TrainConfig(precision=precision, activation_checkpointing=checkpointing)
    with FakeTensorMode(allow_non_fake_inputs=True), Seen() as seen:  # the batches are real
        model = Transformer(CONFIG)
        state = TrainState(model, config)
        for _ in range(2):  # moments are made in the first
            result = train_step(model, batches, config, state, 1.0)
        with pytest.raises(DataDependentOutputException):
            result.loss.item()  # asking is an error, indeed
    layers, passes = CONFIG.num_hidden_layers, 2 * len(batches)
    if precision == "fp32":
        assert seen.count(str(FLASH)) == 0
    else:
        forward = passes * layers * (2 if checkpointing else 1)
        assert seen.count(str(FLASH)) == forward
        assert seen.count("torch_attn._varlen_attn_backward.default") == passes * layers
        types = {dtype for operator, dtype in seen.operators if operator == str(FLASH)}
        assert types == {torch.bfloat16 if precision == "bf16" else torch.float16}
    groups = len(state.optimizer.param_groups)
    assert seen.count("aten._fused_adamw_.default") == 2 * groups
    assert result.loss.shape == result.grad_norm.shape == ()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_step_copies_nothing_back_to_the_host(weighted, monkeypatch) -> None:
    # Autocast and AdamW don't know the meta device; in float32 autocast is off anyway.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    optimizers = import_module("torch.optim.optimizer")
    devices = [*optimizers._get_fused_kernels_supported_devices(), "meta"]
    monkeypatch.setattr(optimizers, "_get_fused_kernels_supported_devices", lambda: devices)
    config = TrainConfig(precision="fp32")
    with torch.device("meta"):
        model = Transformer(CONFIG)
    # A run makes it once, on the host.
    model.model._frequencies[model.device] = torch.empty(CONFIG.head_dim // 2, device="meta"), 1.0
    state = TrainState(model, config)
    for _ in range(2):
        result = train_step(model, micro_batches(weighted), config, state, 1.0)
    assert result.loss.device == result.grad_norm.device == torch.device("meta")
    with pytest.raises((NotImplementedError, RuntimeError), match="meta"):
        result.loss.cpu()  # copying is an error, indeed


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_what_is_captured_asks_for_no_value_and_makes_no_size_from_one(weighted) -> None:
    config = TrainConfig(precision="bf16")
    batches = micro_batches(weighted)
    shape = shape_of_run([batches])
    with FakeTensorMode(allow_non_fake_inputs=True), Seen() as seen:
        state = TrainState(Transformer(CONFIG), config)
        state.shape = shape
        graphs = StepGraphs.__new__(StepGraphs)  # making it compares a loss, which asks
        graphs.prepare(config, state)
        for batch in batches:
            graphs._load(batch)
            graphs._forward_backward()
        with _capturable(state.optimizer, graphs._rates):
            graphs._step_optimizer()
    assert seen.count(str(FLASH)) == len(batches) * CONFIG.num_hidden_layers
    assert seen.count("aten._fused_adamw_.tensor_lr") == len(state.optimizer.param_groups)
    assert not seen.count("aten._local_scalar_dense.default")
    assert not seen.count("aten.nonzero.default")
    weights = {p for p, _ in seen.operators if "_foreach_copy" in p}
    assert not weights  # cast once a step, outside
