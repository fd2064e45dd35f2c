"""What training leaves out changes no gradient: benchmarks/savings.py takes it back."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from benchmarks.savings import VARIANTS, to_their_ends
from minimind.data.dataset import Dataset, Example
from minimind.data.packing import make_batch
from minimind.training.loop import TrainConfig, batch_loss
from tests.support.ragged import new_model, ragged_rows


def with_an_end(row: Example) -> Example:
    """As after an answer in ChatML: a token that isn't trained."""
    weights = None if row.weights is None else [*row.weights, 0.0]
    return Example([*row.input_ids, 5], [*row.loss_mask, False], weights)


def gradients(variant: str, weighted: bool) -> tuple[float, int, dict[str, Tensor]]:
    """The summed loss, the tokens read, and the gradients."""
    dataset = Dataset.from_examples(map(with_an_end, ragged_rows(12, weighted=weighted)))
    whole_rows, rewrite = VARIANTS[variant]
    if whole_rows:
        to_their_ends(dataset)
    batch = rewrite(make_batch(dataset, np.arange(12)))
    model = new_model()
    loss = batch_loss(model, batch, TrainConfig(), "fp32")
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), len(batch), found


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "all savings"])
def test_a_saving_changes_neither_the_loss_nor_a_gradient(variant: str, weighted: bool) -> None:
    loss, tokens, ours = gradients("all savings", weighted)
    other_loss, more_tokens, theirs = gradients(variant, weighted)
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert (more_tokens > tokens) == VARIANTS[variant][0]  # something was really taken back
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 2e-6 * gradient.norm(), name
