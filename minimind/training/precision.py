"""Choose and apply the precision of matrix products. Weights and moments stay float32."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> Precision:
    """Turn "auto" into a precision: by capability on CUDA, by a short trial elsewhere."""
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision}; use auto, fp32, bf16 or fp16")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if _seconds(torch.bfloat16) < _seconds(torch.float32) else "fp32"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def _seconds(dtype: torch.dtype) -> float:
    """The best of a few small matrix products on the CPU; a few milliseconds in all."""
    x = torch.ones(256, 256, dtype=dtype)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        x @ x
        best = min(best, time.perf_counter() - start)
    return best
