"""Plan a run: which rows each optimizer step trains.

The plan is a pure function of (lengths, seed, epoch, tokens per step): each epoch shuffles the rows
and cuts them into steps of about equal tokens. A step is then cut into micro-batches: that changes
neither its rows nor its loss, only how much memory it takes. With a mix, an epoch has as many
tokens of each file as its share says.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from minimind.data.dataset import Array, Dataset, Example
from minimind.data.mixing import mixed_order, shares_of
from minimind.data.packing import Batch, Ints, Step, cut, make_batch

BLOCK_ROWS = 2**16


class Steps(Sequence[Step]):
    """The optimizer steps of a whole run; `steps[i]` builds the micro-batches of step i.

    Indexing costs the same anywhere, so a run resumes without reading what it had trained before.
    A slice is a plan of fewer steps.
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
        self.lengths = dataset.table["input_length"]
        # A row without a trained token has length 0. Indices of 4 bytes: rows may be many.
        self.rows = np.arange(len(dataset), dtype=np.uint32)
        if not self.lengths.all():
            self.rows = self.rows[self.lengths > 0]
        self.tokens_per_epoch = int(self.lengths.sum())
        self.shares, self._files = shares, self._rows_by_file() if shares else []
        steps_per_epoch = max(1, round(self.tokens_per_epoch / tokens_per_step))
        self.steps_per_epoch = min(steps_per_epoch, self._fewest_rows())
        self._planned: tuple[int, Array, Ints] | None = None  # epoch, its rows, each step's end
        self._indices = range(epochs * self.steps_per_epoch)
        self._rank, self._world_size = 0, 1

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
        groups = cut(rows, lengths, self.tokens_per_batch, self._world_size)
        return Step(
            [make_batch(self.dataset, group) for group in groups[self._rank :: self._world_size]],
            rows=tuple(rows.tolist()),
            tokens=int(lengths.sum()),
            supervised=int(self.dataset.table.take("supervised", rows).sum()),
        )

    def truncated(self, count: int | None) -> Steps:
        """The same plan, only its first `count` steps; None keeps all.

        Raises:
            ValueError: `count` is less than 1.
        """
        if count is not None and count < 1:
            raise ValueError(f"the first {count} steps; use a positive number")
        return self[:count]

    def with_length(self, count: int) -> Steps:
        """The same plan for `count` steps, over as many epochs as that takes."""
        out = copy.copy(self)
        out.epochs = -(-count // self.steps_per_epoch)
        out._indices = range(count)
        return out

    def of_rank(self, rank: int, world_size: int) -> Steps:
        """The same plan, of each step only one rank's micro-batches; each rank has equally many."""
        out = copy.copy(self)
        out._rank, out._world_size = rank, world_size
        return out

    def tokens_by_file(self) -> Ints:
        """(files,) how many tokens of each file the plan trains."""
        files = int(self.dataset.table["file"].max()) + 1
        tokens = np.zeros(files)
        for index in range(len(self)):
            rows = self.rows_of(index)
            tokens += np.bincount(
                self.dataset.table.take("file", rows), self.lengths[rows], minlength=files
            )
        return tokens.astype(np.int64)

    def rows_of(self, index: int) -> Ints:
        """The rows that step `index` trains on.

        Raises:
            IndexError: there is no such step.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(
                f"step {index}: the run has {len(self)} steps; use 0 to {len(self) - 1}"
            )
        epoch, step = divmod(self._indices[index], self.steps_per_epoch)
        if self._planned is None or self._planned[0] != epoch:
            order = self._order(epoch)
            ends = _equal_parts(self.lengths, order, self.steps_per_epoch, self.tokens_per_epoch)
            self._planned = epoch, order, ends
        _, order, ends = self._planned
        return order[ends[step - 1] if step else 0 : ends[step]].astype(np.int64)

    def _order(self, epoch: int) -> Array:
        if self.shares is not None:
            return mixed_order(self._files, self.shares, self.seed, epoch)
        return np.random.default_rng([self.seed, epoch]).permutation(self.rows)

    def _rows_by_file(self) -> list[tuple[Array, Array]]:
        """Each file's rows and how many tokens they have."""
        files = self.dataset.table["file"][self.rows]
        rows = [self.rows[files == file] for file in range(int(files.max()) + 1)]
        return [(of_file, self.lengths[of_file]) for of_file in rows]

    def _fewest_rows(self) -> int:
        """How many rows each epoch has, at least."""
        if self.shares is None:
            return len(self.rows)
        longest = int(self.lengths.max())
        return max(1, sum(int(share * self.tokens_per_epoch) // longest for share in self.shares))


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
        epochs: how often to go over all rows.
        seed: decides the order.
        mix: a weight per file: its share of an epoch's tokens, in place of each row once.

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
    if not dataset.table["input_length"].any():
        raise ValueError(
            f"none of {len(dataset)} rows has a trained token; "
            "check that rows have an assistant message that fits into max_length"
        )
    shares = None if mix is None else _shares(dataset, mix)
    steps = Steps(dataset, tokens_per_step, 2**62, epochs, seed, shares)
    if tokens_per_batch is not None:
        _check_longest(steps.lengths, tokens_per_batch)
        steps.tokens_per_batch = tokens_per_batch
    return steps


class Batches(Iterable[Batch]):
    """All rows with a trained token once, in batches of at most `tokens_per_batch` tokens.

    A block of rows is cut at a time, so that memory doesn't grow with rows. False without rows.
    """

    def __init__(self, dataset: Dataset, tokens_per_batch: int) -> None:
        self.dataset, self.tokens_per_batch = dataset, tokens_per_batch
        lengths = dataset.table["input_length"]
        self.rows = np.flatnonzero(lengths)
        _check_longest(lengths, tokens_per_batch)
        self._rank, self._world_size = 0, 1

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), BLOCK_ROWS // 4):
            rows = self.rows[first : first + BLOCK_ROWS // 4]
            lengths = self.dataset.table.take("input_length", rows).astype(np.int64)
            groups = cut(rows, lengths, self.tokens_per_batch, self._world_size)
            for group in groups[self._rank :: self._world_size]:
                yield make_batch(self.dataset, group)

    def of_rank(self, rank: int, world_size: int) -> Batches:
        """The batches of one rank; each rank has equally many."""
        out = copy.copy(self)
        out._rank, out._world_size = rank, world_size
        return out


def _check_longest(lengths: Array, tokens_per_batch: int) -> None:
    longest = int(lengths.max(initial=0))
    if longest > tokens_per_batch:
        raise ValueError(
            f"a row has {longest} tokens and tokens_per_batch is {tokens_per_batch}; "
            f"raise tokens_per_batch to at least {longest} or lower max_length"
        )


def _shares(dataset: Dataset, mix: Sequence[float]) -> list[float]:
    shares = shares_of(mix)
    tokens = np.bincount(dataset.table["file"], dataset.table["input_length"], len(shares))
    if len(tokens) > len(shares):
        raise ValueError(f"the mix has {len(mix)} weights for {len(tokens)} files; give each one")
    if not tokens.all():
        raise ValueError(
            f"the mix has a weight for file {int(np.argmin(tokens > 0)) + 1}, of which nothing is "
            "left to train on; leave the two out"
        )
    return shares


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
