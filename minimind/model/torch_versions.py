"""Calls whose arguments differ between PyTorch 2.11 and later versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from minimind.documents import Documents


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """`packed_attention` with the flash kernel."""
    from torch.nn.attention.varlen import varlen_attn  # takes as long to import as all of torch

    options: dict[str, Any] = {"window_size": (-1, 0)}  # all tokens to the left, none to the right
    if _takes(varlen_attn, "enable_gqa"):  # 2.11 finds shared heads by itself
        options["enable_gqa"] = q.size(1) != k.size(1)
    ends, longest = documents.cu_seqlens, documents.max_seqlen
    out = varlen_attn(q, k, v, ends, ends, longest, longest, **options)
    assert isinstance(out, Tensor)
    return out


def leave_size_open(tensors: Sequence[Tensor], name: str) -> None:
    """Tell the compiler that the tensors' first size, one and the same, may be any but 0."""
    from torch._dynamo.decorators import mark_unbacked  # takes a second to import

    least = {"min": 1} if _takes(mark_unbacked, "min") else {}  # not in 2.11
    for tensor in tensors:
        mark_unbacked(tensor, 0, shape_id=name, **least)


@cache
def _takes(function: Callable[..., object], name: str) -> bool:
    """Whether a function has a parameter of this name, or takes any."""
    parameters = signature(function).parameters
    return name in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
