"""Keys and values of the tokens a model has already read. Knows no weights and no sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.model.attention import Documents, cached_attention, packed_attention
from minimind.model.config import ModelConfig


class KVCache:
    """Room for the keys and values of `rows` sequences of up to `capacity` tokens each.

        row 0   k k k k . . .      lengths[0] = 4
        row 1   k k . . . . .      lengths[1] = 2

    The first pass writes whole prompts, one document per row; each later pass one token per row.
    `next_positions` (rows,) is `lengths` on the device.

    Args:
        config: sizes.
        rows: sequences side by side.
        capacity: tokens per sequence, prompt and answer together.
        device: where the cache lives.
        dtype: of keys and values.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # (rows, K, capacity, D) a layer. Zeros, as what a mask hides must not be NaN.
        shape = (rows, config.num_key_value_heads, capacity, config.head_dim)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.lengths = [0] * rows
        self.next_positions = torch.zeros(rows, dtype=torch.long, device=device)
        self._row_index = torch.arange(rows, device=device)
        self._horizon = 0
        self._mask: Tensor | None = None

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these, in this order: finished sequences stop costing time."""
        index = torch.tensor(rows, device=self.next_positions.device)
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
        self.next_positions = self.next_positions[index]
        self.lengths = [self.lengths[row] for row in rows]
        self._row_index = self._row_index[: len(rows)]

    def attend_prompts(
        self, documents: Documents, layer: int, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        """Store whole prompts' keys and values; attend inside each. See `packed_attention`."""
        lengths = list(documents.lengths)
        for row, (key, value) in enumerate(zip(k.split(lengths), v.split(lengths), strict=True)):
            self.keys[layer][row, :, : len(key)] = key.transpose(0, 1)
            self.values[layer][row, :, : len(value)] = value.transpose(0, 1)
        return packed_attention(documents, layer, q, k, v)

    def begin_token(self) -> None:
        """Prepare a pass of one token per row: how far to look, and what of it a row has filled."""
        self._horizon = max(self.lengths) + 1
        self._mask = None
        if min(self.lengths) < max(self.lengths):
            seen = torch.arange(self._horizon, device=self.next_positions.device)
            self._mask = (seen <= self.next_positions[:, None])[:, None, None, :]

    def attend_token(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store each row's new key and value; attend to all of the row. See `cached_attention`."""
        keys, values = self.keys[layer], self.values[layer]
        if self._mask is None:  # all rows are equally long: a plain copy, without an index
            keys.select(2, self._horizon - 1).copy_(k)
            values.select(2, self._horizon - 1).copy_(v)
        else:
            keys[self._row_index, :, self.next_positions] = k.to(keys.dtype)
            values[self._row_index, :, self.next_positions] = v.to(values.dtype)
        seen_keys = keys.narrow(2, 0, self._horizon).to(q.dtype)
        seen_values = values.narrow(2, 0, self._horizon).to(q.dtype)
        return cached_attention(q, seen_keys, seen_values, self._mask)

    def advance(self, by: list[int]) -> None:
        """Count the tokens that a finished pass has written, per row."""
        self.lengths = [have + new for have, new in zip(self.lengths, by, strict=True)]
        self.next_positions = self.next_positions + torch.tensor(
            by, device=self.next_positions.device
        )
