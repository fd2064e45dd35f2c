"""What an optimizer step does: forward and backward of a micro-batch, and the update.

Nothing here waits for the device or makes a size depend on its values: on CUDA these functions run
eagerly or are captured, as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minimind.data.packing import Batch
from minimind.data.padding import pad, view_batch
from minimind.model.transformer import Transformer
from minimind.training.loss import summed_cross_entropy
from minimind.training.optim import clip_gradients, step_if_finite
from minimind.training.precision import Precision, autocast
from minimind.training.state import TrainConfig, TrainState


def forward_backward(
    batch: Batch, supervised: Tensor | int, total: Tensor, config: TrainConfig, state: TrainState
) -> None:
    """Add a micro-batch's gradients, and its loss to `total`: both divided by `supervised`.

    Args:
        batch: on the device.
        supervised: tokens in the complete step's loss.
        total: float32 scalar on the device.
    """
    loss = batch_loss(state.working.model, batch, config, state.autocast) / supervised
    state.scaler.scale(loss).backward()
    total += loss.detach()


def update(total: Tensor, config: TrainConfig, state: TrainState) -> Tensor:
    """Clip the gradients and step the optimizer; returns their norm before clipping, a scalar.

    Where `total`, the step's loss, or a gradient isn't finite, weights and moments stay.
    """
    state.scaler.unscale_(state.optimizer)
    groups = state.optimizer.param_groups
    norm = clip_gradients([p for group in groups for p in group["params"]], config.max_grad_norm)
    step_if_finite(torch.isfinite(total + norm), state.optimizer)
    state.scaler.update()
    return norm


def batch_loss(
    model: Transformer, batch: Batch, config: TrainConfig, precision: Precision
) -> Tensor:
    """The loss summed over a batch's supervised tokens."""
    with autocast(precision, model.device):
        states, labels = supervised_states(model, batch, config.activation_checkpointing)
        return summed_cross_entropy(
            states, model.head_weight, labels, batch.weights, model.half_head
        )


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


def to_device(batch: Batch, state: TrainState) -> Batch:
    """The batch on the state's device, padded as the state asks; on CUDA without waiting."""
    shape = state.fixed_shape(batch)
    if shape is None:
        return batch.to(state.device)
    on_cuda = state.device.type == "cuda"
    buffer, padded = pad(batch, shape, pin_memory=on_cuda)
    if not on_cuda:
        return padded
    buffer = buffer.to(state.device, non_blocking=True)
    return view_batch(buffer, shape, padded.documents.lengths, batch.rows)
