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
class Tails:
    """What the last layer must attend from: of each document, the first wanted token and all after.

        documents   a a a a a b b b      wanted: a2, a4, b2
        index           2 3 4     7
        wanted          0   2     3

    Attributes:
        index: (Q,) int64 places in the flat run.
        lengths: tokens of each document's tail, on the host.
        cu_seqlens: (documents + 1,) int32, running sums of lengths, on the tokens' device.
        wanted: (S,) int64 indices into `index`.
    """

    index: Tensor
    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    wanted: Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """Where each document of a flat run of tokens begins and ends.

    Attributes:
        lengths: tokens of each document, on the host.
        cu_seqlens: (documents + 1,) int32, running sums of lengths, on the tokens' device.
        max_seqlen: the longest length.
        tails: where states are wanted; None for everywhere.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    max_seqlen: int
    tails: Tails | None = None

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        device: torch.device | str = "cpu",
        wanted: Tensor | None = None,
    ) -> Documents:
        """Build from the lengths and, on the host, the wanted places: at least one a document."""
        ends = torch.tensor([0, *lengths]).cumsum(0)
        tails = None
        if wanted is not None:
            first = wanted[torch.searchsorted(wanted, ends[:-1])]
            spans = torch.stack([first, ends[1:]], dim=1).tolist()
            parts = [torch.arange(*span) for span in spans]
            index, counts = torch.cat(parts), [len(part) for part in parts]
            tails = Tails(
                index.to(device),
                tuple(counts),
                torch.tensor([0, *counts]).cumsum(0).int().to(device),
                torch.searchsorted(index, wanted).to(device),
            )
        return cls(tuple(lengths), ends.int().to(device), max(lengths, default=0), tails)


def packed_attention(documents: Documents, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attend causally inside each document.

    Args:
        documents: lengths that add up to T.
        layer: not used; here every layer attends alike.
        q: (T, H, D), or (Q, H, D) of the documents' tails.
        k: (T, K, D)
        v: (T, K, D)

    Returns:
        As q.
    """
    asking: Documents | Tails = documents
    if q.size(0) < k.size(0):
        assert documents.tails is not None
        asking = documents.tails
    if _flash_serves(q):
        return _flash_attention(q, k, v, asking, documents)
    return _sdpa_by_document(q, k, v, asking.lengths, documents.lengths)


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


def _flash_attention(
    q: Tensor, k: Tensor, v: Tensor, asking: Documents | Tails, documents: Documents
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn  # as slow to import as all of torch

    # Causal from the lower right: a document's last query sees its last key.
    out = varlen_attn(
        q,
        k,
        v,
        asking.cu_seqlens,
        documents.cu_seqlens,
        max(asking.lengths),
        documents.max_seqlen,
        window_size=(-1, 0),
        enable_gqa=q.size(1) != k.size(1),
    )
    assert isinstance(out, Tensor)
    return out


def _sdpa_by_document(
    q: Tensor, k: Tensor, v: Tensor, asking: Sequence[int], lengths: Sequence[int]
) -> Tensor:
    # `split` and one `cat`, not slices: their backward is one pass over memory for all documents.
    parts = zip(q.split(list(asking)), *(x.split(list(lengths)) for x in (k, v)), strict=True)
    return torch.cat([_causal_sdpa(*part) for part in parts])


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(Q, H, D), (L, K, D), (L, K, D) -> (Q, H, D): the queries are the last Q of L tokens."""
    queries, length = q.size(0), k.size(0)
    # SDPA's `is_causal` is aligned to the upper left: queries for all tokens must be there. Where
    # most are, the others are filled in, since under a mask it computes what the mask hides, too.
    causal, mask = 2 * queries > length, None
    if causal and queries < length:
        q = F.pad(q, (0, 0, 0, 0, length - queries, 0))
    elif not causal and queries > 1:
        mask = torch.ones(queries, length, dtype=torch.bool, device=q.device).tril(length - queries)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))  # (1, heads, tokens, D)
    gqa = q.size(1) != k.size(1)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=gqa)
    out = out.squeeze(0).transpose(0, 1)
    return out if len(out) == queries else out[-queries:]
