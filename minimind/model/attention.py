"""Causal attention: packed documents, and one new token against a cache.

    documents     a a a b b c c c c          lengths 3, 2, 4
    cu_seqlens    0     3   5       9

A token attends to itself and to the earlier tokens of its own document.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.documents import Documents
from minimind.model.torch_versions import varlen_attention

# Shape letters: T tokens, B rows of a cache, H query heads, K key/value heads, D head dimension,
# L tokens of one document, S tokens of a cache.

FLASH_MAX_HEAD_DIM = 256


def packed_attention(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    """Attend causally inside each document: (T, H, D), (T, K, D), (T, K, D) -> (T, H, D)"""
    if _flash_serves(q):
        return varlen_attention(q, k, v, documents)
    return _sdpa_by_document(q, k, v, documents)


def cached_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attend from one new token per row to all of the row's cache, which has the token already.

    (B, H, D), (B, K, S, D), (B, K, S, D) -> (B, H, D)

    The mask, (B, 1, 1, S) bool, is True where a row's cache is filled; None if all of it is.
    """
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q.unsqueeze(2), k, v, mask, enable_gqa=gqa)
    return out.squeeze(2)


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


def _sdpa_by_document(q: Tensor, k: Tensor, v: Tensor, documents: Documents) -> Tensor:
    # `split` and one `cat`, not slices: their backward is one pass over memory for all documents.
    parts = zip(*(x.split(list(documents.lengths)) for x in (q, k, v)), strict=True)
    return torch.cat([_causal_sdpa(*part) for part in parts])


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(L, H, D), (L, K, D), (L, K, D) -> (L, H, D)"""
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, heads, L, D)
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)
    return out.squeeze(0).transpose(0, 1)
