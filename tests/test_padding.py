"""A padded batch teaches what the batch teaches, and every batch of a run gets the same shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minimind.data.dataset import Dataset, Example
from minimind.data.packing import IGNORE_INDEX, Batch, make_batch
from minimind.data.padding import (
    MULTIPLE,
    PLANNED_STEPS,
    BatchShape,
    pad,
    rounded_shape,
    shape_of_run,
    view_batch,
)
from minimind.data.plan import make_steps
from minimind.model.transformer import Transformer
from minimind.training.state import TrainConfig
from minimind.training.step import batch_loss
from tests.support.ragged import new_model, ragged_rows

FP32 = TrainConfig(precision="fp32")


def loss_and_gradients(model: Transformer, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    loss = batch_loss(model, batch, FP32, "fp32")
    return loss, list(torch.autograd.grad(loss, list(model.parameters())))


def shapes_that_hold(batch: Batch) -> st.SearchStrategy[BatchShape]:
    def shape(tokens: int, documents: int, supervised: int, longest: int) -> BatchShape:
        longest += batch.documents.max_seqlen
        documents += len(batch.documents.lengths) + -(-tokens // longest)
        return BatchShape(
            len(batch) + tokens, documents, batch.num_supervised + supervised, longest
        )

    return st.builds(
        shape, st.integers(0, 90), st.integers(0, 5), st.integers(0, 20), st.integers(0, 9)
    )


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 50), weighted=st.booleans(), count=st.integers(1, 6))
def test_padding_changes_neither_loss_nor_gradients(data, seed, weighted, count) -> None:
    batch = make_batch(ragged_rows(count, weighted=weighted, seed=seed), np.arange(count))
    shape = data.draw(shapes_that_hold(batch))
    _, padded = pad(batch, shape)
    model = new_model(model_type="qwen2", qk_norm=False, qkv_bias=True).double()
    (loss, gradients), (padded_loss, padded_gradients) = (
        loss_and_gradients(model, x) for x in (batch, padded)
    )
    assert padded_loss.item() == pytest.approx(loss.item(), rel=1e-12)
    for ours, theirs in zip(padded_gradients, gradients, strict=True):
        assert torch.linalg.vector_norm(ours - theirs) <= 1e-12 * theirs.norm().clamp_min(1)


def test_a_batch_without_rows_is_padded_to_one_that_teaches_nothing() -> None:
    batch = make_batch(ragged_rows(1), np.zeros(0, np.int64))
    _, padded = pad(batch, BatchShape(16, 4, 8, 8))
    loss, gradients = loss_and_gradients(new_model(), padded)
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients)


def test_what_a_padded_batch_holds_is_seen_at_a_glance() -> None:
    rows = Dataset.from_examples(
        [
            Example([5, 7, 2, 8], [False, False, True, True]),
            Example([5, 9, 2], [False, False, True]),
        ]
    )
    batch = make_batch(rows, np.arange(2))
    buffer, padded = pad(batch, BatchShape(tokens=12, documents=6, supervised=5, max_seqlen=4))
    assert padded.input_ids.tolist() == [5, 7, 2, 5, 9, *[5] * 7]
    assert padded.positions.tolist() == [0, 1, 2, 0, 1, 0, 1, 2, 3, 0, 1, 2]
    assert padded.labels.tolist() == [-100, 2, 8, -100, 2, *[IGNORE_INDEX] * 7]
    assert padded.supervised.tolist() == [1, 2, 4, 1, 1]
    assert padded.weights is not None
    assert padded.weights.tolist() == [1, 1, 1, 0, 0]
    assert padded.documents.cu_seqlens.tolist() == [0, 3, 5, 9, 12, 12, 12]
    assert padded.documents.lengths == (3, 2, 4, 3)
    assert padded.documents.max_seqlen == 4
    copied = view_batch(buffer.clone(), BatchShape(12, 6, 5, 4))
    assert all(torch.equal(a, b) for a, b in zip(copied.tensors(), padded.tensors(), strict=True))


@pytest.mark.parametrize(
    "shape",
    [(4, 9, 9, 9), (12, 3, 9, 4), (12, 9, 2, 9), (12, 9, 9, 2)],
    ids=["tokens", "documents", "supervised", "longest"],
)
def test_a_shape_that_is_too_small_in_one_way_does_not_hold_the_batch(shape) -> None:
    rows = Dataset.from_examples([Example([5, 7, 2, 8], [False, False, True, True])] * 2)
    batch = make_batch(rows, np.arange(2))  # 6 tokens, 2 documents of 3, 4 supervised
    assert not BatchShape(*shape).holds(batch)
    assert BatchShape(12, 5, 4, 3).holds(batch)


def test_every_batch_of_a_short_run_fits_its_shape_with_little_to_spare() -> None:
    rows = ragged_rows(200)
    steps = make_steps(rows, tokens_per_step=700, tokens_per_batch=400, epochs=3)
    shape = shape_of_run(steps)
    batches = [batch for step in steps for batch in step]
    assert all(map(shape.holds, batches))
    assert shape.tokens <= 400
    assert shape.tokens - max(map(len, batches)) < MULTIPLE
    assert shape.max_seqlen == rows.column("input_length").max()
    listed = shape_of_run([list(step) for step in steps])
    assert (listed.tokens, listed.supervised) == (shape.tokens, shape.supervised)


def test_steps_after_the_first_thousand_get_a_margin(monkeypatch) -> None:
    rows = ragged_rows(60)
    steps = make_steps(rows, tokens_per_step=100, epochs=PLANNED_STEPS)
    asked = []
    rows_of = type(steps).rows_of
    monkeypatch.setattr(
        type(steps), "rows_of", lambda self, index: asked.append(index) or rows_of(self, index)
    )
    shape = shape_of_run(steps)
    assert len(steps) > PLANNED_STEPS
    assert asked == list(range(PLANNED_STEPS))  # never the whole plan
    largest = max(len(batch) for index in range(PLANNED_STEPS) for batch in steps[index])
    assert shape.tokens >= largest * 17 / 16
    assert all(shape.holds(batch) for index in range(0, len(steps), 97) for batch in steps[index])


def test_the_number_of_ranks_changes_the_shape_no_rank_exceeds() -> None:
    steps = make_steps(ragged_rows(100), tokens_per_step=500).of_rank(1, 2)
    shape = shape_of_run(steps)
    assert all(shape.holds(batch) for step in steps for batch in step)
    assert shape.tokens <= 384


def test_a_rounded_shape_holds_its_batch_and_is_a_multiple() -> None:
    for count in range(1, 9):
        batch = make_batch(ragged_rows(count), np.arange(count))
        shape = rounded_shape(batch, 64)
        assert shape.holds(batch)
        assert shape.tokens % 64 == shape.supervised % 64 == 0
        assert shape.tokens - len(batch) < 64
