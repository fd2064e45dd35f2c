"""What only a GPU can show; skipped, and never yet run, where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from minimind.training.prefetch import prefetch

from minimind.data.packing import make_batch
from minimind.documents import Documents
from minimind.model.attention import _sdpa_by_document, flash_serves, packed_attention
from minimind.training.loop import train_step
from minimind.training.state import TrainConfig, TrainState
from tests.support.ragged import new_model, ragged_rows

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")

CUDA = torch.device("cuda")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_never_waits(precision) -> None:
    rows, config = ragged_rows(9, weighted=True), TrainConfig(precision=precision)
    batches = [make_batch(rows, group) for group in np.split(np.arange(9), 3)]
    model = new_model().to(CUDA)
    state = TrainState(model, config)
    train_step(model, batches, config, state, 1.0)  # moments, frequencies and streams are made
    torch.cuda.set_sync_debug_mode("error")
    try:
        result = train_step(model, batches, config, state, 1.0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(result.loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_flash_attention_is_the_documents_own_attention(kv_heads, dtype) -> None:
    lengths = [3, 1, 70, 26]
    shapes = [(100, 4, 64), (100, kv_heads, 64), (100, kv_heads, 64)]
    inputs = [torch.randn(s, device=CUDA, dtype=dtype, requires_grad=True) for s in shapes]
    if not flash_serves(inputs[0]):
        pytest.skip("this GPU has no flash attention")
    documents = Documents.of(lengths, CUDA)
    fast = packed_attention(*inputs, documents)
    slow = _sdpa_by_document(*inputs, documents)
    assert torch.allclose(fast, slow, atol=0.02)
    upstream = torch.randn_like(fast)
    ours, theirs = (torch.autograd.grad(out, inputs, upstream) for out in (fast, slow))
    assert all(torch.allclose(a, b, atol=0.05) for a, b in zip(ours, theirs, strict=True))


def test_prefetched_batches_arrive_whole() -> None:
    rows = ragged_rows(20)
    batches = [make_batch(rows, np.array([row])) for row in range(20)]
    for batch, original in zip(prefetch(batches, CUDA), batches, strict=True):
        assert torch.equal(batch.input_ids.cpu(), original.input_ids)
        assert torch.equal(batch.supervised.cpu(), original.supervised)
