"""A copy of a model's layers in half precision, which a step computes with.

    model           float32 weights <----------- AdamW
                    |  refresh, once a step  ^
                    v                        |  each gradient is added in float32 at once
    working copy    bf16 weights -> products

Embedding, norms and head stay float32 and are shared: the residual stream is float32, a norm's
result is half precision, and so is all up to where the stream takes it up again. The loss takes the
head's copy for its products, and gives the gradient to the head itself.
"""

from __future__ import annotations

import copy
from types import MethodType
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from minimind.model.linear import Linear
from minimind.model.transformer import (
    MLP,
    Attention,
    Decoder,
    DecoderLayer,
    RMSNorm,
    Transformer,
)

_OURS = (
    *(Transformer, Decoder, DecoderLayer, Attention, MLP, RMSNorm, Linear),
    *(nn.Embedding, nn.ModuleList, nn.Identity),
)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

ModuleT = TypeVar("ModuleT", bound=nn.Module)


class WorkingCopy(Generic[ModuleT]):
    """A model, or a layer, for one precision: `refresh()` before a step, compute with `.model`."""

    def __init__(self, model: ModuleT, dtype: torch.dtype) -> None:
        self.model = self._source = model
        self._dtype = dtype
        self._halves: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._layers: list[tuple[nn.Parameter, nn.Parameter]] = []  # half, weight
        if dtype == torch.float32:
            return
        self.model = _share(model)
        for module in self.model.modules():
            if isinstance(module, RMSNorm):
                module.dtype = dtype
            if isinstance(module, Linear) and module is not getattr(self.model, "lm_head", None):
                for name, weight in module._parameters.items():
                    if weight is not None:
                        module._parameters[name] = self._half(weight, dtype)
        if isinstance(self.model, Transformer):
            self.model.half_head = self._cast(self.model.head_weight, dtype)

    def __reduce__(self) -> tuple[object, ...]:
        """Copied and pickled as its model: a copied hook would add to the first model's weights."""
        return type(self), (self._source, self._dtype)

    def _half(self, weight: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
        half = nn.Parameter(self._cast(weight, dtype))

        def add(half: Tensor) -> None:
            assert half.grad is not None
            if weight.grad is None:
                weight.grad = half.grad.float()
            else:
                weight.grad += half.grad
            half.grad = None

        half.register_post_accumulate_grad_hook(add)
        half.requires_grad_(weight.requires_grad)
        self._layers.append((half, weight))
        return half

    def _cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        half = weight.detach().to(dtype)
        self._halves.append(half)
        self._weights.append(weight)
        return half

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights as they now are: other values, frozen or not."""
        if self._halves:
            torch._foreach_copy_(self._halves, self._weights)
        for half, weight in self._layers:
            half.grad = None  # a step that was interrupted may have left one
            half.requires_grad_(weight.requires_grad)


def is_plain(model: Transformer) -> bool:
    """Whether a copy computes what the model does: no module and no hook is a caller's own."""
    return not any(
        type(module) not in _OURS or any(vars(module).get(name) for name in _HOOKS)
        for module in model.modules()
    ) and not any(
        parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
        for parameter in model.parameters()
    )


def _share(module: ModuleT) -> ModuleT:
    """The same modules around the same parameters, to be changed without changing the model."""
    out = copy.copy(module)
    out._parameters = dict(module._parameters)
    out._modules = {n: m if m is None else _share(m) for n, m in module._modules.items()}
    for name, value in module.__dict__.items():
        if isinstance(value, MethodType) and value.__self__ is module:  # a compiled one
            out.__dict__[name] = MethodType(value.__func__, out)
    return out
