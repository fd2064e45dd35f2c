"""Copy a step's batches to the device ahead of their use. Knows no model."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import fields

import torch
from torch import Tensor

from minimind.data.packing import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch on `device`; on CUDA the next one is copied while this one is computed with.

        copying stream     copy 0 | copy 1  copy 2 ...
        computing stream          | batch 0        | batch 1 ...

    Elsewhere batches are handed on one by one.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying, computing = _copying_stream(device), torch.cuda.current_stream(device)

    def copied(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            return batch.to(device)

    left = iter(batches)
    following = next(left, None)
    if following is not None:
        following = copied(following)
    while following is not None:
        batch = following
        computing.wait_stream(copying)  # before the next copy is begun: that one isn't waited for
        for tensor in _tensors(batch):  # so that its memory isn't reused while it is read
            tensor.record_stream(computing)
        following = next(left, None)
        if following is not None:
            following = copied(following)
        yield batch


@functools.cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the whole run: PyTorch keeps freed memory for each stream apart."""
    return torch.cuda.Stream(device)


def _tensors(batch: Batch) -> list[Tensor]:
    values = (getattr(batch, field.name) for field in fields(batch))
    return [value for value in values if isinstance(value, Tensor)]
