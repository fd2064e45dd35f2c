"""The benchmarks' operation counts are what PyTorch counts on a step that it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from benchmarks.flops import causal_pairs, dense_flops, executed_flops, model_flops
from minimind.data.packing import make_batch
from minimind.training.state import TrainConfig
from minimind.training.step import batch_loss
from tests.support.ragged import new_model, ragged_rows


@register_flop_formula(torch.ops.aten.addmm_)
def addmm_flops(out, a, b, *_, **__) -> int:
    """PyTorch counts addmm, and not that it works in place."""
    return 2 * a[0] * a[1] * b[1]


@pytest.mark.parametrize("fields", [{}, {"num_hidden_layers": 3, "tie_word_embeddings": False}])
def test_executed_operations_are_those_that_pytorch_counts(fields) -> None:
    model, dataset = new_model(**fields), ragged_rows(7)
    batch = make_batch(dataset, np.arange(7))
    with FlopCounterMode(display=False) as counter:
        batch_loss(model, batch, TrainConfig(), "fp32").backward()
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(flops for op, flops in counted.items() if "attention" not in op)

    config = model.config
    pairs = config.num_hidden_layers * sum(map(causal_pairs, batch.documents.lengths))
    attention = 14 * config.num_attention_heads * config.head_dim * pairs
    assert executed_flops(config, batch) - attention == products


def test_a_plain_step_computes_what_the_model_asks_for_and_its_scores_once_more() -> None:
    config = new_model().config
    again = 2 * config.num_hidden_layers * config.num_attention_heads * config.head_dim
    assert dense_flops(config, 1, 9) == model_flops(config, [9]) + again * causal_pairs(9)
    assert dense_flops(config, 4, 9) == 4 * dense_flops(config, 1, 9)


def test_a_query_sees_its_own_key_and_all_before() -> None:
    assert causal_pairs(3) == 1 + 2 + 3
