"""Plan optimizer steps over Examples and lay each step's rows end to end. Knows no model.

The plan is a pure function of (lengths, seed, epoch, tokens per step): each epoch shuffles the rows
and cuts their run into steps of equal tokens, at the row ends nearest to the equal cuts. A step is
then cut into micro-batches: that changes neither its rows nor its loss, only how much memory it
takes. There is no padding. With a mix, an epoch has as many tokens of each file as its share says.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from minimind.data.dataset import Array, Dataset, Example
from minimind.data.mixing import mixed_order, shares_of

IGNORE_INDEX = -100
BLOCK_ROWS = 2**16

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Batch:
    """Many rows end to end; what a model is given at once.

        row            a  a  a  b  b
        input_ids      5  7  2  5  9
        positions      0  1  2  0  1
        labels       -100 2  8 -100 2     what each position must predict, already shifted
        cu_seqlens     0        3     5
        supervised        1  2     4      where labels isn't -100
        tails             1  2     4      of each row, the first supervised position and all after

    A row's inputs end just before its last trained token: nothing later would be learned from.
    Nor does the last layer compute more than keys and values before a row's first one: `tails`.

    Attributes:
        input_ids: (T,) int64
        positions: (T,) int64
        labels: (T,) int64, IGNORE_INDEX where nothing is trained.
        cu_seqlens: (rows + 1,) int32
        supervised: (S,) int64 indices into labels.
        tails: (Q,) int64 indices into input_ids.
        tail_cu_seqlens: (rows + 1,) int32, of tail_lengths.
        supervised_in_tails: (S,) int64 indices into tails.
        weights: (S,) float32 loss factors, or None where all are 1.
        lengths, tail_lengths: tokens of each row and of its tail, on the host.
        max_seqlen: the largest of lengths.
        num_supervised: S, on the host.
        rows: each row's index among the examples.
    """

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    supervised: Tensor
    tails: Tensor
    tail_cu_seqlens: Tensor
    supervised_in_tails: Tensor
    weights: Tensor | None
    lengths: tuple[int, ...]
    tail_lengths: tuple[int, ...]
    max_seqlen: int
    num_supervised: int
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

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
            cu_seqlens=move(self.cu_seqlens),
            supervised=move(self.supervised),
            tails=move(self.tails),
            tail_cu_seqlens=move(self.tail_cu_seqlens),
            supervised_in_tails=move(self.supervised_in_tails),
            weights=None if self.weights is None else move(self.weights),
        )


@dataclass(frozen=True, slots=True)
class StepTotals:
    """What all ranks together train in a step.

    Attributes:
        rows: indices of its examples.
        tokens: read by the model.
        supervised: predicted in the loss.
    """

    rows: tuple[int, ...]
    tokens: int
    supervised: int

    @classmethod
    def of(cls, batches: list[Batch]) -> StepTotals:
        """The step that a rank's share belongs to; a list that is no share is all of its step."""
        if isinstance(batches, RankBatches):
            return batches.whole
        return cls(
            tuple(row for batch in batches for row in batch.rows),
            sum(len(batch) for batch in batches),
            sum(batch.num_supervised for batch in batches),
        )


class RankBatches(list[Batch]):
    """One rank's micro-batches of a step.

    Attributes:
        whole: what all ranks train in it.
    """

    def __init__(self, batches: Iterable[Batch], whole: StepTotals) -> None:
        super().__init__(batches)
        self.whole = whole


