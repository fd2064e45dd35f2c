"""Pad batches to fixed sizes, so that every micro-batch of a run is the same kernels.

What is added teaches nothing: the loss and its gradients stay what they were.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimind.data.packing import IGNORE_INDEX, Batch, cut
from minimind.data.plan import Steps
from minimind.documents import Documents

PLANNED_STEPS = 1000  # of a run, from its first, tell its sizes
MARGIN = 1 / 16  # of later steps over the largest of those
MULTIPLE = 128  # of tokens and supervised positions: whole tiles of a matrix product


@dataclass(frozen=True, slots=True)
class BatchShape:
    """The sizes of a padded batch.

    Attributes:
        tokens: T.
        documents: D, those that are added included.
        supervised: S.
        max_seqlen: tokens of the longest document.
    """

    tokens: int
    documents: int
    supervised: int
    max_seqlen: int

    def holds(self, batch: Batch) -> bool:
        """Whether the batch can be padded to this shape."""
        spare = self.tokens - len(batch)
        documents = len(batch.documents.lengths) + math.ceil(spare / self.max_seqlen)
        return (
            spare >= 0
            and documents <= self.documents
            and batch.num_supervised <= self.supervised
            and batch.documents.max_seqlen <= self.max_seqlen
        )


def view_batch(
    buffer: Tensor, shape: BatchShape, lengths: tuple[int, ...] = (), rows: tuple[int, ...] = ()
) -> Batch:
    """A batch of `shape` whose tensors are parts of one uint8 buffer: one copy fills them all."""
    views = (
        part.view(dtype)
        for part, (_, dtype) in zip(buffer.split(_sizes(shape)), _parts(shape), strict=True)
    )
    input_ids, positions, labels, supervised, weights, cu_seqlens = views
    documents = Documents(lengths, cu_seqlens, shape.max_seqlen)
    return Batch(input_ids, positions, labels, supervised, weights, documents, rows)


def empty_buffer(
    shape: BatchShape, device: torch.device | str = "cpu", pin_memory: bool = False
) -> Tensor:
    """(bytes,) uint8 for a batch of `shape`"""
    size = sum(_sizes(shape))
    return torch.zeros(size, dtype=torch.uint8, device=device, pin_memory=pin_memory)


def pad(batch: Batch, shape: BatchShape, pin_memory: bool = False) -> tuple[Tensor, Batch]:
    """Fill a batch on the CPU up to a shape that holds it; returns its buffer, too.

    input_ids    5 7 2 5 9 | 5 5 5     T: documents of their own, at most max_seqlen long
    cu_seqlens   0 3 5 8 8 8           D + 1: the last value again
    supervised   1 2 4 1               S: the first again, with weight 0
    weights      1 1 1 0
    """
    assert shape.holds(batch)
    tokens, spare, longest = len(batch), shape.tokens - len(batch), shape.max_seqlen
    fill = [longest] * (spare // longest) + [spare % longest] * (spare % longest > 0)
    lengths = (*batch.documents.lengths, *fill)
    buffer = empty_buffer(shape, pin_memory=pin_memory)
    out = view_batch(buffer, shape, lengths, batch.rows)
    out.input_ids[:tokens] = batch.input_ids
    out.input_ids[tokens:] = batch.input_ids[0]  # a row of the embedding that is read anyway
    out.positions[:tokens] = batch.positions
    out.positions[tokens:] = torch.arange(spare) % longest
    out.labels.fill_(IGNORE_INDEX)
    out.labels[:tokens] = batch.labels
    count = batch.num_supervised
    out.supervised[:count] = batch.supervised
    if count:
        out.supervised[count:] = batch.supervised[0]
    else:
        out.labels[0] = 0  # the one that is read again and again must be an id
    assert out.weights is not None
    out.weights[:count] = 1 if batch.weights is None else batch.weights
    ends = out.documents.cu_seqlens
    ends.fill_(shape.tokens)
    ends[: len(lengths) + 1] = torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))
    return buffer, out


def rounded_shape(batch: Batch, multiple: int) -> BatchShape:
    """The batch's own sizes, tokens and supervised positions rounded up."""
    tokens, supervised = (_up(n, multiple) for n in (len(batch), max(1, batch.num_supervised)))
    documents = len(batch.documents.lengths) + 1
    return BatchShape(tokens, documents, supervised, max(batch.documents.max_seqlen, multiple))


def shape_of_run(steps: Sequence[list[Batch]]) -> BatchShape:
    """One shape for a run's batches, from its first thousand steps.

    Later steps scatter about the same mean: a margin is added where there are any. No batch has
    more tokens than the plan's `tokens_per_batch`.
    """
    sizes = np.array(list(_batch_sizes(steps)))  # (batches, 4)
    tokens, documents, supervised, longest = sizes.max(0).tolist()
    limit = 2**62
    if isinstance(steps, Steps):
        longest, limit = int(steps.lengths.max()), steps.tokens_per_batch
    margin = 1 + MARGIN if len(steps) > PLANNED_STEPS else 1.0
    tokens = min(limit, _up(math.ceil(tokens * margin), MULTIPLE))
    supervised = min(tokens, _up(math.ceil(supervised * margin), MULTIPLE))
    documents = math.ceil(documents * margin) + math.ceil(tokens / longest)
    return BatchShape(tokens, documents, supervised, longest)


def _batch_sizes(steps: Sequence[list[Batch]]) -> Iterator[tuple[int, int, int, int]]:
    """Tokens, documents, supervised positions and longest document of the first steps' batches."""
    for index in range(min(PLANNED_STEPS, len(steps))):
        if not isinstance(steps, Steps):
            for batch in steps[index]:
                documents = batch.documents
                yield len(batch), len(documents.lengths), batch.num_supervised, documents.max_seqlen
            continue
        rows = steps.rows_of(index)  # no batch is built
        lengths = steps.lengths[rows].astype(np.int64)
        supervised = steps.dataset.take("supervised", rows)
        for group in cut(np.arange(len(rows)), lengths, steps.tokens_per_batch, steps.world_size):
            if len(group):
                yield int(lengths[group].sum()), len(group), int(supervised[group].sum()), 1


def _up(number: int, multiple: int) -> int:
    return math.ceil(number / multiple) * multiple


def _parts(shape: BatchShape) -> list[tuple[int, torch.dtype]]:
    """Length and type of a batch's tensors; the largest types first, so that each is aligned."""
    tokens, supervised = (shape.tokens, torch.int64), (shape.supervised, torch.int64)
    weights, cu_seqlens = (shape.supervised, torch.float32), (shape.documents + 1, torch.int32)
    return [tokens, tokens, tokens, supervised, weights, cu_seqlens]


def _sizes(shape: BatchShape) -> list[int]:
    return [count * dtype.itemsize for count, dtype in _parts(shape)]
