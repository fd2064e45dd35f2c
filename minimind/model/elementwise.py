"""What a decoder does element by element, in fewer passes over memory. Knows no weights' names.

Each function here writes its backward pass out, working in place where autograd would keep copies:
on a CPU such passes are a good part of what a step spends beside its matrix products. The compiler
and CUDA's own kernels fuse better still: there, PyTorch's formulas are used. Without gradients, as
in decoding, each is a few plain operations, spared the cost of calling an autograd function.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale to unit root mean square, times a weight.

    Args:
        x: (..., width)
        weight: (width,)
        eps: added to the mean square.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    weight = weight.to(x.dtype)
    if torch.compiler.is_compiling() or x.is_cuda or x.dtype in (torch.bfloat16, torch.float16):
        return F.rms_norm(x, weight.shape, weight, eps)
    if not torch.is_grad_enabled():
        return (x * _norm_scale(x, eps)).mul_(weight)
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up. Source: Shazeer 2020, arXiv:2002.05202."""
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    out: Tensor = _SwiGLU.apply(gate, up)  # type: ignore[no-untyped-call]
    return out


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x[i], x[i + D/2]) by its position's angle. Source: Su et al., 2104.09864.

    Args:
        x: (T, heads, D)
        cos: (T, 1, D/2)
        sin: (T, 1, D/2)

    Returns:
        (T, heads, D), of x's type; computed in that of cos and sin.
    """
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, dim=-1)
        turned = (first * cos - second * sin, second * cos + first * sin)
        return torch.cat(turned, dim=-1).to(x.dtype)
    if not torch.is_grad_enabled():
        return _turn(x, cos, sin)
    out: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return out


def _norm_scale(x: Tensor, eps: float) -> Tensor:
    """(..., width) -> (..., 1): 1 / root mean square"""
    scale: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return scale.square_().div_(x.size(-1)).add_(eps).rsqrt_()


class _RMSNorm(torch.autograd.Function):
    """Keeps x and one number per row.

    With r = 1 / root mean square: y = x r w, and dx = r (w g - x r^2 mean(x w g)).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = _norm_scale(x, eps)
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = (x * scale).mul_(weight)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scale = ctx.saved_tensors
        width = x.size(-1)
        products = grad * x
        along = (products.reshape(-1, width) @ weight).view_as(scale)
        along.mul_(scale.pow(3)).div_(-width)
        # A sum in halves, not a product with a vector: exact to 1e-6 however many rows there are.
        d_weight = products.mul_(scale).sum(tuple(range(x.ndim - 1)))
        return (grad * weight).mul_(scale).addcmul_(x, along), d_weight, None


class _SwiGLU(torch.autograd.Function):
    """Keeps gate and up; silu(gate) is computed again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), F.silu(gate).mul_(grad)


class _Rotate(torch.autograd.Function):
    """A rotation's gradient is the rotation back: nothing of x is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    out = torch.empty_like(x, dtype=cos.dtype)
    first, second = x.chunk(2, dim=-1)
    upper, lower = out.chunk(2, dim=-1)
    torch.mul(first, cos, out=upper).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=lower).addcmul_(first, sin)
    return out.to(x.dtype)
