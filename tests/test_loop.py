"""A step is the mean over its supervised tokens, however it is cut; a run can stop anywhere."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.data.dataset import Dataset, Example
from minimind.data.packing import Batch, make_batch
from minimind.data.plan import make_steps
from minimind.model.transformer import Transformer
from minimind.training import step as step_module
from minimind.training.loop import train, train_step
from minimind.training.state import TrainConfig, TrainState
from minimind.training.step import batch_loss
from tests.support.ragged import new_model, ragged_rows

FP32 = TrainConfig(precision="fp32", learning_rate=1e-3)
CPU = torch.device("cpu")


def weights_of(model: Transformer) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def cut_evenly(dataset: Dataset, parts: int) -> list[Batch]:
    return [make_batch(dataset, rows) for rows in np.split(np.arange(len(dataset)), parts)]


def step_gradients(batches: list[Batch], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The gradients that a real step is about to clip."""
    model = new_model()
    state = TrainState(model, FP32)
    model.to(dtype)
    seen: dict[str, Tensor] = {}
    clip = step_module.clip_gradients

    def note_and_clip(parameters, max_norm):
        seen.update({name: p.grad.clone() for name, p in model.named_parameters()})
        return clip(parameters, max_norm)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(step_module, "clip_gradients", note_and_clip)
        train_step(model, batches, FP32, state, factor=1.0)
    return seen


