"""Plan a run: which rows each optimizer step trains.

The plan is a pure function of (lengths, seed, epoch, tokens per step): each epoch shuffles the rows
and cuts them into steps of about equal tokens. A step is then cut into micro-batches: that changes
neither its rows nor its loss, only how much memory it takes. With a mix, an epoch has as many
tokens of each file as its share says.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from minimind.data.dataset import Array, Dataset, Example
from minimind.data.packing import Batch, Ints, Step, cut, make_batch

BLOCK_ROWS = 2**16


class Steps(Sequence[Step]):
    """The optimizer steps of a complete run; `steps[i]` builds the micro-batches of step i.

    `make_steps` makes them. Indexing costs the same anywhere, so a run resumes without reading what
    it had trained before. A slice is a plan of fewer steps.

    Attributes:
        steps_per_epoch: steps in one epoch.
        tokens_per_epoch: inputs in one epoch, after the cut at each row's last trained token.
        rows: (rows,) indices of the examples that have a trained token.
    """

    def __init__(
        self,
        dataset: Dataset,
        tokens_per_step: int,
        tokens_per_batch: int,
        epochs: int,
        seed: int,
        shares: Sequence[float] | None = None,
    ) -> None:
        self.dataset = dataset
        self.tokens_per_step, self.tokens_per_batch = tokens_per_step, tokens_per_batch
        self.epochs, self.seed = epochs, seed
        self.lengths = dataset.column("input_length")
        # A row without a trained token has length 0. Indices of 4 bytes: rows may be many.
        self.rows = np.arange(len(dataset), dtype=np.uint32)[self.lengths > 0]
        self.tokens_per_epoch = int(self.lengths.sum())
        self.shares, fewest_rows = shares, len(self.rows)  # in an epoch
        if shares is not None:
            files = dataset.column("file")[self.rows]
            rows_by_file = [self.rows[files == file] for file in range(len(shares))]
            self._files = [(rows, self.lengths[rows]) for rows in rows_by_file]
            longest = int(self.lengths.max())
            fewest_rows = sum(int(share * self.tokens_per_epoch) // longest for share in shares)
        steps_per_epoch = min(round(self.tokens_per_epoch / tokens_per_step), fewest_rows)
        self.steps_per_epoch = max(1, steps_per_epoch)
        self._planned: tuple[int, Array, Ints] | None = None  # epoch, its rows, each step's end
        self._indices = range(epochs * self.steps_per_epoch)
        self._rank, self.world_size = 0, 1

    def __len__(self) -> int:
        return len(self._indices)

    def __repr__(self) -> str:
        return (
            f"<{len(self):,} steps of about {self.tokens_per_step:,} tokens, "
            f"{self.steps_per_epoch:,} an epoch, over {len(self.rows):,} rows>"
        )

    @overload
    def __getitem__(self, index: int) -> Step: ...
    @overload
    def __getitem__(self, index: slice) -> Steps: ...
    def __getitem__(self, index: int | slice) -> Step | Steps:
        if isinstance(index, slice):
            out = copy.copy(self)
            out._indices = self._indices[index]
            return out
        rows = self.rows_of(index)
        lengths = self.lengths[rows].astype(np.int64)
        groups = cut(rows, lengths, self.tokens_per_batch, self.world_size)
        return Step(
            [make_batch(self.dataset, group) for group in groups[self._rank :: self.world_size]],
            rows=tuple(rows.tolist()),
            tokens=int(lengths.sum()),
            supervised=int(self.dataset.take("supervised", rows).sum()),
        )

    def with_length(self, count: int) -> Steps:
        """The same plan for `count` steps from its first, over as many epochs as that takes."""
        first = self._indices[0] if self._indices else 0
        out = copy.copy(self)
        out.epochs = -(-(first + count) // self.steps_per_epoch)
        out._indices = range(first, first + count)
        return out

    def of_rank(self, rank: int, world_size: int) -> Steps:
        """The same plan, of each step only one rank's micro-batches; each rank has equally many."""
        out = copy.copy(self)
        out._rank, out.world_size = rank, world_size
        return out

    def rows_of(self, index: int) -> Ints:
        """The rows that step `index` trains on.

        Raises:
            IndexError: the plan has fewer steps.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"step {index}: the run has {len(self)} steps; use 0 to {len(self) - 1}"
            )
        epoch, step = divmod(self._indices[index], self.steps_per_epoch)
        if self._planned is None or self._planned[0] != epoch:
            if self.shares is None:
                order = np.random.default_rng([self.seed, epoch]).permutation(self.rows)
            else:
                order = mixed_order(self._files, self.shares, self.seed, epoch)
            ends = _equal_parts(self.lengths, order, self.steps_per_epoch, self.tokens_per_epoch)
            self._planned = epoch, order, ends
        _, order, ends = self._planned
        return order[ends[step - 1] if step else 0 : ends[step]].astype(np.int64)


def make_steps(
    examples: Iterable[Example],
    *,
    tokens_per_step: int,
    tokens_per_batch: int | None = None,
    epochs: int = 1,
    seed: int = 0,
    mix: Sequence[float] | None = None,
) -> Steps:
    """Plan a run: every row with a trained token once per epoch, shuffled by seed and epoch.

    Args:
        examples: any iterable of Examples (copied into a Dataset), or a Dataset.
        tokens_per_step: tokens of one optimizer step, on average.
        tokens_per_batch: tokens of one micro-batch, at most: bounds memory, changes nothing else.
            Default: a whole step.
        epochs: passes over the rows.
        seed: decides the order.
        mix: a weight per file: its share of an epoch's tokens, in place of each row once. Only
            the Datasets that the commands build know files; Examples are all of one file.

    Returns:
        A sequence of steps, each a list of Batch.

    Raises:
        ValueError: no row has a trained token, a row is longer than `tokens_per_batch`, a number
            isn't positive, or the mix isn't one weight for each file with rows.
    """
    dataset = examples if isinstance(examples, Dataset) else Dataset.from_examples(examples)
    for name, number in (("tokens_per_step", tokens_per_step), ("epochs", epochs)):
        if number < 1:
            raise ValueError(f"{name} is {number}; use a positive number")
    if seed < 0:
        raise ValueError(f"seed is {seed}; use 0 or more")
    if not dataset.column("input_length").any():
        raise ValueError(
            f"none of {len(dataset)} rows has a trained token; "
            "check that rows have an assistant message that fits into max_length"
        )
    shares = None if mix is None else _shares(dataset, mix)
    if tokens_per_batch is None:
        tokens_per_batch = 2**62
    _check_longest(dataset, tokens_per_batch)
    return Steps(dataset, tokens_per_step, tokens_per_batch, epochs, seed, shares)


class Batches(Iterable[Batch]):
    """All rows with a trained token once, in batches of at most `tokens_per_batch` tokens.

    A block of rows is cut at a time, so that memory doesn't grow with rows. Its truth value is
    False if there are no rows.
    """

    def __init__(self, dataset: Dataset, tokens_per_batch: int) -> None:
        self.dataset, self.tokens_per_batch = dataset, tokens_per_batch
        self.rows = np.flatnonzero(dataset.column("input_length"))
        _check_longest(dataset, tokens_per_batch)
        self._rank, self.world_size = 0, 1

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), BLOCK_ROWS // 4):
            rows = self.rows[first : first + BLOCK_ROWS // 4]
            lengths = self.dataset.take("input_length", rows).astype(np.int64)
            groups = cut(rows, lengths, self.tokens_per_batch, self.world_size)
            for group in groups[self._rank :: self.world_size]:
                yield make_batch(self.dataset, group)

    def of_rank(self, rank: int, world_size: int) -> Batches:
        """The batches of one rank; each rank has equally many."""
        out = copy.copy(self)
        out._rank, out.world_size = rank, world_size
        return out


def _check_longest(dataset: Dataset, tokens_per_batch: int) -> None:
    longest = int(dataset.column("input_length").max(initial=0))
    if longest > tokens_per_batch:
        raise ValueError(
            f"a row has {longest} tokens and tokens_per_batch is {tokens_per_batch}; "
            f"raise tokens_per_batch to at least {longest} or lower max_length"
        )


def _shares(dataset: Dataset, mix: Sequence[float]) -> list[float]:
    tokens = np.bincount(dataset.column("file"), dataset.column("input_length"), len(mix))
    if len(tokens) > len(mix):
        raise ValueError(f"the mix has {len(mix)} weights for {len(tokens)} files; give each one")
    for weight in mix:
        if not 0 < weight < math.inf:
            raise ValueError(f"the mix has a weight of {weight}; use positive numbers")
    if not tokens.all():
        raise ValueError(
            f"the mix has a weight for file {int(np.argmin(tokens > 0)) + 1}, of which nothing is "
            "left to train on; leave the two out"
        )
    return [weight / sum(mix) for weight in mix]


def mixed_order(
    files: Sequence[tuple[Array, Array]], shares: Sequence[float], seed: int, epoch: int
) -> Array:
    """The rows of one epoch, in which each file has its share of the tokens, to within a row.

        file a, share 2/3    a3 a1 a0 a2 | a1 a2 a0 a3 | ...     its rows, shuffled again each time
        file b, share 1/3    b5 b0 b3 b1 b4 b2 | ...
                             ---- epoch 0 ----|---- epoch 1 ...  as many tokens as all files have
        epoch 0              a3 b5 a1 b0 a0 a2 b3 a1 ...         the shares hold in any part of it

    Each of `files` is its rows' indices, and how many tokens each row has: at least one.
    """
    total = sum(int(lengths.sum()) for _, lengths in files)
    chosen, places = [], []
    for file, ((rows, lengths), share) in enumerate(zip(files, shares, strict=True)):
        size = int(lengths.sum())
        low, high = (math.floor(end * share * total) for end in (epoch, epoch + 1))
        for turn in range(low // size, -(-high // size)):
            order = np.random.default_rng([seed, file, turn]).permutation(len(rows))
            starts = turn * size + np.cumsum(lengths[order], dtype=np.int64) - lengths[order]
            inside = (low <= starts) & (starts < high)
            chosen.append(rows[order[inside]])
            places.append((starts[inside] - low) / (high - low))
    return np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")]


def _equal_parts(lengths: Array, order: Array, parts: int, total: int) -> Ints:
    """Cut an order of rows into `parts` non-empty runs of about equal tokens; where each one ends.

    Block by block: nothing as long as the order is made.
    """
    targets = total * np.arange(1, parts) / parts
    cuts = np.full(parts - 1, len(order))
    found, tokens = 0, 0
    for start in range(0, len(order), BLOCK_ROWS):
        block = lengths[order[start : start + BLOCK_ROWS]].astype(np.int64)
        ends = tokens + np.cumsum(block)
        middles = ends - block / 2
        reached = int(np.searchsorted(targets, middles[-1], side="right"))
        cuts[found:reached] = start + np.searchsorted(middles, targets[found:reached])
        found, tokens = max(found, reached), int(ends[-1])
    # At least one row each: push cuts apart from the left, then from the right.
    steps = np.arange(1, parts)
    cuts = np.maximum.accumulate(np.maximum(cuts - steps, 0)) + steps
    cuts = np.minimum(cuts, len(order) - parts + steps)
    return np.append(cuts, len(order))
