"""Causal attention over documents that lie end to end. The only file that knows kernels.

    documents     a a a b b c c c c          lengths 3, 2, 4
    cu_seqlens    0     3   5       9

A token attends to itself and to earlier tokens of its own document. Knows no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Shape letters: T tokens, B rows of a cache, H query heads, K key/value heads, D head dimension.

FLASH_MAX_HEAD_DIM = 256


@dataclass(frozen=True, slots=True)
class Documents:
    """Where each document of a flat run of tokens begins and ends.

    Attributes:
        lengths: tokens of each document, on the host.
        cu_seqlens: (documents + 1,) int32, running sums of lengths, on the tokens' device.
        max_seqlen: the longest length.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device | str = "cpu") -> Documents:
        """Build from lengths alone."""
        ends = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), ends.to(device), max(lengths, default=0))


def packed_attention(documents: Documents, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally inside each document.

    Args:
        documents: lengths that add up to T.
        layer: not used; here every layer attends alike.
        q: (T, H, D)
        k: (T, K, D)
        v: (T, K, D)

    Returns:
        (T, H, D)
    """
    if _flash_serves(q):
        return _flash_attention(q, k, v, documents)
    return _sdpa_by_document(q, k, v, documents)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from one new token per row to all that the row's cache holds.

    Args:
        q: (B, H, D), one query per row.
        k: (B, K, S, D) cached keys, the new one included.
        v: (B, K, S, D) cached values.
        mask: (B, 1, 1, S) bool, True where a row's cache is filled; None if all of it is.

    Returns:
        (B, H, D)
    """
    rows, heads, head_dim = q.shape
    # The query heads that share a key head become that head's query positions: (B, K, H/K, D).
    q = q.view(rows, k.size(1), heads // k.size(1), head_dim)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.reshape(rows, heads, head_dim)


def _flash_serves(q: Tensor) -> bool:
    """Whether `varlen_attn` takes this input; it raises where one of these doesn't hold."""
    return (
        q.is_cuda
        and torch.backends.cuda.is_flash_attention_available()
        and q.dtype in (torch.float16, torch.bfloat16)
        and q.size(-1) <= FLASH_MAX_HEAD_DIM
        and q.size(-1) % 8 == 0
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # as slow to import as all of torch

    ends, longest = documents.cu_seqlens, documents.max_seqlen
    out = varlen_attn(
        q,
        k,
        v,
        ends,
        ends,
        longest,
        longest,
        window_size=(-1, 0),
        enable_gqa=q.size(1) != k.size(1),
    )
    assert isinstance(out, Tensor)
    return out


def _sdpa_by_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    lengths = list(documents.lengths)
    # `split` and one `cat`, not slices: their backward is one pass over memory for all documents.
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    return torch.cat([_causal_sdpa(*part) for part in parts])


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, heads, length, D)
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    return out.squeeze(0).transpose(0, 1)