class Steps(Sequence[list[Batch]]):
    """The optimizer steps of a whole run; `steps[i]` builds the micro-batches of step i.

    Indexing costs the same anywhere, so a run goes on where it stopped without reading what it had.
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
        wanted = round(self.tokens_per_epoch / tokens_per_step)
        self.shares, self._files = shares, self._rows_by_file() if shares else []
        self.steps_per_epoch = min(max(1, wanted), self._least_rows())
        self._length = epochs * self.steps_per_epoch
        self._planned: tuple[int, Array, Ints] | None = None  # epoch, its rows, each step's end
        self._rank, self._ranks = 0, 1

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> list[Batch]:  # type: ignore[override]
        rows = self.rows_of(index)
        lengths = self.lengths[rows].astype(np.int64)
        groups = cut(rows, lengths, self.tokens_per_batch, self._ranks)
        own = [make_batch(self.dataset, group) for group in groups[self._rank :: self._ranks]]
        if self._ranks == 1:
            return own
        supervised = int(self.dataset.table.take("supervised", rows).sum())
        return RankBatches(own, StepTotals(tuple(rows.tolist()), int(lengths.sum()), supervised))

    def truncated(self, count: int | None) -> Steps:
        """The same plan, only its first `count` steps; None keeps all."""
        if count is not None and count < 1:
            raise ValueError(f"the first {count} steps; use a positive number")
        out = copy.copy(self)
        out._length = len(self) if count is None else min(len(self), count)
        return out

    def with_length(self, count: int) -> Steps:
        """The same plan for `count` steps, over as many epochs as that takes."""
        out = copy.copy(self)
        out.epochs = -(-count // self.steps_per_epoch)
        out._length = count
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

    def of_rank(self, rank: int, ranks: int) -> Steps:
        """The same plan, of each step only one rank's micro-batches; each rank has equally many."""
        out = copy.copy(self)
        out._rank, out._ranks = rank, ranks
        return out

    def rows_of(self, index: int) -> Ints:
        """The rows that step `index` trains on."""
        if not 0 <= index < len(self):
            raise IndexError(
                f"step {index}: the run has {len(self)} steps; use 0 to {len(self) - 1}"
            )
        epoch, step = divmod(index, self.steps_per_epoch)
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

    def _least_rows(self) -> int:
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
        examples: a Dataset, or Examples (copied into one).
        tokens_per_step: tokens of one optimizer step, on average.
        tokens_per_batch: tokens of one micro-batch, at most: bounds memory, changes nothing else.
            Default: a whole step.
        epochs: how often to go over all rows.
        seed: decides the order.
        mix: a weight per file: its share of an epoch's tokens, in place of each row once.

    Returns:
        A sized sequence of steps, each a list of Batch.

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
    """All rows of a dataset once, built while they are iterated over; False where there are none.

    A block of rows is cut at a time, so that memory doesn't grow with rows.
    """

    def __init__(self, dataset: Dataset, tokens_per_batch: int) -> None:
        self.dataset, self.tokens_per_batch = dataset, tokens_per_batch
        lengths = dataset.table["input_length"]
        self.rows = np.flatnonzero(lengths)
        _check_longest(lengths, tokens_per_batch)
        self._rank, self._ranks = 0, 1

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def __iter__(self) -> Iterator[Batch]:
        for first in range(0, len(self.rows), BLOCK_ROWS // 4):
            rows = self.rows[first : first + BLOCK_ROWS // 4]
            lengths = self.dataset.table.take("input_length", rows).astype(np.int64)
            groups = cut(rows, lengths, self.tokens_per_batch, self._ranks)
            for group in groups[self._rank :: self._ranks]:
                yield make_batch(self.dataset, group)

    def of_rank(self, rank: int, ranks: int) -> Batches:
        """The batches of one rank; each rank has equally many."""
        out = copy.copy(self)
        out._rank, out._ranks = rank, ranks
        return out


def batches_of(dataset: Dataset, tokens_per_batch: int) -> Batches:
    """All rows with a trained token once, in batches of at most `tokens_per_batch`."""
    return Batches(dataset, tokens_per_batch)


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


def make_batch(dataset: Dataset, rows: Ints) -> Batch:
    """Lay rows end to end; each has at least one trained token.

    No rows make a batch of one token that nothing is learned from: where another rank has a batch,
    this one has to go through its motions.
    """
    if not len(rows):
        return _IDLE
    counts = dataset.table.take("input_length", rows).astype(np.int64)
    starts = dataset.table.take("start", rows).astype(np.int64)
    ends = np.cumsum(counts)
    positions = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
    source = np.repeat(starts, counts) + positions
    trained = np.asarray(dataset.loss_mask[source + 1])
    labels = np.where(trained, dataset.input_ids[source + 1].astype(np.int64), IGNORE_INDEX)
    supervised = np.flatnonzero(trained)
    # The first supervised position of each row; its end where it has none.
    first = np.append(supervised, ends[-1])[np.searchsorted(supervised, ends - counts)]
    first = np.minimum(first, ends)
    tails = np.flatnonzero(np.arange(ends[-1]) >= np.repeat(first, counts))
    weights = None if dataset.weights is None else dataset.weights[source[supervised] + 1]
    return Batch(
        input_ids=torch.from_numpy(dataset.input_ids[source].astype(np.int64)),
        positions=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        cu_seqlens=_running_sums(counts),
        supervised=torch.from_numpy(supervised),
        tails=torch.from_numpy(tails),
        tail_cu_seqlens=_running_sums(ends - first),
        supervised_in_tails=torch.from_numpy(np.searchsorted(tails, supervised)),
        weights=None if weights is None else torch.from_numpy(np.array(weights)),
        lengths=tuple(counts.tolist()),
        tail_lengths=tuple((ends - first).tolist()),
        max_seqlen=int(counts.max()),
        num_supervised=len(supervised),
        rows=tuple(rows.tolist()),
    )


def _running_sums(counts: Ints) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))


_NONE = torch.zeros(0, dtype=torch.int64)
_IDLE = Batch(
    input_ids=torch.zeros(1, dtype=torch.int64),
    positions=torch.zeros(1, dtype=torch.int64),
    labels=torch.full((1,), IGNORE_INDEX),
    cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
    supervised=_NONE,
    tails=torch.zeros(1, dtype=torch.int64),
    tail_cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
    supervised_in_tails=_NONE,
    weights=None,
    lengths=(1,),
    tail_lengths=(1,),
    max_seqlen=1,
    num_supervised=0,
    rows=(),
)


def cut(rows: Ints, lengths: Ints, budget: int, ranks: int = 1) -> list[Ints]:
    """Cut rows into as few groups of at most `budget` tokens as a balanced greedy cut finds.

    Each row, longest first, joins the group with the fewest tokens (Graham 1969, LPT). There is a
    multiple of `ranks` groups, some of them empty where rows are few.
    """
    longest_first = np.argsort(-lengths, kind="stable").tolist()
    sizes = lengths.tolist()
    large = sum(2 * size > budget for size in sizes)  # no two of these share a group
    least = max(1, large, -(-sum(sizes) // budget))
    for groups in range(-(-least // ranks) * ranks, len(rows) + ranks, ranks):
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
    raise AssertionError("a row longer than the budget was let through")


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
