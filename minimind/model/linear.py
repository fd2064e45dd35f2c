"""Linear layers, with a faster CPU path for up to 16 rows."""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Shape letters: R rows, I input features, O output features, B blocks of a weight.

FEW_ROWS = 16  # above, F.linear is as fast
BLOCK = 192  # rows of a weight per block, at most: a block fits a core's cache


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        """(R, I) -> (R, O)"""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias: (R, I), (O, I), (O,) -> (R, O), equal to F.linear's but for rounding.

    Decoding reads every weight once for a few rows. On a CPU and without gradients, one product per
    block of the weight reads it faster than F.linear's one product for all: the blocks are shared
    out among the cores. The weight isn't copied.
    """
    (outputs, inputs), count = weight.shape, 1
    # Python's time counts here: the cheapest check that usually decides comes first.
    decodes_on_cpu = (
        not torch.is_grad_enabled() and x.ndim == 2 and x.size(0) <= FEW_ROWS and x.is_cpu
    )
    if decodes_on_cpu and x.dtype == weight.dtype == torch.float32 and weight.is_contiguous():
        count = _block_count(outputs)
    if count == 1:
        return F.linear(x, weight, bias)
    rows, blocks = x.size(0), weight.view(count, outputs // count, inputs)  # (B, O/B, I)
    if rows == 1:
        # Each block is a matrix-vector product. `x.t()` has the strides for which that kernel runs.
        out = torch.bmm(blocks, x.t().expand(count, inputs, 1)).view(1, outputs)
    else:
        out = torch.bmm(x.expand(count, rows, inputs), blocks.transpose(1, 2))  # (B, R, O/B)
        out = out.transpose(0, 1).reshape(rows, outputs)
    return out if bias is None else out + bias


@lru_cache
def _block_count(rows: int) -> int:
    """The fewest equal blocks of at most `BLOCK` rows, a multiple of 8 for the cores; or 1."""
    counts = range(8, rows + 1, 8)
    return next((count for count in counts if rows % count == 0 and rows // count <= BLOCK), 1)
