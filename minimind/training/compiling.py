"""Decide once whether a run trains compiled or eager, and say why. Knows no batches."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from minimind.model.transformer import (
    After,
    Before,
    DecoderLayer,
    Transformer,
    after_attention,
    before_attention,
)

ROUNDS = 5
MARGIN = 0.99  # compiled must take less than this share of eager's time


@dataclass(frozen=True, slots=True)
class Compiling:
    """What was decided, and why: part of a run's record and of its checkpoints."""

    compiled: bool = False
    reason: str = "not asked for"


def choose_compiling(model: Transformer, tokens: int) -> Compiling:
    """Compile, and keep it if a layer then takes less time than eager; call inside autocast.

    Args:
        model: on its device; afterwards it is compiled or not, as decided.
        tokens: of the run's largest batches; what is faster depends on it.
    """
    if model.compiled:
        return Compiling(True, "the model came compiled")
    try:
        model.compile_tokenwise()
    except Exception as error:  # whatever the compiler raises, the run can go on
        first_line = f"{type(error).__name__}: {error}".splitlines()[0]
        return Compiling(False, f"compiling failed: {first_line}")
    layer = model.model.layers[0]
    assert isinstance(layer, DecoderLayer)
    assert layer.compiled is not None
    eager, compiled = float("inf"), float("inf")
    for _ in range(ROUNDS):  # in turns: the machine may be slower at one moment than at the next
        eager = min(eager, _seconds(model, layer, (before_attention, after_attention), tokens))
        compiled = min(compiled, _seconds(model, layer, layer.compiled, tokens))
    reason = (
        f"without attention a layer of {tokens:,} tokens takes {1e3 * compiled:.1f} ms compiled, "
        f"{1e3 * eager:.1f} ms eager"
    )
    if compiled >= MARGIN * eager:
        model.use_eager()
        return Compiling(False, reason)
    return Compiling(True, reason)


def _seconds(
    model: Transformer, layer: DecoderLayer, parts: tuple[Before, After], tokens: int
) -> float:
    """Of one layer, forward and backward, attention left out."""
    before, after = parts
    cos, sin = model.model.rotation(torch.arange(tokens, device=model.device))
    x = torch.ones(tokens, model.config.hidden_size, device=model.device, requires_grad=True)
    _wait(model.device)
    start = time.perf_counter()
    q, k, v = before(layer, x * 1, cos, sin)
    out = (q, k, v, after(layer, x * 1, q.detach().requires_grad_() * 1))
    torch.autograd.grad(out, [x, *layer.parameters()], [torch.ones_like(y) for y in out])
    _wait(model.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
