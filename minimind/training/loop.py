"""Train a model on steps of batches. Knows no files, no text and no progress bars.

`train()` yields after each optimizer step; logging, evaluating, saving and stopping are the
caller's, between two steps.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from minimind.data.packing import Batch, StepTotals
from minimind.model.attention import Documents, Tails
from minimind.model.transformer import Transformer
from minimind.training import distributed
from minimind.training.compiling import Compiling, choose_compiling
from minimind.training.loss import summed_cross_entropy
from minimind.training.optim import clip_gradients, learning_rate_at, make_optimizer, step_if_finite
from minimind.training.precision import Precision, autocast, resolve_precision
from minimind.training.prefetch import prefetch


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train. The defaults are the guide's.

    Attributes:
        learning_rate: the peak; for the embedded base, minimind.sft takes 2e-4 if none is given.
        betas: AdamW's decay rates of the moments.
        weight_decay: on matrices only.
        max_grad_norm: gradients are clipped to this joint L2 norm.
        warmup_ratio: share of the steps over which the learning rate rises.
        min_lr_ratio: the last step's learning rate as a share of the peak.
        precision: of the matrix products; weights and moments stay float32.
        compile: compile the parts that work token by token, if a trial is faster for it.
        activation_checkpointing: compute layers again in the backward pass, to save memory.
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
        checks = {
            "learning_rate": (0 < self.learning_rate < math.inf, "a positive number"),
            "betas": (
                len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
                "two numbers from 0 to below 1",
            ),
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
    """What one optimizer step did. `loss` and `grad_norm` stay on the device until they are read.

    Attributes:
        step: from 1.
        loss: mean over the step's supervised tokens.
        grad_norm: before clipping.
        learning_rate: of this step.
        tokens: read by the model.
        supervised: predicted in the loss.
        rows: indices of the step's examples.
    """

    step: int
    loss: Tensor
    grad_norm: Tensor
    learning_rate: float
    tokens: int
    supervised: int
    rows: tuple[int, ...]


class TrainState:
    """What, besides the weights, a run is made of between two steps."""

    def __init__(self, model: Transformer, config: TrainConfig) -> None:
        wrong = {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}
        if wrong:
            raise ValueError(
                f"the model's weights are {', '.join(sorted(wrong))}; load it with "
                "dtype=torch.float32 (precision='bf16' computes in bfloat16 all the same)"
            )
        self.step = 0
        self.compiling: Compiling | None = None  # decided before the first step
        self.precision = resolve_precision(config.precision, model.device)
        self.optimizer = make_optimizer(
            model, config.learning_rate, config.betas, config.weight_decay
        )
        self.device = model.device
        self.scaler = self._make_scaler()

    def _make_scaler(self) -> torch.amp.GradScaler:
        """Small fp16 gradients vanish: the loss is scaled up, and overflowing steps are skipped."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and numbers."""
        return {
            "step": self.step,
            "precision": self.precision,
            "compiling": None if self.compiling is None else asdict(self.compiling),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.step = state["step"]
        if (decided := state.get("compiling")) is not None:
            self.compiling = Compiling(**decided)
        self.optimizer.load_state_dict(state["optimizer"])
        self.compute_in(state["precision"])
        self.scaler.load_state_dict(state["scaler"])

    def compute_in(self, precision: Precision) -> None:
        """Go on in a precision that may be another one than before."""
        self.precision = precision
        self.scaler = self._make_scaler()


def train(
    model: Transformer,
    steps: Sequence[list[Batch]],
    config: TrainConfig | None = None,
    state: TrainState | None = None,
) -> Iterator[StepResult]:
    """Train `model` in place, one optimizer step per item.

    Args:
        model: float32 weights, on the device to train on.
        steps: lists of micro-batches; its length is the schedule's.
        config: how; default `TrainConfig()`.
        state: where to go on; default the beginning.

    Yields:
        One StepResult after each optimizer step. Between two of them the state is whole.

    Raises:
        ValueError: the weights aren't float32, or a step has no supervised token.
    """
    config = config or TrainConfig()
    state = state or TrainState(model, config)
    _compile(model, steps, config, state)
    warmup_steps = min(round(config.warmup_ratio * len(steps)), len(steps) - 1)
    model.train()
    while state.step < len(steps):
        rate = learning_rate_at(
            state.step, len(steps), config.learning_rate, warmup_steps, config.min_lr_ratio
        )
        yield train_step(model, steps[state.step], config, state, rate)


def _compile(
    model: Transformer, steps: Sequence[list[Batch]], config: TrainConfig, state: TrainState
) -> None:
    """Decide on compiling, or do what a run that goes on decided before."""
    if not config.compile or state.step >= len(steps):
        state.compiling = state.compiling or Compiling()
        return
    with autocast(state.precision, model.device):
        if state.compiling is None:
            largest = max(len(batch) for batch in steps[state.step])
            with distributed.unsharded(model.model.layers[0]):
                mine = choose_compiling(model, largest)
            state.compiling = distributed.broadcast(mine)
            if not state.compiling.compiled:
                model.use_eager()
                warnings.warn(f"not compiled: {state.compiling.reason}", stacklevel=2)
        elif state.compiling.compiled:
            with distributed.unsharded(model.model.layers[0]):
                model.compile_tokenwise()


def train_step(
    model: Transformer, batches: list[Batch], config: TrainConfig, state: TrainState, rate: float
) -> StepResult:
    """One optimizer step over its micro-batches, divided once by all their supervised tokens.

    Where the loss or a gradient isn't finite, weights and moments stay what they were. Nothing
    here waits for the device: the caller reads what came of it.
    """
    step = StepTotals.of(batches)
    if not step.supervised:
        raise ValueError(
            f"step {state.step + 1} has no supervised token; leave out rows without one"
        )
    total = torch.zeros((), device=model.device)
    for number, batch in enumerate(prefetch(batches, model.device), 1):
        distributed.announce_backward(model, last=number == len(batches))
        loss = batch_loss(model, batch, config, state.precision) / step.supervised
        state.scaler.scale(loss).backward()
        total += loss.detach()
    total = distributed.all_reduce_sum(total)

    state.scaler.unscale_(state.optimizer)
    norm = clip_gradients(model.parameters(), config.max_grad_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    if state.scaler.is_enabled():  # it has seen every gradient itself
        state.scaler.step(state.optimizer)
        state.scaler.update()
    else:
        step_if_finite(torch.isfinite(total + norm), state.optimizer)
    state.optimizer.zero_grad()
    state.step += 1
    return StepResult(state.step, total, norm, rate, step.tokens, step.supervised, step.rows)


def batch_loss(
    model: Transformer, batch: Batch, config: TrainConfig, precision: Precision
) -> Tensor:
    """The loss summed over a batch's supervised tokens."""
    batch = batch.to(model.device)

    def compute(model: Transformer) -> Tensor:
        states, labels = supervised_states(model, batch, config.activation_checkpointing)
        return summed_cross_entropy(states, model.head_weight, labels, batch.weights)

    with autocast(precision, model.device):
        loss: Tensor = model(compute)
    return loss


def supervised_states(
    model: Transformer, batch: Batch, activation_checkpointing: bool = False
) -> tuple[Tensor, Tensor]:
    """What the head reads at a batch's supervised positions, (S, C), and the labels there, (S,)."""
    tails = Tails(batch.tails, batch.tail_lengths, batch.tail_cu_seqlens, batch.supervised_in_tails)
    documents = Documents(batch.lengths, batch.cu_seqlens, batch.max_seqlen, tails)
    states = model.hidden_states(
        batch.input_ids, batch.positions, documents, activation_checkpointing
    )
    return states, batch.labels.index_select(0, batch.supervised)
