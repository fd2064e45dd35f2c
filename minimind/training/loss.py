"""Cross-entropy of supervised positions, a few rows of logits at a time.

Full logits would be (tokens, vocabulary): gigabytes for a large vocabulary. Here a chunk of rows
is scored, its loss and its gradients are taken at once, and its logits are thrown away.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# Shape letters: S supervised positions, C hidden size, V vocabulary.

CHUNK_BYTES = 128 * 2**20  # of float32 logits alive at once; measured in benchmarks/RESULTS.md
CUDA_SHARE = 128  # on CUDA as many bytes as this part of its memory, if that is more
FP16_SCALE = 16.0


def summed_cross_entropy(
    states: Tensor,
    weight: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    cast: Tensor | None = None,
) -> Tensor:
    """Sum of -log p(label) over supervised positions, without full logits.

    Args:
        states: (S, C) what the head reads.
        weight: (V, C) the head; it may be the tied embedding.
        labels: (S,) int64, each a real id: ignored positions were left out before.
        weights: (S,) float32 factor per position, or None for 1.
        cast: (V, C) the head in the type that products have, if it is at hand.

    Returns:
        A scalar, float32 (float64 where the inputs are); differentiable in states and weight.
    """
    if torch.is_grad_enabled() and (states.requires_grad or weight.requires_grad):
        loss: Tensor = _SummedCrossEntropy.apply(states, weight, labels, weights, cast)  # type: ignore[no-untyped-call]
        return loss
    losses, _ = token_scores(states, weight, labels)
    return (losses if weights is None else losses * weights).sum()


def token_scores(states: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(S,) float32 -log p(label), and (S,) bool whether the label is likeliest; no gradient."""
    exact = torch.promote_types(states.dtype, torch.float32)  # float64 stays
    losses = states.new_zeros(len(labels), dtype=exact)
    likeliest = torch.zeros_like(labels, dtype=torch.bool)
    with torch.no_grad():
        for rows in _chunks(len(labels), weight):
            logits = F.linear(states[rows], weight).to(exact)
            losses[rows] = F.cross_entropy(logits, labels[rows], reduction="none")
            likeliest[rows] = logits.argmax(-1) == labels[rows]
    return losses, likeliest


def _chunks(rows: int, weight: Tensor) -> list[slice]:
    size = max(1, _chunk_bytes(weight.device) // (4 * len(weight)))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _chunk_bytes(device: torch.device) -> int:
    """By the device's size, not by what is free: the same card always rounds alike."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return CHUNK_BYTES
    return max(CHUNK_BYTES, torch.cuda.get_device_properties(device).total_memory // CUDA_SHARE)


class _SummedCrossEntropy(torch.autograd.Function):
    """Take the gradients in the forward pass, chunk by chunk; the backward pass only scales them.

    d loss / d logits = softmax(logits) - onehot(label), times the position's weight.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        cast: Tensor | None,
    ) -> Tensor:
        # Autocast is off inside a Function: products run in its type, sums stay float32.
        device = states.device.type
        half = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if half else states.dtype
        with torch.autocast(device, enabled=False):
            rows, head = states.to(dtype), (weight if cast is None else cast).to(dtype)
            exact = torch.promote_types(dtype, torch.float32)  # float64 stays
            d_states = torch.empty_like(rows)
            d_weight = None  # of a frozen head
            if ctx.needs_input_grad[1]:
                d_weight = torch.zeros_like(weight, dtype=exact)
            loss = states.new_zeros((), dtype=exact)
            for chunk in _chunks(len(labels), weight):
                logits = (rows[chunk] @ head.t()).to(exact)
                target = labels[chunk, None]
                factor = None if weights is None else weights[chunk, None]
                # In place, three passes over the logits: exp(logits - top), its sum, the scaling.
                top = logits.amax(-1, keepdim=True)
                target_logit = logits.gather(1, target) - top
                total = logits.sub_(top).exp_().sum(-1, keepdim=True)
                losses = total.log() - target_logit
                loss += (losses if factor is None else losses * factor).sum()
                scale = total.reciprocal() if factor is None else factor / total
                d_logits = logits.mul_(scale)
                one = torch.ones_like(scale) if factor is None else factor
                d_logits.scatter_add_(1, target, -one.to(exact))
                d_logits = d_logits.to(dtype)
                torch.mm(d_logits, head, out=d_states[chunk])
                if d_weight is None:
                    continue
                if dtype == exact:
                    d_weight.addmm_(d_logits.t(), rows[chunk])
                elif dtype != torch.float16:
                    d_weight += d_logits.t() @ rows[chunk]
                else:  # a frequent label's sum could overflow float16
                    d_weight.add_(d_logits.t() @ (rows[chunk] / FP16_SCALE), alpha=FP16_SCALE)
        if d_weight is not None:
            d_weight = d_weight.to(weight.dtype)
        ctx.save_for_backward(d_states.to(states.dtype), d_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        d_states, d_weight = ctx.saved_tensors
        # Multiplied into new tensors: a second backward over a kept graph must find them unchanged.
        d_states = d_states * grad.to(d_states.dtype)
        return d_states, None if d_weight is None else d_weight * grad, None, None, None
