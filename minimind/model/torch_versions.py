"""Calls whose arguments differ between PyTorch 2.11 and later versions."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

# T tokens, Q queries, H query heads, K key/value heads, D head dimension, N documents.


def varlen_attention(
    q: Tensor, k: Tensor, v: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """Attend with the flash kernel: causally in each document, whose last query sees its last key.

    Args:
        q: (Q, H, D)
        k: (T, K, D)
        v: (T, K, D)
        cu_seq_q: (N + 1,) int32, where each document's queries begin, and the end.
        cu_seq_k: (N + 1,) int32, the same of keys.
        max_q: most queries in a document.
        max_k: most keys in a document.

    Returns:
        As q.
    """
    from torch.nn.attention.varlen import varlen_attn  # as slow to import as all of torch

    # 2.11 has no `enable_gqa`: there heads are always shared where K is less than H.
    shared: dict[str, Any] = {}
    if _takes(varlen_attn, "enable_gqa"):
        shared = {"enable_gqa": q.size(1) != k.size(1)}
    out = varlen_attn(q, k, v, cu_seq_q, cu_seq_k, max_q, max_k, window_size=(-1, 0), **shared)
    assert isinstance(out, Tensor)
    return out


def leave_size_open(tensors: list[Tensor], name: str) -> None:
    """Tell the compiler that the first size of some tensors, the same in all, may be any but 0.

    Args:
        tensors: to be read by a compiled function.
        name: the size's own.
    """
    from torch._dynamo.decorators import mark_unbacked  # takes a second to import

    # 2.11 has no `min`.
    lowest = {"min": 1} if _takes(mark_unbacked, "min") else {}
    for tensor in tensors:
        mark_unbacked(tensor, 0, shape_id=name, **lowest)


@cache
def _takes(function: Callable[..., object], name: str) -> bool:
    """Whether a function has a parameter of this name, or takes any."""
    parameters = signature(function).parameters
    return name in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