def relative_difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def one_vector(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def naive_loss(model: Transformer, example: Example) -> tuple[Tensor, int]:
    """The slow twin: one row at a time, full logits. Weighted sum, count of trained tokens."""
    ids, trained = torch.tensor(example.input_ids), torch.tensor(example.loss_mask)[1:]
    losses = F.cross_entropy(model(ids[None])[0, :-1], ids[1:], reduction="none")
    if example.weights is not None:
        losses = losses * torch.tensor(example.weights)[1:]
    return losses[trained].sum(), int(trained.sum())


# One step


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_gradients_do_not_depend_on_the_micro_batches(weighted) -> None:
    """T3: all gradients together in float32, and each in float64.

    Where a tensor's terms cancel, how far float32 rounds it depends on the processor.
    """
    dataset = ragged_rows(16, weighted=weighted)
    for dtype in (torch.float32, torch.float64):
        whole = step_gradients(cut_evenly(dataset, 1), dtype)
        for parts in (4, 16):
            cut = step_gradients(cut_evenly(dataset, parts), dtype)
            assert relative_difference(one_vector(cut), one_vector(whole)) <= 1e-6, parts
            for name, gradient in cut.items():
                exact = dtype == torch.float64
                assert relative_difference(gradient, whole[name]) <= (1e-12 if exact else 1e-5)


def test_gradients_are_those_of_the_mean_over_all_supervised_tokens() -> None:
    dataset = ragged_rows(16, weighted=True)
    model = new_model()
    sums, counts = zip(*(naive_loss(model, example) for example in dataset), strict=True)
    (sum(sums) / sum(counts)).backward()
    ours = step_gradients(cut_evenly(dataset, 4))
    for name, parameter in model.named_parameters():
        assert relative_difference(ours[name], parameter.grad) <= 1e-5, name
    # The rows are ragged enough to tell: a mean of means is another gradient.
    model.zero_grad()
    sum(naive_loss(model, row)[0] / naive_loss(model, row)[1] for row in dataset).backward()
    assert relative_difference(model.model.norm.weight.grad / 16, ours["model.norm.weight"]) > 0.01


def test_a_step_tells_what_it_did() -> None:
    dataset = ragged_rows(6)
    model = new_model()
    losses = [naive_loss(model, example) for example in dataset]
    expected = float(sum(loss.detach() for loss, _ in losses)) / sum(count for _, count in losses)
    batches = cut_evenly(dataset, 3)
    norm = torch.stack([g.norm() for g in step_gradients(batches).values()]).norm()
    config = replace(FP32, warmup_ratio=0.0, min_lr_ratio=0.5)
    (result,) = train(model, [batches], config)
    assert result.step == 1
    assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    assert result.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert result.learning_rate == 0.5e-3
    assert result.tokens == int(dataset.column("input_length").sum())
    assert result.supervised == sum(count for _, count in losses)
    assert result.rows == (0, 1, 2, 3, 4, 5)


def test_a_message_weight_scales_its_loss_linearly() -> None:
    """Two answers in a row; the first weighs w."""
    model, generator = new_model(), torch.Generator().manual_seed(3)
    ids = torch.randint(0, 48, (20,), generator=generator).tolist()
    first, second = range(5, 9), range(14, 20)
    mask = [index in first or index in second for index in range(20)]

    def loss(of_first: float, of_second: float) -> float:
        weights = [of_first * (i in first) + of_second * (i in second) for i in range(20)]
        weighed = Dataset.from_examples([Example(ids, mask, weights)])
        return batch_loss(model, make_batch(weighed, np.array([0])), FP32, "fp32").item()

    for weight in (0.1, 0.5, 2.0, 7.0):
        expected = weight * loss(1.0, 0.0) + loss(0.0, 1.0)
        assert loss(weight, 1.0) == pytest.approx(expected, rel=1e-6)


class Waits(TorchDispatchMode):
    """Counts operations whose result the host must wait for."""

    BLOCKING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.split(".")[0] in self.BLOCKING:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_a_step_never_waits_for_the_device(precision, weighted) -> None:
    model, config = new_model(), TrainConfig(precision=precision)
    state, batches = TrainState(model, config), cut_evenly(ragged_rows(4, weighted=weighted), 2)
    train_step(model, batches, config, state, 1.0)
    with Waits() as waits:
        result = train_step(model, batches, config, state, 1.0)
    assert waits.seen == []
    with Waits() as waits:
        result.loss.item()  # the observer does see a wait
    assert waits.seen == ["_local_scalar_dense.default"]


def test_a_step_without_supervision_is_refused() -> None:
    model = new_model()
    batch = cut_evenly(ragged_rows(1), 1)[0]
    nothing = torch.zeros(0, dtype=torch.long)
    empty = replace(batch, labels=torch.full_like(batch.labels, -100), supervised=nothing)
    before = weights_of(model)
    with pytest.raises(ValueError, match="step 1 has no supervised token; leave out rows"):
        list(train(model, [[empty, empty]], FP32))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    # One empty micro-batch beside a full one is nothing special.
    (result,) = train(model, [[empty, batch]], FP32)
    assert torch.isfinite(result.loss)


def test_ten_thousand_rows_of_any_length_and_mask_train_without_a_nan() -> None:
    """Rows of one token, rows with nothing trained, with everything trained, with one token."""
    generator = np.random.default_rng(0)
    rows = []
    for length in generator.geometric(0.15, 10_000).tolist():
        ids = generator.integers(0, 48, length).tolist()
        share = generator.choice([0.0, 0.1, 0.5, 1.0])
        rows.append(Example(ids, (generator.random(length) < share).tolist()))
    dataset = Dataset.from_examples(rows)
    trained = dataset.column("supervised")
    assert (dataset.column("length") == 1).sum() > 1_000
    assert (trained == 0).sum() > 3_000
    assert (trained == 1).sum() > 1_000
    steps = make_steps(dataset, tokens_per_step=2_000, tokens_per_batch=1_000)
    results = list(train(new_model(num_hidden_layers=1), steps, FP32))
    assert all(torch.isfinite(result.loss + result.grad_norm) for result in results)
    assert sum(result.supervised for result in results) == int(trained.sum())


# A run


def test_the_tail_is_divided_by_its_own_tokens_and_the_rate_ends_where_planned() -> None:
    """11 rows in steps of about 3, each step in micro-batches of about 2: nothing divides."""
    dataset = ragged_rows(11)
    per_step = int(dataset.column("input_length").sum() / 3.7)
    steps = make_steps(dataset, tokens_per_step=per_step, tokens_per_batch=50, epochs=2)
    config = replace(FP32, learning_rate=1e-12, warmup_ratio=0.3, min_lr_ratio=0.2)  # hardly moves
    model = new_model()
    results = list(train(model, steps, config))
    assert len(results) == len(steps) == 8
    assert len({result.supervised for result in results}) > 4
    assert len({len(batches) for batches in steps}) > 1
    for result in results:
        losses = [naive_loss(model, dataset[row]) for row in result.rows]
        count = sum(count for _, count in losses)
        assert result.supervised == count
        expected = float(sum(loss.detach() for loss, _ in losses)) / count
        assert result.loss.item() == pytest.approx(expected, rel=1e-6)
    assert sum(result.supervised for result in results) == 2 * int(
        dataset.column("supervised").sum()
    )
    assert sorted(row for result in results for row in result.rows) == sorted([*range(11)] * 2)
    rates = [result.learning_rate for result in results]
    assert max(rates) == rates[1] == config.learning_rate  # two of eight steps are the warm-up
    assert abs(rates[-1] / config.learning_rate - 0.2) < 1e-12
    assert [result.step for result in results] == list(range(1, 9))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_between_any_two_steps_the_state_is_whole_and_a_run_can_resume_elsewhere(precision) -> None:
    steps = make_steps(ragged_rows(8), tokens_per_step=60, tokens_per_batch=45, epochs=2)
    config = replace(FP32, precision=precision)
    model = new_model()
    state = TrainState(model, config)
    stops = []
    for result in train(model, steps, config, state=state):
        assert state.step == result.step
        assert all(parameter.grad is None for parameter in model.parameters())
        stops.append(copy.deepcopy((model.state_dict(), state.state_dict())))
    final = weights_of(model)
    assert len(stops) == len(steps) > 3
    for weights, plain in stops:
        model = new_model(seed=8)
        state = TrainState(model, config)
        model.load_state_dict(weights)
        state.load_state_dict(plain)
        assert len(list(train(model, steps, config, state=state))) == len(steps) - plain["step"]
        assert all(torch.equal(p, final[name]) for name, p in model.named_parameters())


def test_a_caller_may_evaluate_or_stop_between_two_steps() -> None:
    steps = make_steps(ragged_rows(8), tokens_per_step=60, epochs=2)
    undisturbed, disturbed = new_model(), new_model()
    for _ in train(undisturbed, steps, FP32):
        pass
    state = TrainState(disturbed, FP32)
    for stop in (2, 3, len(steps)):
        for _ in islice(train(disturbed, steps, FP32, state=state), stop - state.step):
            with torch.no_grad():
                disturbed(torch.zeros(1, 3, dtype=torch.long))
    assert all(map(torch.equal, undisturbed.parameters(), disturbed.parameters()))


def test_without_a_config_or_state_the_defaults_train() -> None:
    model = new_model()
    before = weights_of(model)
    results = list(train(model, make_steps(ragged_rows(4), tokens_per_step=40)))
    assert results[-1].learning_rate == pytest.approx(1e-5, rel=1e-12)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


OPTIMIZERS = {
    "SGD": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "fused SGD": lambda groups: torch.optim.SGD(groups, fused=True),
    "Adafactor": torch.optim.Adafactor,
    "RMSprop": torch.optim.RMSprop,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_trains_and_keeps_each_groups_own_rate(name) -> None:
    model = new_model()
    embedding, *others = model.parameters()
    groups = [{"params": [embedding], "lr": 0.02}, {"params": others, "lr": 0.005}]
    optimizer = OPTIMIZERS[name](groups)
    steps = make_steps(ragged_rows(8), tokens_per_step=60, epochs=4)
    config = replace(FP32, learning_rate=123.0)  # isn't used
    results = []
    before = weights_of(model)
    for result in train(model, steps, config, optimizer):
        results.append(result)
        first, second = (group["lr"] for group in optimizer.param_groups)
        assert (result.learning_rate, first) == (first, pytest.approx(4 * second, rel=1e-12))
    assert results[0].learning_rate == 0.02  # a single step of warm-up
    assert results[-1].learning_rate == pytest.approx(0.002, rel=1e-12)
    assert all(result.loss.isfinite() for result in results)
    assert not any(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_with_any_optimizer_a_step_that_is_not_finite_changes_nothing(name) -> None:
    model = new_model()
    optimizer = OPTIMIZERS[name]([{"params": list(model.parameters()), "lr": 0.01}])
    rows = ragged_rows(2)
    rows.weights = np.full(len(rows.input_ids), np.inf, np.float32)
    before = weights_of(model)
    (result,) = train(model, [[make_batch(rows, np.arange(2))]], FP32, optimizer)
    assert not result.loss.isfinite()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_fused_momentum_survives_a_first_step_that_is_not_finite() -> None:
    runs = []
    for fused in (True, False):
        model, rows = new_model(), ragged_rows(2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        rows.weights = np.full(len(rows.input_ids), np.inf, np.float32)
        bad, good = make_batch(rows, np.arange(2)), make_batch(ragged_rows(2), np.arange(2))
        list(train(model, [[bad], [good], [good]], FP32, optimizer))
        runs.append(weights_of(model))
    for name, weight in runs[0].items():
        assert torch.allclose(weight, runs[1][name], atol=1e-6), name


def test_a_groups_peak_may_come_later_and_the_configs_may_change() -> None:
    model, steps = new_model(), make_steps(ragged_rows(8), tokens_per_step=60, epochs=2)
    first, *others = model.parameters()
    optimizer = torch.optim.SGD([first], lr=0.1)
    flat = replace(FP32, min_lr_ratio=1.0, warmup_ratio=0.0)
    for result in train(model, steps, flat, optimizer):
        if result.step == 1:
            optimizer.add_param_group({"params": others, "lr": 0.02})
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.02]
    state = TrainState(model, flat)
    for config in (flat, replace(flat, learning_rate=5e-6)):
        state.step = 0
        assert next(train(model, steps, config, state=state)).learning_rate == config.learning_rate


def test_an_optimizer_of_some_weights_leaves_the_others_and_their_gradients_alone() -> None:
    model = new_model()
    head = list(model.model.norm.parameters())
    before = weights_of(model)
    steps = make_steps(ragged_rows(4), tokens_per_step=60)
    for _ in train(model, steps, FP32, torch.optim.SGD(head, lr=0.1)):
        assert all(parameter.grad is None for parameter in model.parameters())
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"model.norm.weight"}


def test_what_is_no_optimizer_or_one_too_many_is_refused_at_once() -> None:
    model, steps = new_model(), make_steps(ragged_rows(2), tokens_per_step=60)
    state = TrainState(model, FP32)
    with pytest.raises(TypeError, match="optimizer: is TrainState; give a torch"):
        train(model, steps, FP32, state)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="the state has one already; give optimizer or state"):
        train(model, steps, FP32, sgd, state)
    assert TrainState(model, FP32, sgd).optimizer is sgd
    others = torch.optim.SGD(new_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer: it holds none of the model's parameters"):
        train(model, steps, FP32, others)


def test_a_row_longer_than_the_context_is_refused() -> None:
    model = new_model(max_position_embeddings=8)
    rows = [Example([3] * 10, [False] + [True] * 9)]
    steps = make_steps(rows, tokens_per_step=20)
    message = r"a row has 9 tokens and the model's context is 8; .*max_length=8"
    with pytest.raises(ValueError, match=message):
        train(model, steps, FP32)  # before the first step
    with pytest.raises(ValueError, match=message):
        next(train(model, [steps[0]], FP32))


def test_what_is_no_config_is_refused() -> None:
    steps = make_steps(ragged_rows(2), tokens_per_step=60)
    with pytest.raises(TypeError, match=r"config: is 0\.0002; give a TrainConfig"):
        train(new_model(), steps, 2e-4)


def test_a_result_is_plain_numbers_for_a_log() -> None:
    steps = make_steps(ragged_rows(2), tokens_per_step=1000)
    (result,) = train(new_model(), steps, FP32)
    numbers = result.as_dict()
    assert json.loads(json.dumps(numbers)) == numbers | {"rows": list(result.rows)}
    assert numbers["loss"] == result.loss.item()
    assert numbers["step"] == 1


def test_no_steps_are_no_training() -> None:
    assert list(train(new_model(), [], FP32)) == []


# Precision


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_every_precision_learns_with_float32_weights_and_moments(precision) -> None:
    model = new_model()
    config = TrainConfig(precision=precision, learning_rate=1e-2)
    state = TrainState(model, config)
    steps = make_steps(ragged_rows(6), tokens_per_step=10**6, epochs=30)
    losses = [result.loss.item() for result in train(model, steps, config, state=state)]
    assert losses[-1] < 0.5 * losses[0]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    moments = [x for entry in state.optimizer.state.values() for x in entry.values()]
    assert {moment.dtype for moment in moments} == {torch.float32}
    assert state.scaler.is_enabled() is (precision == "fp16")


def test_half_precision_is_really_computed_in() -> None:
    (batch,) = cut_evenly(ragged_rows(4), 1)
    losses = {p: batch_loss(new_model(), batch, FP32, p).item() for p in ("fp32", "bf16", "fp16")}
    assert len(set(losses.values())) == 3
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=1e-2)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_are_clipped_by_their_own_size_not_by_the_scaled_one(precision) -> None:
    batches = cut_evenly(ragged_rows(4), 2)
    config = replace(FP32, max_grad_norm=1e9)
    (exact,) = train(new_model(), [batches], config)
    (half,) = train(new_model(), [batches], replace(config, precision=precision))
    assert half.grad_norm.item() == pytest.approx(exact.grad_norm.item(), rel=0.02)


def test_small_steps_are_not_lost_in_half_precision() -> None:
    """At a rate of 1e-6, bfloat16 weights would stand still; ours move wherever float32's do."""
    steps = [cut_evenly(ragged_rows(2), 1)] * 100
    moved = {}
    for precision in ("fp32", "bf16", "fp16"):
        model = new_model(num_hidden_layers=1)
        before = weights_of(model)
        for _ in train(model, steps, TrainConfig(precision=precision, learning_rate=1e-6)):
            pass
        moved[precision] = torch.cat(
            [(p != before[name]).flatten() for name, p in model.named_parameters()]
        )
    assert moved["fp32"].float().mean() > 0.99
    for precision in ("bf16", "fp16"):
        assert moved[precision][moved["fp32"]].float().mean() >= 0.99
    half = before["model.norm.weight"].bfloat16()
    assert torch.equal(half + 1e-6, half)


def test_a_step_that_overflows_fp16_is_skipped_and_the_next_one_trains() -> None:
    model, config = new_model(), TrainConfig(precision="fp16")
    state, batches = TrainState(model, config), cut_evenly(ragged_rows(4), 1)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # far too large
    before = weights_of(model)
    result = train_step(model, batches, config, state, 1.0)
    assert torch.isfinite(result.loss)
    assert not torch.isfinite(result.grad_norm)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    for _ in range(20):  # the scale is halved each time
        train_step(model, batches, config, state, 1.0)
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_weights_must_be_float32(dtype) -> None:
    model = new_model().to(dtype)
    with pytest.raises(ValueError, match=f"weights are {dtype}; load it with dtype=torch.float32"):
        next(train(model, [], FP32))


# Options


def test_activation_checkpointing_changes_nothing_to_the_last_bit() -> None:
    steps = make_steps(ragged_rows(6), tokens_per_step=80, tokens_per_batch=45, epochs=2)
    plain, frugal = new_model(), new_model()
    results = [
        list(train(model, steps, replace(FP32, activation_checkpointing=on)))
        for model, on in ((plain, False), (frugal, True))
    ]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one.loss, other.loss)
        assert torch.equal(one.grad_norm, other.grad_norm)
    assert all(map(torch.equal, plain.parameters(), frugal.parameters()))


