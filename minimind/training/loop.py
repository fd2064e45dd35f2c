"""Train a model on steps of batches.

`train()` yields after each optimizer step; logging, evaluating, saving and stopping are the
caller's, between two steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minimind.data.packing import Batch, Step
from minimind.data.padding import shape_of_run
from minimind.data.plan import Steps
from minimind.model.transformer import Transformer
from minimind.training import distributed
from minimind.training.compile_trial import CompileTrial
from minimind.training.graphs import StepGraphs, why_not_captured
from minimind.training.optim import schedule_at
from minimind.training.state import TrainConfig, TrainState
from minimind.training.step import forward_backward, to_device, update


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one optimizer step did.

    Attributes:
        step: from 1.
        loss: nats, summed with the messages' weights and divided by the number of supervised
            tokens; a scalar on the device.
        grad_norm: before clipping; a scalar on the device.
        learning_rate: of this step; of the optimizer's first group, where there are several.
        tokens: inputs of the step, after the cut at each row's last trained token.
        supervised: tokens in the loss.
        rows: indices of the step's examples.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    tokens: int
    supervised: int
    rows: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """The same as plain numbers, for a log; waits until the step is done on the device."""
        return asdict(self) | {"loss": float(self.loss), "grad_norm": float(self.grad_norm)}


def train(
    model: Transformer,
    steps: Sequence[list[Batch]],
    config: TrainConfig | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    state: TrainState | None = None,
) -> Iterator[StepResult]:
    """Train `model` in place, one optimizer step per item.

    In bf16 and fp16 a step computes with half-precision copies of the layers; where the model has
    modules or hooks of a caller's own, under autocast instead. On CUDA the step is captured as
    graphs where it can be, of one size, for which the first thousand items of `steps` are looked
    at; `state.notes` says how a run computes.

    Args:
        model: float32 weights, on the device to train on.
        steps: lists of micro-batches; its length is the schedule's.
        config: how; default `TrainConfig()`.
        optimizer: any PyTorch optimizer over the model's parameters; default AdamW. Each of its
            groups keeps its own learning rate as its peak, in `initial_lr`, and has its `lr`
            changed at each step: `config.learning_rate`, `betas` and `weight_decay` aren't used.
        state: where to continue; default the beginning. It has an optimizer of its own.

    Yields:
        One StepResult after each optimizer step. Between two of them the state can be saved.

    Raises:
        ValueError: the weights aren't float32, a step has no supervised token, a row is longer than
            the model's context, or both `optimizer` and `state` are given.
        TypeError: `optimizer` isn't an optimizer.
    """
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"optimizer: is {type(optimizer).__name__}; give a torch.optim.Optimizer "
            "(a TrainState goes to state=)"
        )
    if optimizer is not None and state is not None:
        raise ValueError("optimizer: the state has one already; give optimizer or state, not both")
    if optimizer is not None:
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(map(id, model.parameters())):
            raise ValueError(
                "optimizer: it holds none of the model's parameters; make it from "
                "model.parameters(), after the model is on its device"
            )
    config = TrainConfig() if config is None else config
    if not isinstance(config, TrainConfig):
        raise TypeError(f"config: is {config!r}; give a TrainConfig(learning_rate=..., ...)")
    if isinstance(steps, Steps):  # other sequences are checked step by step
        _check_length(int(steps.lengths.max()), model)
    return _train(model, steps, config, state or TrainState(model, config, optimizer))


def _train(
    model: Transformer, steps: Sequence[list[Batch]], config: TrainConfig, state: TrainState
) -> Iterator[StepResult]:
    if state.step >= len(steps):
        return
    if state.device.type == "cuda" or config.compile == "on":
        state.shape = shape_of_run(steps)
    on_cpu_by_itself = config.compile == "auto" and state.device.type == "cpu"
    if (config.compile == "off" or on_cpu_by_itself) and state.compiled:
        state.compile(False)
    if config.compile == "on" and not state.compiled:
        state.compile()
    trial = CompileTrial(config, state, len(steps))
    warmup_steps = min(round(config.warmup_ratio * len(steps)), len(steps) - 1)
    model.train()
    while state.step < len(steps):
        state.keep_peaks(config)  # again: a caller may add groups between two steps
        factor = schedule_at(state.step, len(steps), warmup_steps, config.min_lr_ratio)
        step = steps[state.step]
        yield trial.run(partial(train_step, model, step, config, state, factor))


def train_step(
    model: Transformer, batches: list[Batch], config: TrainConfig, state: TrainState, factor: float
) -> StepResult:
    """One optimizer step over this rank's micro-batches, at `factor` of the peak learning rate.

    The loss is divided once by all the step's supervised tokens. Where it or a gradient isn't
    finite, weights and moments stay what they were. With the default optimizer
    nothing here waits for the device.
    """
    step = Step.of(batches)
    if not step.supervised:
        raise ValueError(
            f"step {state.step + 1} has no supervised token; leave out rows without one"
        )
    _check_length(max(batch.documents.max_seqlen for batch in step), model)
    state.working.refresh()
    groups = state.optimizer.param_groups
    for group in groups:
        group["lr"] = group["initial_lr"] * factor
    if graphs := _graphs(step, config, state):
        total, norm = graphs.run(step, [group["lr"] for group in groups])
    else:
        total, norm = _eager_step(step, config, state)
    state.step += 1
    rate = float(groups[0]["lr"])
    return StepResult(state.step, total, norm, rate, step.tokens, step.supervised, step.rows)


def _eager_step(step: Step, config: TrainConfig, state: TrainState) -> tuple[Tensor, Tensor]:
    """The step's loss and the gradients' norm; the slow twin of `StepGraphs.run`."""
    total = torch.zeros((), device=state.device)
    state.model.zero_grad()  # a step that was interrupted may have left some
    for number, batch in enumerate(step, 1):
        distributed.announce_backward(state.model, last=number == len(step))
        fits = state.shape is None or state.shape.holds(batch)
        state.eager_batches += not fits
        with nullcontext() if fits else torch.compiler.set_stance("force_eager"):
            forward_backward(to_device(batch, state), step.supervised, total, config, state)
    total = distributed.all_reduce_sum(total)
    norm = update(total, config, state)
    state.model.zero_grad()
    return total, norm


def _graphs(step: Step, config: TrainConfig, state: TrainState) -> StepGraphs | None:
    """The state's graphs, captured at its first step; None where they can't be."""
    if state.graphs is not None and state.graphs.serves(config):
        return state.graphs
    if state.shape is None or not state.may_capture:
        return None
    reason = why_not_captured(config, state)
    first = next(filter(state.shape.holds, step), None)
    if reason is None and first is None:
        return None  # a later step may have one that fits
    if reason is None:
        assert first is not None
        on_cuda = state.device.type == "cuda"
        try:
            with torch.cuda.device(state.device) if on_cuda else nullcontext():
                state.graphs = StepGraphs(config, state, first)
            return state.graphs
        except RuntimeError as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            state.model.zero_grad()
        if config.compile == "auto" and state.compiled:  # without what was compiled it could be
            state.compile(False)
            state.notes.append(f"compiled pieces dropped: {reason}")
            return _graphs(step, config, state)
    state.may_capture = False
    state.notes.append(f"without CUDA graphs: {reason}")
    return None


def _check_length(longest: int, model: Transformer) -> None:
    context = model.config.max_position_embeddings
    if longest > context:
        raise ValueError(
            f"a row has {longest:,} tokens and the model's context is {context:,}; "
            f"use encode_conversation(..., max_length={context})"
        )
