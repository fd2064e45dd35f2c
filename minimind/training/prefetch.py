"""Copy a step's batches to the device ahead of their use."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator

import torch

from minimind.data.packing import Batch


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Each batch on `device`; on CUDA the next one is copied while this one is computed with.

        copying stream     copy 0 | copy 1  copy 2 ...
        computing stream          | batch 0        | batch 1 ...

    Elsewhere nothing is copied ahead.
    """
    if device.type != "cuda":
        for batch in batches:
            yield batch.to(device)
        return
    copying, computing = _copying_stream(device), torch.cuda.current_stream(device)

    def copy(batch: Batch) -> Batch:
        with torch.cuda.stream(copying):
            return batch.to(device)

    copies = map(copy, batches)
    upcoming = next(copies, None)
    while upcoming is not None:
        batch = upcoming
        computing.wait_stream(copying)  # before the next copy starts: that one isn't waited for
        for tensor in batch.tensors():  # so that its memory isn't reused while it is read
            tensor.record_stream(computing)
        upcoming = next(copies, None)
        yield batch


@functools.cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    """One for the whole run: PyTorch keeps freed memory for each stream apart."""
    return torch.cuda.Stream(device)