def test_activation_checkpointing_keeps_fewer_tensors() -> None:
    (batch,) = cut_evenly(ragged_rows(6), 1)

    def kept(config: TrainConfig) -> int:
        sizes: list[int] = []

        def note(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            batch_loss(new_model(), batch, config, "fp32")
        return sum(sizes)

    assert kept(replace(FP32, activation_checkpointing=True)) < kept(FP32) / 2


@pytest.mark.parametrize(
    ("field", "bad", "remedy"),
    [
        ("learning_rate", 0.0, "a positive number"),
        ("learning_rate", float("nan"), "a positive number"),
        ("learning_rate", float("inf"), "a positive number"),
        ("betas", (0.9,), "two numbers from 0 to below 1"),
        ("betas", (0.9, 1.0), "two numbers from 0 to below 1"),
        ("betas", (-0.1, 0.9), "two numbers from 0 to below 1"),
        ("weight_decay", -0.1, "0 or a positive number"),
        ("max_grad_norm", 0.0, "a positive number"),
        ("warmup_ratio", 1.5, "a share of the steps, 0 to 1"),
        ("min_lr_ratio", -0.1, "a share of the peak, 0 to 1"),
        ("precision", "fp8", "auto, fp32, bf16 or fp16"),
    ],
)
def test_options_out_of_range_are_refused_by_name_with_a_remedy(field, bad, remedy) -> None:
    with pytest.raises(ValueError, match=f"^{field} is {re.escape(str(bad))}; use {remedy}"):
        TrainConfig(**{field: bad})


# What it is for


def greedy(model: Transformer, prompt: list[int], end: int, limit: int) -> list[int]:
    """The slow twin of generating: all logits, again and again."""
    ids = list(prompt)
    while len(ids) < len(prompt) + limit and ids[-1] != end:
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_after_overfitting_32_rows_all_32_answers_are_given_and_end() -> None:
    end, generator = 2, torch.Generator().manual_seed(4)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=generator))
        return torch.randint(3, 48, (length,), generator=generator).tolist()

    rows = [([index + 3, *draw(2, 6), 1], [*draw(1, 7), end]) for index in range(32)]
    examples = [
        Example(prompt + answer, [False] * len(prompt) + [True] * len(answer))
        for prompt, answer in rows
    ]
    model = new_model(hidden_size=48, intermediate_size=96)
    steps = make_steps(examples, tokens_per_step=10**6, epochs=80)
    results = list(train(model, steps, TrainConfig(precision="fp32", learning_rate=2e-2)))
    assert results[-1].loss.item() < 0.02
    answers = [greedy(model, prompt, end, limit=12) for prompt, _ in rows]
    assert answers == [answer for _, answer in rows]
