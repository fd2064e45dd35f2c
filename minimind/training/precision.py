"""Choose and apply the precision of matrix products. Weights and moments stay float32."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Literal, get_args

import torch

from minimind.documents import Documents
from minimind.model.attention import packed_attention
from minimind.model.transformer import Transformer
from minimind.training.working_copy import WorkingCopy

Precision = Literal["auto", "fp32", "bf16", "fp16"]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

CPU_MULTIPLE = 64  # oneDNN prepares code for each new size of a half-precision product
TRIAL_FLOPS = 2e10  # of one pass of a trial, at most: a quarter of a second on two cores


def resolve_precision(
    precision: Precision, model: Transformer, lengths: Sequence[int] = (128,) * 4
) -> Precision:
    """Turn "auto" into a precision; see `choose_precision`."""
    return choose_precision(precision, model, lengths)[0]


def choose_precision(
    precision: Precision, model: Transformer, lengths: Sequence[int] = (128,) * 4
) -> tuple[Precision, str]:
    """Turn "auto" into a precision: by capability on CUDA, elsewhere by a trial of bf16.

    Args:
        precision: anything but "auto" is returned as it is.
        model: on its device.
        lengths: tokens of the documents of a typical batch.

    Returns:
        The precision, and why it was chosen; "" if it was asked for.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision is {precision}; use auto, fp32, bf16 or fp16")
    if precision != "auto":
        return precision, ""
    if model.device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "precision: bf16, which this GPU has"
        return "fp16", "precision: fp16, since this GPU has no bf16"
    bf16, fp32 = layer_seconds(model, lengths)
    chosen: Precision = "bf16" if bf16 < fp32 else "fp32"
    facts = f"{1000 * bf16:.3g} ms in bf16 and {1000 * fp32:.3g} ms in fp32"
    return chosen, f"precision: {chosen}; a layer, forward and backward, takes {facts}"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


@torch.inference_mode(False)
@torch.enable_grad()
def layer_seconds(model: Transformer, lengths: Sequence[int]) -> tuple[float, float]:
    """How long a layer takes forward and backward in bf16 and in float32, on the CPU.

    A copy of the model's first layer reads documents of these lengths, or as many of their tokens
    as take a moment; it is run four times, and the fastest counts.
    """
    layer = copy.deepcopy(model.model.layers[0]).float().requires_grad_()
    size = sum(parameter.numel() for parameter in layer.parameters())
    most = max(CPU_MULTIPLE, int(TRIAL_FLOPS / (6 * size)))
    kept: list[int] = []
    for length in lengths:
        kept.append(min(length, most - sum(kept)))
        if sum(kept) == most:
            break
    rest = -sum(kept) % CPU_MULTIPLE  # what a batch is padded to
    trials = (
        (WorkingCopy(layer, torch.bfloat16), Documents.of([*kept, rest] if rest else kept)),
        (WorkingCopy(layer, torch.float32), Documents.of(kept)),
    )
    best = [float("inf")] * len(trials)
    for _ in range(4):
        for number, (working, documents) in enumerate(trials):
            tokens = sum(documents.lengths)
            x = torch.ones(tokens, model.config.hidden_size, requires_grad=True)
            cos, sin = model.model.rotation(torch.arange(tokens))

            def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
                return packed_attention(q, k, v, documents)  # noqa: B023

            start = time.perf_counter()
            out = working.model(x, cos, sin, attend)
            out.backward(torch.ones_like(out))
            best[number] = min(best[number], time.perf_counter() - start)
    return best[0], best[1]
