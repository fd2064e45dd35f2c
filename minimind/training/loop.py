"""Train a model on steps of batches.

`train()` yields after each optimizer step; logging, evaluating, saving and stopping are the
caller's, between two steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from minimind.data.packing import Batch, Step
from minimind.data.plan import Steps
from minimind.model.transformer import Transformer
from minimind.training import distributed
from minimind.training.loss import summed_cross_entropy
from minimind.training.optim import clip_gradients, make_optimizer, schedule_at, step_if_finite
from minimind.training.precision import Precision, autocast, resolve_precision
from minimind.training.prefetch import prefetch


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train. README.md says where each default comes from.

    Attributes:
        learning_rate: the peak; for the embedded base, minimind.sft takes 2e-4 if none is given.
        betas: AdamW's decay rates of the moments.
        weight_decay: on matrices only.
        max_grad_norm: gradients are clipped to this joint L2 norm.
        warmup_ratio: share of the steps over which the learning rate rises.
        min_lr_ratio: the last step's learning rate as a share of the peak.
        precision: of the matrix products; weights and moments stay float32.
        compile: compile each layer's q/k/v projections and MLP with torch.compile, at first use.
        activation_checkpointing: compute layers again in the backward pass, to save memory.

    Raises:
        ValueError: a value is out of its range.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.1
    precision: Precision = "auto"
    compile: bool = False
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        are_shares = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        checks = {
            "learning_rate": (0 < self.learning_rate < math.inf, "a positive number"),
            "betas": (are_shares, "two numbers from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
            "max_grad_norm": (self.max_grad_norm > 0, "a positive number, inf for no clipping"),
            "warmup_ratio": (0 <= self.warmup_ratio <= 1, "a share of the steps, 0 to 1"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "a share of the peak, 0 to 1"),
            "precision": (self.precision in get_args(Precision), "auto, fp32, bf16 or fp16"),
        }
        for name, (ok, remedy) in checks.items():
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}; use {remedy}")


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


class TrainState:
    """Everything besides the weights that a run consists of between two steps.

        torch.save((model.state_dict(), state.state_dict()), "run.pt")
        weights, saved = torch.load("run.pt")  # in another process; then:
        model.load_state_dict(weights)
        state.load_state_dict(saved)  # train(..., state=state) continues

    Args:
        model: its weights are float32.
        config: how to train.
        optimizer: default: AdamW as `config` says.

    Attributes:
        step: optimizer steps done.
        optimizer: its moments are part of the state.
        has_own_rates: its groups keep their own peaks; else the peak is the config's.
        scaler: scales the loss in fp16; does nothing in other precisions.
        precision: of the matrix products; what "auto" was resolved to.
        device: where the model is.

    Raises:
        ValueError: the weights aren't float32.
    """

    def __init__(
        self,
        model: Transformer,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if wrong := {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}:
            raise ValueError(
                f"the model's weights are {', '.join(sorted(wrong))}; load it with "
                "dtype=torch.float32 (precision='bf16' computes in bfloat16 all the same)"
            )
        self.step = 0
        self.device = model.device
        self.has_own_rates = optimizer is not None
        self.optimizer = optimizer or make_optimizer(
            model, config.learning_rate, config.betas, config.weight_decay
        )
        if not isinstance(self.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            # Fused SGD's momentum starts from garbage after a first step that it skipped itself.
            self.optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        self.keep_peaks(config)
        self.set_precision(resolve_precision(config.precision, model.device))

    def keep_peaks(self, config: TrainConfig) -> None:
        """Note each group's peak learning rate as `initial_lr`, as PyTorch's schedulers do."""
        for group in self.optimizer.param_groups:
            if not self.has_own_rates:
                group["initial_lr"] = config.learning_rate
            group.setdefault("initial_lr", float(group["lr"]))

    def set_precision(self, precision: Precision) -> None:
        """Continue in a precision that may differ from the one before."""
        self.precision = precision
        # Small fp16 gradients vanish: the loss is scaled up, and overflowing steps are skipped.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "step": self.step,
            "precision": self.precision,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; if it has no "optimizer", ours is kept."""
        self.step = state["step"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.set_precision(state["precision"])
        self.scaler.load_state_dict(state["scaler"])


def train(
    model: Transformer,
    steps: Sequence[list[Batch]],
    config: TrainConfig | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    state: TrainState | None = None,
) -> Iterator[StepResult]:
    """Train `model` in place, one optimizer step per item.

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
    if config.compile:
        model.compile_training()
    warmup_steps = min(round(config.warmup_ratio * len(steps)), len(steps) - 1)
    model.train()
    while state.step < len(steps):
        state.keep_peaks(config)  # again: a caller may add groups between two steps
        factor = schedule_at(state.step, len(steps), warmup_steps, config.min_lr_ratio)
        yield train_step(model, steps[state.step], config, state, factor)


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
    total = torch.zeros((), device=model.device)
    for number, batch in enumerate(prefetch(step, model.device), 1):
        distributed.announce_backward(model, last=number == len(step))
        loss = batch_loss(model, batch, config, state.precision) / step.supervised
        state.scaler.scale(loss).backward()
        total += loss.detach()
    total = distributed.all_reduce_sum(total)

    state.scaler.unscale_(state.optimizer)
    groups = state.optimizer.param_groups
    norm = clip_gradients([p for group in groups for p in group["params"]], config.max_grad_norm)
    for group in groups:
        group["lr"] = group["initial_lr"] * factor
    if state.scaler.is_enabled():  # it has seen every gradient itself
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        step_if_finite(torch.isfinite(total + norm), state.optimizer)
    model.zero_grad()
    state.step += 1
    rate = float(groups[0]["lr"])
    return StepResult(state.step, total, norm, rate, step.tokens, step.supervised, step.rows)


def batch_loss(
    model: Transformer, batch: Batch, config: TrainConfig, precision: Precision
) -> Tensor:
    """The loss summed over a batch's supervised tokens."""
    with autocast(precision, model.device):
        states, labels = supervised_states(model, batch, config.activation_checkpointing)
        return summed_cross_entropy(states, model.head_weight, labels, batch.weights)


def supervised_states(
    model: Transformer, batch: Batch, activation_checkpointing: bool = False
) -> tuple[Tensor, Tensor]:
    """What the head reads at a batch's supervised positions, (S, C), and the labels there, (S,)."""
    states = model.hidden_states(
        batch.input_ids,
        batch.positions,
        batch.documents,
        keep=batch.supervised,
        activation_checkpointing=activation_checkpointing,
    )
    return states, batch.labels.index_select(0, batch.supervised)


def _check_length(longest: int, model: Transformer) -> None:
    context = model.config.max_position_embeddings
    if longest > context:
        raise ValueError(
            f"a row has {longest:,} tokens and the model's context is {context:,}; "
            f"use encode_conversation(..., max_length={context})"
        )
