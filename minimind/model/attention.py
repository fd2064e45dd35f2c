"""Causal attention: packed documents, and one new token against a cache.

    documents     a a a b b c c c c          lengths 3, 2, 4
    cu_seqlens    0     3   5       9

A token attends to itself and to the earlier tokens of its own document.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minimind.documents import Documents
from minimind.model.torch_versions import varlen_attention

# Shape letters: T tokens, B rows of a cache, H query heads, K key/value heads, D head dimension,
# L tokens of one document, S tokens of a cache.

FLASH_MAX_HEAD_DIM = 256
HALF = (torch.float16, torch.bfloat16)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Attend causally inside each document: (T, H, D), (T, K, D), (T, K, D) -> (T, H, D)"""
    if flash_serves(q):
        return varlen_attention(q, k, v, documents)
    if q.is_cpu and q.dtype in HALF and torch.is_grad_enabled():
        out: Tensor = _HalfAttention.apply(q, k, v, documents.lengths)  # type: ignore[no-untyped-call]
        return out
    return _sdpa_by_document(q, k, v, documents)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from one new token per row to all of the row's cache, which has the token already.

    (B, H, D), (B, K, S, D), (B, K, S, D) -> (B, H, D)

    The mask, (B, 1, 1, S) bool, is True where a row's cache is filled; None if all of it is.
    """
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, mask, enable_gqa=gqa)
    return out.squeeze(2)


def flash_serves(q: Tensor) -> bool:
    """Whether the flash kernel takes this input; it raises where one of these doesn't hold."""
    return (
        q.is_cuda
        and torch.backends.cuda.is_flash_attention_available()
        and q.dtype in HALF
        and q.size(-1) <= FLASH_MAX_HEAD_DIM
        and q.size(-1) % 8 == 0
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _sdpa_by_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    # `split` and one `cat`, not slices: their backward is one pass over memory for all documents.
    parts = zip(*(x.split(list(documents.lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([_causal_sdpa(*part) for part in parts])


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(L, H, D), (L, K, D), (L, K, D) -> (L, H, D)"""
    q, k, v = (_by_head(x) for x in (q, k, v))
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    return _by_token(out)


class _HalfAttention(torch.autograd.Function):
    """On a CPU, in half precision forward and in float32 backward.

    There PyTorch's flash kernel is faster in bf16 than in float32 forward, and slower backward
    (benchmarks/RESULTS.md). The log-sum-exp, which both need, is float32 in either.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
        results = [_flash_forward(*(_by_head(x) for x in part), 0.0, True) for part in parts]
        out = torch.cat([_by_token(o) for o, _ in results])
        ctx.save_for_backward(q, k, v, out, *(lse for _, lse in results))
        ctx.lengths = lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *lse = ctx.saved_tensors
        parts = zip(*(x.float().split(ctx.lengths) for x in (grad, q, k, v, out)), strict=True)
        results = [
            _flash_backward(*(_by_head(x) for x in part), sums, 0.0, True)
            for part, sums in zip(parts, lse, strict=True)
        ]
        dq, dk, dv = (
            torch.cat([_by_token(x) for x in grads]).to(q.dtype)
            for grads in zip(*results, strict=True)
        )
        return dq, dk, dv, None


_flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def _by_head(x: Tensor) -> Tensor:
    """(L, heads, D) -> (1, heads, L, D)"""
    return x.transpose(0, 1).unsqueeze(0)


def _by_token(x: Tensor) -> Tensor:
    """(1, heads, L, D) -> (L, heads, D)"""
    return x.squeeze(0).transpose(0, 1)
