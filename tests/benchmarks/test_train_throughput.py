"""Everyone is measured on the same rows, in the same precision, computing the same loss."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.padded_decoder import PaddedDecoder
from benchmarks.peers import PEERS, available, by_length, one_at_a_time, padded, sixteen
from benchmarks.train_throughput import (
    COMPILED,
    OURS,
    PEAK,
    PER_STEP,
    Plan,
    Workload,
    contestant,
    parse,
    table,
)
from benchmarks.workload import SHAPES
from minimind.data.packing import Step, make_batch
from minimind.model.transformer import Transformer
from minimind.training.state import TrainConfig
from minimind.training.step import batch_loss
from tests.support.ragged import ragged_rows

CPU = ["--device", "cpu", "--only", "tiny", "--steps", "1", "--rounds", "1"]


@pytest.mark.parametrize("tokens", [None, 1, 100, 3000])
def test_a_plan_takes_every_row_in_turn(tokens) -> None:
    rows = ragged_rows(50)
    plan = Plan(rows, tokens, tokens_per_batch=1)
    longest = int(rows.column("input_length").max())
    assert plan.tokens_per_batch == longest
    steps = [plan.rows_of(index) for index in range(300)]
    assert np.concatenate(steps).tolist() == [k % 50 for k in range(sum(map(len, steps)))]
    sizes = [int(rows.column("input_length")[step].sum()) for step in steps]
    if tokens is None:
        assert {len(step) for step in steps} == {PER_STEP}
    elif tokens > longest:
        assert all(abs(size - tokens) <= longest for size in sizes)
        assert abs(sum(sizes) - tokens * 300) <= longest
    else:
        assert {len(step) for step in steps} == {1}
    assert Step.of(plan[5]).tokens == sizes[5]
    assert plan[5].rows == tuple(steps[5])


def test_the_default_batch_is_the_librarys() -> None:
    workload = Workload(parse([*CPU, "--tokens-per-step", "9000"]))
    assert workload.plan().tokens_per_batch == 4096
    assert [len(workload.plan(budget)[0]) for budget in (10_000, None, 1000)] == [1, 3, 10]


@pytest.mark.filterwarnings("ignore")  # what peers warn of is their own
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", [OURS, *available(torch.device("cpu"))])
def test_each_contestant_does_the_same_rows(name, precision) -> None:
    options = ["--precision", precision, "--tokens-per-step", "900", "--contestant", name]
    work = contestant(parse([*CPU, *options]))
    work()
    measures = work()
    workload = Workload(parse(CPU))
    rows = Plan(workload.dataset, 900, 4096).rows_of(2)  # the first two are for warming up
    assert measures["tokens"] == workload.dataset.column("length")[rows].sum()
    assert measures["steps"] == 1
    assert measures["seconds"] > 0
    row = {PEAK: [{"flops_per_second": 1e9}], OURS: [measures | {"peak_gb": 1.0}]}
    assert f"| {OURS} | " in table(row)
    if name == OURS:
        assert measures["eager"] == measures["batches"] == 1
        assert not measures["graphs"]


def test_no_peer_is_missing() -> None:
    assert {name for name in PEERS if name.startswith("MiniMind")} <= set(
        available(torch.device("cpu"))
    )
    assert not [name for name in available(torch.device("cpu")) if "Liger" in name]


def test_micro_batches_hold_every_row_once() -> None:
    workload = Workload(parse(CPU))
    rows = np.random.default_rng(0).permutation(96)
    steps = np.split(rows, 2)
    for cut in (one_at_a_time, sixteen, lambda steps: by_length(workload, steps)):
        micro_batches = [part for step in cut(steps) for part in step]
        assert sorted(np.concatenate(micro_batches)) == list(range(96))
    lengths = workload.dataset.column("length")
    batches = [part for step in by_length(workload, steps) for part in step]
    assert all(len(part) * lengths[part].max() <= 8192 + lengths.max() for part in batches)
    assert (np.diff(lengths[np.concatenate(batches)].astype(int)) >= 0).all()


@pytest.mark.parametrize(
    "fields",
    [{}, {"model_type": "qwen3", "qk_norm": True}, {"tie_word_embeddings": False}],
    ids=["tied", "normed", "untied"],
)
def test_the_padded_decoder_computes_our_loss(fields) -> None:
    config = replace(SHAPES["tiny"], **fields)
    ours, theirs = Transformer(config).initialize(), PaddedDecoder(config)
    theirs.load_state_dict(ours.state_dict(), strict=config.tie_word_embeddings is False)
    workload = Workload(parse(CPU))
    rows = np.arange(5)
    batch = make_batch(workload.dataset, rows)
    expected = batch_loss(ours, batch, TrainConfig(), "fp32") / batch.num_supervised
    for length in (None, 512, 768):
        loss = theirs(*padded(workload, rows, length))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_peers_are_refused_in_fp16(capsys) -> None:
    with pytest.raises(SystemExit):
        parse([*CPU, "--peers", "--precision", "fp16"])
    assert "--peers are measured in fp32 and bf16" in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_step_runs_no_batch_eagerly() -> None:
    options = ["--tokens-per-step", "600", "--precision", "bf16", "--contestant", COMPILED]
    work = contestant(parse([*CPU, *options]))
    measures = work()
    assert (measures["eager"], measures["batches"]) == (0, 1)
    assert measures["first_step"] > measures["seconds"]
