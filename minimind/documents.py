"""Where the documents of a flat run of tokens begin and end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Documents:
    """Documents that lie end to end, without padding.

        tokens        a a a b b c c c c
        lengths       3     2   4
        cu_seqlens    0     3   5       9
        max_seqlen    4

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
        ends = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
        return cls(tuple(lengths), ends.to(device), max(lengths, default=0))
