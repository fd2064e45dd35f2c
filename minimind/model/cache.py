"""Keys and values of the tokens that a model has already read."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from minimind.documents import Documents
from minimind.model.attention import cached_attention, packed_attention
from minimind.model.config import ModelConfig


class DecodeStep(NamedTuple):
    """Positions and mask of one decode step: one new token per row; the same for all layers."""

    positions: Tensor  # (rows,) of the new tokens
    rows: Tensor  # (rows,) 0, 1, 2, ...
    kv_len: int  # tokens of the longest row, the new one included
    mask: Tensor | None  # (rows, 1, 1, kv_len), True where filled; None if rows are equally long


class KVCache:
    """Room for the keys and values of `rows` sequences of up to `capacity` tokens each.

        row 0   k k k k . . .      lengths[0] = 4
        row 1   k k . . . . .      lengths[1] = 2

    The first pass writes whole prompts, one document per row; each later pass one token per row.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # (rows, K, capacity, D) a layer. Zeros, since NaN would pass through the mask.
        shape = (rows, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.lengths = [0] * rows
        self.device = device

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these, in this order: finished sequences stop costing time."""
        index = torch.tensor(rows, device=self.device)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
        self.lengths = [self.lengths[row] for row in rows]

    def attend_prompts(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, documents: Documents
    ) -> Tensor:
        """Store whole prompts' keys and values; attend inside each. See `packed_attention`."""
        lengths = list(documents.lengths)
        for row, (key, value) in enumerate(zip(k.split(lengths), v.split(lengths), strict=True)):
            self.keys[layer][row, :, : len(key)] = key.transpose(0, 1)
            self.values[layer][row, :, : len(value)] = value.transpose(0, 1)
        return packed_attention(q, k, v, documents)

    def begin_step(self) -> DecodeStep:
        positions = torch.tensor(self.lengths, device=self.device)
        rows = torch.arange(len(self.lengths), device=self.device)
        kv_len = max(self.lengths) + 1
        mask = None
        if min(self.lengths) < max(self.lengths):
            filled = torch.arange(kv_len, device=self.device) <= positions[:, None]
            mask = filled[:, None, None, :]
        return DecodeStep(positions, rows, kv_len, mask)

    def advance(self, by: list[int]) -> None:
        """Count the tokens that a finished pass has written, per row."""
        self.lengths = [have + new for have, new in zip(self.lengths, by, strict=True)]


def attend_token(
    step: DecodeStep, keys: Tensor, values: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Store each row's new key and value in a layer's cache; attend to all of the row.

    The layer's `keys` and `values`, (rows, K, capacity, D), are changed in place;
    q, k, v: (rows, H, D), (rows, K, D), (rows, K, D) -> (rows, H, D)
    """
    if step.mask is None:  # all rows are equally long: a plain copy, without an index
        keys.select(2, step.kv_len - 1).copy_(k)
        values.select(2, step.kv_len - 1).copy_(v)
    else:
        keys[step.rows, :, step.positions] = k.to(keys.dtype)
        values[step.rows, :, step.positions] = v.to(values.dtype)
    filled_keys = keys.narrow(2, 0, step.kv_len).to(q.dtype)
    filled_values = values.narrow(2, 0, step.kv_len).to(q.dtype)
    return cached_attention(q, filled_keys, filled_values, step.mask)
