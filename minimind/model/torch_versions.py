"""Calls whose arguments differ between PyTorch 2.11 and later versions."""

from __future__ import annotations

from collections.abc import Callable
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


@cache
def _takes(function: Callable[..., object], name: str) -> bool:
    """Whether a function has a parameter of this name, or takes any."""
    parameters = signature(function).parameters
    return name in parameters or any(p.kind is Parameter.VAR_KEYWORD for p in parameters.values())
