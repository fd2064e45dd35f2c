"""A plan that loses nothing, batches that mix nothing, labels that are the next token."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimind.data import plan as plan_module
from minimind.data.conversation import Message
from minimind.data.dataset import COLUMNS, Dataset, Example
from minimind.data.masking import encode_conversation
from minimind.data.packing import IGNORE_INDEX, Batch, cut, make_batch
from minimind.data.plan import Batches, Steps, make_steps
from minimind.tokenizer import Tokenizer
from tests.support.strategies import conversations

Lengths = Sequence[int]


def row_of(length: int, first: int = 0) -> Example:
    """A row of which training reads `length` tokens; all ids differ, the last is trained."""
    return Example(list(range(first, first + length + 1)), [False] * length + [True])


def rows_of(lengths: Lengths) -> list[Example]:
    starts = np.cumsum([0, *(length + 1 for length in lengths)]).tolist()
    return [row_of(length, start) for length, start in zip(lengths, starts, strict=False)]


def only_lengths(lengths: Lengths) -> Dataset:
    """Millions of rows for planning; all of them read the same few tokens."""
    table = {name: np.zeros(len(lengths), dtype) for name, dtype in COLUMNS.items()}
    table["input_length"][:] = lengths
    table["length"][:] = table["input_length"] + 1
    table["supervised"][:] = 1
    longest = int(table["length"].max())
    mask = np.arange(longest) > 0
    return Dataset(np.arange(longest, dtype=np.uint16), mask, None, table)


def realistic_lengths(count: int, seed: int = 0) -> Lengths:
    """Log-normal around 200, at most 512, as chat data has them."""
    lengths = np.random.default_rng(seed).lognormal(5.1, 0.65, count)
    return np.clip(lengths, 8, 512).astype(int).tolist()  # type: ignore[no-any-return]


def trained_rows(steps: Steps, epoch: int) -> list[int]:
    per_epoch = steps.steps_per_epoch
    of_epoch = range(epoch * per_epoch, (epoch + 1) * per_epoch)
    return [row for index in of_epoch for batch in steps[index] for row in batch.rows]


plans = st.fixed_dictionaries(
    {
        "lengths": st.lists(st.integers(1, 60), min_size=1, max_size=40),
        "tokens_per_step": st.integers(1, 300),
        "room": st.integers(0, 200),
        "epochs": st.integers(1, 3),
        "seed": st.integers(0, 2**32),
    }
)


def plan(drawn: dict[str, int | list[int]]) -> Steps:
    lengths, room = drawn["lengths"], drawn["room"]
    assert isinstance(lengths, list)
    assert isinstance(room, int)
    options = {name: drawn[name] for name in ("tokens_per_step", "epochs", "seed")}
    return make_steps(rows_of(lengths), tokens_per_batch=max(lengths) + room, **options)  # type: ignore[arg-type]


# The plan


@given(plans)
def test_each_row_is_trained_on_exactly_once_an_epoch(drawn: dict[str, int | list[int]]) -> None:
    steps = plan(drawn)
    assert len(steps) == steps.epochs * steps.steps_per_epoch
    for epoch in range(steps.epochs):
        assert sorted(trained_rows(steps, epoch)) == list(range(len(steps.dataset)))


@given(plans)
def test_no_step_is_empty_and_no_batch_is_larger_than_allowed(
    drawn: dict[str, int | list[int]],
) -> None:
    steps = plan(drawn)
    for step in steps:
        assert step
        for batch in step:
            assert 0 < len(batch) <= steps.tokens_per_batch
            assert batch.num_supervised > 0


@given(plans)
def test_packing_neither_loses_nor_repeats_a_token(drawn: dict[str, int | list[int]]) -> None:
    steps = plan(drawn)
    wanted = Counter(id for row in steps.dataset for id in row.input_ids[:-1])
    for epoch in range(steps.epochs):
        per_epoch = steps.steps_per_epoch
        batches = chain.from_iterable(
            steps[index] for index in range(epoch * per_epoch, (epoch + 1) * per_epoch)
        )
        seen = Counter(id for batch in batches for id in batch.input_ids.tolist())
        assert seen == wanted  # each token once: there is no padding either


def test_ten_thousand_mixes_of_lengths_are_planned_without_a_failure() -> None:
    rng = random.Random(0)
    for _ in range(10_000):
        longest = rng.choice((1, 2, 5, 30))
        lengths = [rng.randint(1, longest) for _ in range(rng.randint(1, 12))]
        unsupervised = rng.randint(0, 2)
        rows = rows_of(lengths) + [Example([1, 2], [False, False])] * unsupervised
        steps = make_steps(
            rows,
            tokens_per_step=rng.randint(1, 2 * sum(lengths)),
            tokens_per_batch=max(lengths) + rng.choice((0, 1, 10)),
            seed=rng.randint(0, 9),
        )
        index = rng.randrange(len(steps))
        planned = np.concatenate([steps.rows_of(i) for i in range(len(steps))])
        assert sorted(planned.tolist()) == list(range(len(lengths)))
        for batch in steps[index]:
            assert batch.num_supervised == len(batch.rows)
            assert len(batch) == sum(lengths[row] for row in batch.rows) <= steps.tokens_per_batch


def test_steps_are_filled_to_what_was_asked_for() -> None:
    # A step's fill is its tokens over tokens_per_step. Steps are cut at the row ends nearest to
    # equal shares of the epoch, so that the mean is 1 but for rounding the number of steps.
    for tokens_per_step, least in ((3_200, 0.84), (16_384, 0.965), (65_536, 0.99)):
        steps = make_steps(only_lengths(realistic_lengths(20_000)), tokens_per_step=tokens_per_step)
        tokens = [int(steps.lengths[steps.rows_of(i)].sum()) for i in range(len(steps))]
        fill = [count / tokens_per_step for count in tokens]
        assert 0.97 <= np.mean(fill) <= 1.03
        assert min(fill) >= least
        assert max(fill) <= 2 - least
        assert sum(tokens) == steps.tokens_per_epoch


def test_batches_hold_tokens_only_and_are_as_few_as_fit() -> None:
    # A batch's fill is its tokens over tokens_per_batch. Nothing is padded, so that a batch costs
    # its tokens, full or not; what a step has is spread evenly over the fewest batches.
    steps = make_steps(
        only_lengths(realistic_lengths(20_000)), tokens_per_step=64_500, tokens_per_batch=8_192
    )
    fill = []
    for step in steps:
        sizes = [len(batch) for batch in step]
        assert sizes == [sum(batch.documents.lengths) for batch in step]
        assert len(sizes) == 8
        assert max(sizes) - min(sizes) < 512  # to less than a row
        fill += [size / 8_192 for size in sizes]
    assert np.mean(fill) >= 0.97


@pytest.mark.parametrize("tokens_per_step", [1, 100, 128, 129, 1_000, 10**9])
def test_short_maximum_lengths_do_not_stall_the_packer(tokens_per_step: int) -> None:
    lengths = [min(length, 128) for length in realistic_lengths(500)]
    steps = make_steps(only_lengths(lengths), tokens_per_step=tokens_per_step, tokens_per_batch=128)
    expected = min(max(1, round(sum(lengths) / tokens_per_step)), len(lengths))
    assert len(steps) == expected
    assert sorted(trained_rows(steps, 0)) == list(range(500))


@pytest.mark.parametrize("length", [1, 2, 511, 512])
def test_rows_of_one_length_are_shared_out_evenly(length: int) -> None:
    steps = make_steps(only_lengths([length] * 96), tokens_per_step=16 * length)
    assert [len(steps.rows_of(i)) for i in range(len(steps))] == [16] * 6


def test_a_few_huge_rows_leave_a_row_for_every_step() -> None:
    lengths = [1] * 30 + [5_000, 5_000, 5_000]
    steps = make_steps(only_lengths(lengths), tokens_per_step=500)
    assert len(steps) == 30
    assert min(len(steps.rows_of(i)) for i in range(30)) == 1
    assert sorted(trained_rows(steps, 0)) == list(range(33))


def rows_in_order(steps: Steps) -> list[list[int]]:
    return [steps.rows_of(index).tolist() for index in range(len(steps))]


def test_the_plan_is_decided_by_the_seed_and_changes_with_each_epoch() -> None:
    dataset = only_lengths(realistic_lengths(400))

    def planned(**options: int) -> list[list[int]]:
        return rows_in_order(
            make_steps(dataset, **{"tokens_per_step": 4_000, "epochs": 3, "seed": 5, **options})
        )

    assert planned() == planned() == planned(tokens_per_batch=600)
    assert planned(seed=6) != planned()
    per_epoch = len(planned()) // 3
    epochs = [planned()[i * per_epoch : (i + 1) * per_epoch] for i in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert planned(epochs=2) == planned()[: 2 * per_epoch]  # more epochs change no earlier one


def test_a_step_is_the_same_whichever_was_read_before() -> None:
    steps = make_steps(
        only_lengths(realistic_lengths(200)), tokens_per_step=2_000, epochs=3, tokens_per_batch=700
    )
    in_order = [[batch.rows for batch in step] for step in steps]
    indices = list(range(len(steps)))
    random.Random(0).shuffle(indices)
    assert [[batch.rows for batch in steps[i]] for i in indices] == [in_order[i] for i in indices]


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.integers(1, 12))
def test_a_plan_made_in_blocks_is_the_plan_made_in_one_piece(lengths: Lengths, block: int) -> None:
    plans = []
    for rows in (block, len(lengths)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plan_module, "BLOCK_ROWS", rows)
            steps = make_steps(only_lengths(lengths), tokens_per_step=500, epochs=2)
            plans.append([steps.rows_of(index).tolist() for index in range(len(steps))])
    assert plans[0] == plans[1]


def test_rows_are_shuffled_and_not_sorted_by_place_or_length() -> None:
    lengths = realistic_lengths(2_000)
    steps = make_steps(only_lengths(lengths), tokens_per_step=10_000, tokens_per_batch=1_000)
    pairs = [
        (a, b) for step in steps for x in step for a, b in zip(x.rows, x.rows[1:], strict=False)
    ]
    assert len(pairs) > 1_000
    rising = sum(a < b for a, b in pairs) / len(pairs)
    longer = sum(lengths[a] < lengths[b] for a, b in pairs) / len(pairs)
    assert 0.45 < rising < 0.55
    assert 0.45 < longer < 0.55


def test_every_row_is_as_likely_in_every_place() -> None:
    count, seeds = 20, 2_000
    dataset = only_lengths([10] * count)
    places = np.zeros((count, count))
    for seed in range(seeds):
        (order,) = rows_in_order(make_steps(dataset, tokens_per_step=10**6, seed=seed))
        places[order, np.arange(count)] += 1
    # Chi-square of a uniform 20 x 20 table has mean 361 and standard deviation 27.
    expected = seeds / count
    assert ((places - expected) ** 2 / expected).sum() < 361 + 5 * 27


def test_ten_million_rows_are_planned_and_reached_at_ninety_percent() -> None:
    count = 10_000_000
    rng = np.random.default_rng(0)
    dataset = only_lengths(np.clip(rng.lognormal(5.1, 0.65, count), 8, 512).astype(np.uint32))  # type: ignore[arg-type]
    steps = make_steps(dataset, tokens_per_step=3_200, tokens_per_batch=4_096, epochs=2)
    index = int(0.9 * steps.steps_per_epoch)
    batches = steps[index]
    planned = [row for batch in batches for row in batch.rows]
    assert sorted(planned) == sorted(steps.rows_of(index).tolist())
    assert sum(map(len, batches)) == int(dataset.column("input_length")[planned].sum())
    assert 0.8 < sum(map(len, batches)) / 3_200 < 1.2


# Micro-batches


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=30),
    budgets=st.lists(st.integers(60, 500), min_size=2, max_size=2),
)
def test_another_cut_keeps_a_steps_rows_and_labels(lengths: list[int], budgets: list[int]) -> None:
    def contents(budget: int) -> list[tuple[list[int], list[tuple[int, int]]]]:
        steps = make_steps(rows_of(lengths), tokens_per_step=300, tokens_per_batch=budget)
        return [
            (
                sorted(row for batch in step for row in batch.rows),
                sorted(
                    pair
                    for batch in step
                    for pair in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True)
                ),
            )
            for step in steps
        ]

    assert contents(budgets[0]) == contents(budgets[1])


def test_without_a_budget_a_step_is_one_batch() -> None:
    steps = make_steps(only_lengths(realistic_lengths(300)), tokens_per_step=3_000)
    assert {len(step) for step in steps} == {1}


@pytest.mark.parametrize(
    ("lengths", "budget", "groups"),
    [
        ([5, 5, 5, 5], 10, 2),
        ([6, 5, 5, 4], 10, 2),
        ([6, 6, 6], 10, 3),  # no two fit together
        ([10, 1, 1], 10, 2),
        ([3], 10, 1),
        ([4] * 9, 11, 5),  # two in a group at most
        ([51] * 200, 100, 200),
    ],
)
def test_a_cut_has_as_few_groups_as_needed(lengths: list[int], budget: int, groups: int) -> None:
    rows = np.arange(100, 100 + len(lengths))
    parts = cut(rows, np.array(lengths), budget)
    assert len(parts) == groups
    assert sorted(np.concatenate(parts).tolist()) == rows.tolist()


# Batches


def test_a_batch_written_out_by_hand() -> None:
    rows = [
        Example([5, 7, 2, 8, 230], [False, False, True, True, False]),
        Example([5, 9, 2, 230, 1, 1], [False, False, True, False, False, False]),
    ]
    batch = make_batch(Dataset.from_examples(rows), np.array([0, 1]))
    ignored = IGNORE_INDEX
    assert ignored == -100
    assert batch.input_ids.tolist() == [5, 7, 2, 5, 9]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1]
    assert batch.labels.tolist() == [ignored, 2, 8, ignored, 2]
    assert batch.documents.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.supervised.tolist() == [1, 2, 4]
    assert batch.weights is None
    assert (batch.documents.lengths, batch.documents.max_seqlen) == ((3, 2), 3)
    assert batch.num_supervised == 3
    assert batch.rows == (0, 1)
    assert len(batch) == 5
    kinds = [
        batch.input_ids,
        batch.positions,
        batch.labels,
        batch.supervised,
        batch.documents.cu_seqlens,
    ]
    assert [kind.dtype for kind in kinds] == [torch.int64] * 4 + [torch.int32]


def test_every_label_is_the_next_token_or_ignored(tokenizer: Tokenizer) -> None:
    @given(rows=st.lists(conversations(answered=True, max_exchanges=2), min_size=1, max_size=5))
    def check(rows: list[object]) -> None:
        examples = [encode_conversation(row, tokenizer) for row in rows]  # type: ignore[arg-type]
        kept = [index for index, row in enumerate(examples) if any(row.loss_mask)]
        if not kept:
            return
        dataset = Dataset.from_examples(examples)
        batch = make_batch(dataset, np.array(kept))
        assert_is_made_of([examples[index] for index in kept], batch)

    check()


def assert_is_made_of(rows: list[Example], batch: Batch) -> None:
    """A batch against its rows, token by token."""
    at = 0
    for row, length in zip(rows, batch.documents.lengths, strict=True):
        trained = [i for i, mark in enumerate(row.loss_mask) if mark]
        assert length == trained[-1]  # inputs end just before the last trained token
        for position in range(length):
            assert batch.positions[at] == position  # positions restart with each row
            assert batch.input_ids[at] == row.input_ids[position]
            following = position + 1
            if row.loss_mask[following]:
                assert batch.labels[at] == row.input_ids[following]  # of the same row
            else:
                assert batch.labels[at] == IGNORE_INDEX
            at += 1
    assert at == len(batch) == len(batch.labels) == len(batch.positions)
    expected = torch.nonzero(batch.labels != IGNORE_INDEX).flatten()
    assert batch.supervised.equal(expected)
    assert batch.num_supervised == len(expected) == sum(sum(row.loss_mask) for row in rows)
    assert batch.documents.cu_seqlens.tolist() == np.cumsum([0, *batch.documents.lengths]).tolist()
    assert batch.documents.max_seqlen == max(batch.documents.lengths)
    weights = [
        weight
        for row in rows
        for mark, weight in zip(row.loss_mask, row.weights or row.loss_mask, strict=True)
        if mark
    ]
    if batch.weights is None:
        assert set(weights) == {1}
    else:
        assert batch.weights.dtype == torch.float32
        assert batch.weights.tolist() == weights


def test_the_first_token_of_an_answer_is_a_label(tokenizer: Tokenizer) -> None:
    turns = [Message("user", "수도는?"), Message("assistant", "서울입니다.")]
    row = encode_conversation(turns, tokenizer)
    (batch,) = make_steps([row], tokens_per_step=100)[0]
    answer = [*tokenizer.encode("서울입니다."), tokenizer.end_id]
    assert batch.labels[batch.supervised].tolist() == answer
    before = int(batch.supervised[0])
    assert tokenizer.decode(batch.input_ids[: before + 1].tolist()).endswith("assistant\n")
    assert batch.input_ids[-1] == tokenizer.encode("서울입니다.")[-1]


def test_weights_go_with_their_labels(tokenizer: Tokenizer) -> None:
    rows = [
        encode_conversation([Message("assistant", "하나", weight)], tokenizer)
        for weight in (1.0, 0.25, 3.0)
    ]
    (batch,) = make_steps(rows, tokens_per_step=1_000)[0]
    assert batch.weights is not None
    each = len(tokenizer.encode("하나")) + 1
    expected = [{0: 1.0, 1: 0.25, 2: 3.0}[row] for row in batch.rows for _ in range(each)]
    assert batch.weights.tolist() == expected


def test_a_batch_moves_with_all_of_its_tensors() -> None:
    rows = [Example([1, 2, 3], [False, True, True], [0.0, 0.5, 1.0])]
    batch = make_batch(Dataset.from_examples(rows), np.array([0]))
    assert batch.to(torch.device("cpu")) is batch
    moved = batch.to(torch.device("meta"))
    assert [x.device.type for x in moved.tensors()] == ["meta"] * 6
    assert (moved.documents.lengths, moved.rows) == (batch.documents.lengths, batch.rows)
    plain = make_batch(Dataset.from_examples([row_of(2)]), np.array([0]))
    assert plain.to(torch.device("meta")).weights is None


# Rows that can't be trained, options that can't be


def test_batches_hold_every_row_once_in_blocks_and_can_be_gone_over_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan_module, "BLOCK_ROWS", 4 * 16)
    dataset = only_lengths([*range(1, 60), *range(1, 60)])
    batches = Batches(dataset, 64)
    for _ in range(2):
        seen = list(batches)
        assert max(len(batch) for batch in seen) <= 64
        assert sorted(row for batch in seen for row in batch.rows) == list(range(118))
    assert batches
    assert not Batches(Dataset.from_examples([]), 64)
    with pytest.raises(ValueError, match="a row has 59 tokens and tokens_per_batch is 58; raise"):
        Batches(dataset, 58)


def test_rows_without_a_trained_token_are_left_out() -> None:
    rows = [
        Example([1, 2, 3], [False] * 3),
        row_of(4),
        Example([], []),
        Example([7, 8], [True, False]),  # nothing stands before its only trained token
        row_of(2),
    ]
    steps = make_steps(rows, tokens_per_step=100)
    assert sorted(trained_rows(steps, 0)) == [1, 4]
    assert steps.tokens_per_epoch == 6


@pytest.mark.parametrize("rows", [[], [Example([1, 2], [False, False])] * 3])
def test_data_without_a_trained_token_is_refused(rows: list[Example]) -> None:
    with pytest.raises(ValueError, match=f"none of {len(rows)} rows has a trained token; check"):
        make_steps(rows, tokens_per_step=100)


def test_what_are_no_examples_is_refused() -> None:
    with pytest.raises(TypeError, match="examples: has a dict; give Examples, as encode_conv"):
        make_steps([{"prompt": "a", "completion": "b"}], tokens_per_step=10)
    with pytest.raises(ValueError, match="an Example's lists differ in length; give an entry per"):
        Example([1, 2], [True])
    with pytest.raises(ValueError, match="an Example's lists differ in length"):
        Example([1, 2], [False, True], [1.0])


def test_examples_may_come_from_a_generator() -> None:
    steps = make_steps((row for row in rows_of([5, 9])), tokens_per_step=10)
    assert sorted(row for step in steps for row in step.rows) == [0, 1]


def test_options_that_cannot_be_are_refused() -> None:
    rows = rows_of([5, 9])
    with pytest.raises(ValueError, match="tokens_per_step is 0; use a positive number"):
        make_steps(rows, tokens_per_step=0)
    with pytest.raises(ValueError, match="epochs is -1; use a positive number"):
        make_steps(rows, tokens_per_step=10, epochs=-1)
    with pytest.raises(ValueError, match="seed is -1; use 0 or more"):
        make_steps(rows, tokens_per_step=10, seed=-1)
    message = "a row has 9 tokens and tokens_per_batch is 8; raise tokens_per_batch to at least 9"
    with pytest.raises(ValueError, match=message):
        make_steps(rows, tokens_per_step=10, tokens_per_batch=8)
    assert len(make_steps(rows, tokens_per_step=10, tokens_per_batch=9)) == 1


def test_steps_are_a_sequence_with_slices_and_negative_indices() -> None:
    steps = make_steps(only_lengths([10] * 20), tokens_per_step=50, epochs=2)
    rows = [step.rows for step in steps]
    assert len(rows) == len(steps) == 8
    assert [steps[i].rows for i in range(-8, 0)] == rows
    for part in (
        slice(3),
        slice(None),
        slice(99),
        slice(2, None),
        slice(-3, None),
        slice(1, 7, 3),
        slice(None, None, -1),
    ):
        assert [step.rows for step in steps[part]] == rows[part]
        assert [steps[part].rows_of(i).tolist() for i in range(len(steps[part]))] == [
            list(step) for step in rows[part]
        ]
    assert [step.rows for step in steps[2:][1:3]] == rows[2:][1:3]
    assert [step.rows for step in reversed(steps)] == rows[::-1]
    assert repr(steps) == "<8 steps of about 50 tokens, 4 an epoch, over 20 rows>"


@pytest.mark.parametrize("index", [-9, 8, 1_000])
def test_a_step_that_is_not_there_is_refused(index: int) -> None:
    steps = make_steps(only_lengths([10] * 20), tokens_per_step=50, epochs=2)
    with pytest.raises(IndexError, match=f"step {index}: the run has 8 steps; use 0 to 7"):
        steps[index]


# A mix of files, and a plan of any length


def files_of(*lengths: Lengths) -> Dataset:
    dataset = only_lengths([length for file in lengths for length in file])
    dataset.columns["file"][:] = np.repeat(np.arange(len(lengths)), [len(file) for file in lengths])
    return dataset


def test_a_mix_gives_files_their_shares_to_within_half_a_point_at_any_length() -> None:
    files = files_of(realistic_lengths(1500), realistic_lengths(200, 1), realistic_lengths(900, 2))
    plan = make_steps(files, tokens_per_step=8192, mix=[2, 1, 1])
    for count in (50, plan.steps_per_epoch, 4 * plan.steps_per_epoch + 3):
        steps = plan.with_length(count)
        rows = [row for index in range(count) for row in steps.rows_of(index).tolist()]
        tokens = np.bincount(files.column("file")[rows], files.column("input_length")[rows])
        assert np.abs(tokens / tokens.sum() - [0.5, 0.25, 0.25]).max() < 0.005
        assert tokens.sum() == pytest.approx(8192 * count, rel=0.02)


def test_a_slice_is_lengthened_from_its_first_step() -> None:
    steps = make_steps(only_lengths([10] * 20), tokens_per_step=50, epochs=2)
    assert [step.rows for step in steps[3:6].with_length(2)] == [steps[3].rows, steps[4].rows]


def test_a_mix_resumed_anywhere_goes_on_as_it_would_have() -> None:
    files = files_of(realistic_lengths(60), realistic_lengths(20, 1))
    mix = {"tokens_per_step": 2000, "mix": [1, 3], "seed": 4}
    whole = make_steps(files, **mix).with_length(40)
    rows = [whole.rows_of(index).tolist() for index in range(40)]
    for index in (39, 0, 17, 5, 30):
        assert make_steps(files, **mix).with_length(40).rows_of(index).tolist() == rows[index]
    assert all(rows)


def test_steps_of_a_mix_are_never_empty_where_rows_are_as_long_as_steps() -> None:
    steps = make_steps(files_of([40] * 3, [1] * 50), tokens_per_step=5, mix=[20, 1], epochs=3)
    assert all(len(steps.rows_of(index)) for index in range(len(steps)))


def test_a_plan_lasts_as_many_steps_as_asked_for() -> None:
    plan = make_steps(only_lengths([3] * 12), tokens_per_step=9, epochs=2)
    assert [len(plan.with_length(count)) for count in (1, 4, 9)] == [1, 4, 9]
    assert plan.with_length(9).epochs == 3
    assert len(plan) == 8  # left as it was
    longer = plan.with_length(9)
    assert [longer.rows_of(i).tolist() for i in range(8)] == [
        plan.rows_of(i).tolist() for i in range(8)
    ]


@pytest.mark.parametrize(
    ("mix", "fact"),
    [
        ([1], "the mix has 1 weights for 2 files; give each one"),
        ([1, 1, 1], "a weight for file 3, of which nothing is left to train on; leave the two out"),
        ([1, 0], "the mix has a weight of 0; use positive numbers"),
        ([1, -1], "the mix has a weight of -1; use positive numbers"),
        ([1, float("nan")], "the mix has a weight of nan; use positive numbers"),
        ([1, float("inf")], "the mix has a weight of inf; use positive numbers"),
    ],
)
def test_a_mix_is_one_weight_for_each_file(mix: list[float], fact: str) -> None:
    with pytest.raises(ValueError, match=fact):
        make_steps(files_of([3], [4, 5]), tokens_per_step=9, mix=mix)
