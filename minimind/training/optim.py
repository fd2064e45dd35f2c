"""AdamW's parameter groups, the cosine schedule, gradient clipping."""

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
    """One optimizer step if `ok`; otherwise weights and moments stay what they were.

    Fused Adam and AdamW decide on the device: they take the flag that GradScaler hands them, and
    the host needn't wait. With another optimizer the host waits for `ok`, a bool scalar.
    """
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        if ok:
            optimizer.step()
        return
    optimizer.found_inf = (~ok).float()  # type: ignore[attr-defined]
    optimizer.step()
    del optimizer.found_inf  # type: ignore[attr-defined]


def schedule_at(step: int, steps: int, warmup_steps: int, min_lr_ratio: float) -> float:
    """The learning rate of one step as a share of the peak: a line up, then half a cosine down.

        1             |   /`-.
                      |  /    `.
        min_lr_ratio  | /       `-._
                      +--------------  step 0 ... steps - 1

    The first step of the warm-up has 1 / warmup_steps, the first after it the peak, and the last of
    all `steps` exactly min_lr_ratio.

    Source: the cosine of Loshchilov & Hutter 2017, arXiv:1608.03983, without restarts.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    falling = steps - 1 - warmup_steps
    progress = min(1.0, (step - warmup_steps) / falling) if falling > 0 else 1.0
    return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scale gradients so that their joint L2 norm is at most `max_norm`; the host doesn't wait.

    Returns the norm before clipping, a float32 scalar on the gradients' device.

    Source: Pascanu et al. 2013, arXiv:1211.5063.
    """
    parameters = list(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = full_tensor(nn.utils.get_total_norm(gradients))
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
