"""Lay rows end to end: the batches of one optimizer step.

rows      a a a | b b | c c c c | d d        cut into groups of at most 5 tokens
batches   a a a b b     c c c c d d          no padding; the grouping changes no loss
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minimind.data.dataset import Dataset
from minimind.documents import Documents

IGNORE_INDEX = -100

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows end to end: what a model is given at once. T tokens, S of them supervised.

        row            a  a  a  b  b
        input_ids      5  7  2  5  9
        positions      0  1  2  0  1
        labels       -100 2  8 -100 2     what each position must predict, already shifted
        supervised        1  2     4      where labels isn't -100

    A row's inputs end just before its last trained token: nothing is learned from later ones.

    Attributes:
        input_ids: (T,) int64
        positions: (T,) int64, each row's own, from 0.
        labels: (T,) int64, IGNORE_INDEX where nothing is trained.
        supervised: (S,) int64 indices into labels.
        weights: (S,) float32 loss factors, or None where all are 1.
        documents: where each row ends.
        rows: each row's index among the examples.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    supervised: Tensor
    weights: Tensor | None
    documents: Documents
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_supervised(self) -> int:
        """How many positions are trained: S."""
        return len(self.supervised)

    def tensors(self) -> list[Tensor]:
        """The tensors of the batch, those of `documents` included."""
        tensors = (self.input_ids, self.positions, self.labels, self.supervised, self.weights)
        return [x for x in (*tensors, self.documents.cu_seqlens) if x is not None]

    def to(self, device: torch.device) -> Batch:
        """Copy to a device; to CUDA from pinned memory, without waiting."""
        if device.type == "cpu":
            return self

        def move(x: Tensor) -> Tensor:
            pinned = device.type == "cuda" and x.device.type == "cpu"
            return (x.pin_memory() if pinned else x).to(device, non_blocking=True)

        return replace(
            self,
            input_ids=move(self.input_ids),
            positions=move(self.positions),
            labels=move(self.labels),
            supervised=move(self.supervised),
            weights=None if self.weights is None else move(self.weights),
            documents=replace(self.documents, cu_seqlens=move(self.documents.cu_seqlens)),
        )


class Step(list[Batch]):
    """A list of the micro-batches of one optimizer step, or of one rank's share of them.

    Attributes:
        rows: indices of the complete step's examples, over all ranks.
        tokens: inputs of the step, after the cut at each row's last trained token.
        supervised: tokens in the complete step's loss.
    """

    def __init__(
        self, batches: Iterable[Batch], rows: tuple[int, ...], tokens: int, supervised: int
    ) -> None:
        super().__init__(batches)
        self.rows, self.tokens, self.supervised = rows, tokens, supervised

    @classmethod
    def of(cls, batches: list[Batch]) -> Step:
        """Take a plain list of batches as a complete step."""
        if isinstance(batches, Step):
            return batches
        rows = tuple(row for batch in batches for row in batch.rows)
        return cls(batches, rows, sum(map(len, batches)), sum(b.num_supervised for b in batches))


def make_batch(dataset: Dataset, rows: Ints) -> Batch:
    """Lay rows end to end; each has at least one trained token.

    No rows make a batch of one token that nothing is learned from: where another rank has a batch,
    a rank without rows still runs forward and backward, so that collectives match.
    """
    if not len(rows):
        none, token = torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        ignored = torch.full((1,), IGNORE_INDEX)
        return Batch(token, token, ignored, none, None, Documents.of([1]), ())
    counts = dataset.take("input_length", rows).astype(np.int64)
    starts = dataset.take("start", rows).astype(np.int64)
    ends = np.cumsum(counts)
    positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    source = np.repeat(starts, counts) + positions
    trained = np.asarray(dataset.loss_mask[source + 1])
    labels = np.where(trained, dataset.input_ids[source + 1].astype(np.int64), IGNORE_INDEX)
    supervised = np.flatnonzero(trained)
    weights = None
    if dataset.weights is not None:
        weights = torch.from_numpy(np.array(dataset.weights[source[supervised] + 1]))
    return Batch(
        input_ids=torch.from_numpy(dataset.input_ids[source].astype(np.int64)),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        supervised=torch.from_numpy(supervised),
        weights=weights,
        documents=Documents.of(counts.tolist()),
        rows=tuple(rows.tolist()),
    )


def cut(rows: Ints, lengths: Ints, budget: int, world_size: int = 1) -> list[Ints]:
    """Cut rows into as few groups of at most `budget` tokens as a balanced greedy cut finds.

    Each row, longest first, joins the group with the fewest tokens (Graham 1969, LPT). There is a
    multiple of `world_size` groups, some of them empty where rows are few.
    """
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    large = sum(2 * size > budget for size in sizes)  # no two of these share a group
    least = max(1, large, -(-sum(sizes) // budget))
    for groups in range(-(-least // world_size) * world_size, len(rows) + world_size, world_size):
        loads = [(0, group) for group in range(groups)]  # a heap
        members: list[list[int]] = [[] for _ in loads]
        for index in longest_first:
            load, group = loads[0]
            if load + sizes[index] > budget:
                break
            heapq.heapreplace(loads, (load + sizes[index], group))
            members[group].append(index)
        else:
            return [rows[sorted(group)] for group in members]
    raise AssertionError("a row is longer than the budget")
