"""AdamW's parameter groups, the cosine schedule, gradient clipping. Knows no batches."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from minimind.training.distributed import full_tensor


def make_optimizer(
    model: nn.Module, learning_rate: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """PyTorch's fused AdamW; weight decay acts on matrices only, not on norms and biases.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True
    )


def step_if_finite(ok: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of a fused optimizer where `ok`, else none; decided on the device.

    The host needn't wait to know: the fused kernel takes the flag that GradScaler hands it.

    Args:
        ok: a bool scalar on the weights' device.
        optimizer: fused; where not `ok`, its weights and moments stay what they were.
    """
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def learning_rate_at(
    step: int, steps: int, peak: float, warmup_steps: int, min_lr_ratio: float
) -> float:
    """The learning rate of one optimizer step: a straight line up, then half a cosine down.

        peak   |   /`-.
               |  /    `.
        floor  | /       `-._
               +--------------  step 0 ... steps - 1

    The first step of the warm-up already moves (peak / warmup_steps); the last step of the run
    gets exactly peak * min_lr_ratio.

    Args:
        step: from 0.
        steps: in the whole run.
        peak: the largest learning rate.
        warmup_steps: steps of the straight line; the first step after it is at the peak.
        min_lr_ratio: the last step's learning rate as a share of the peak.

    Source: the cosine of Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    falling = steps - 1 - warmup_steps
    progress = min(1.0, (step - warmup_steps) / falling) if falling > 0 else 1.0
    floor = peak * min_lr_ratio
    return floor + (peak - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint L2 norm is at most `max_norm`, without a host sync.

    Returns:
        The norm before clipping, a float32 scalar on the gradients' device.

    Source: Pascanu et al. 2013, arXiv:1211.5063.
    """
    parameters = list(parameters)
    norm = full_tensor(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
