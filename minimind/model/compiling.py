"""Compile a module's function for inputs of fixed sizes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_SIZES = 64  # sizes for which one function may be compiled; PyTorch's own limit is 8


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled at its first call that needs gradients; other calls run eagerly.

    It takes a module, then tensors, and is compiled again for tensors of other sizes. Where
    compiling fails, a warning says why, and this and all later calls run eagerly.
    """
    fast: Callable[..., Any] | None = None
    failed = False

    def call(module: torch.nn.Module, *tensors: Tensor) -> Any:
        nonlocal fast, failed
        if failed or not torch.is_grad_enabled():  # passes without gradients are few
            return function(module, *tensors)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own, about its own code
                if fast is None:
                    config = torch._dynamo.config
                    config.recompile_limit = max(config.recompile_limit, MOST_SIZES)
                    fast = torch.compile(function, dynamic=False)
                return fast(module, *tensors)
        except torch._dynamo.exc.TorchDynamoException as error:
            failed = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"not compiled: {reason}", stacklevel=2)
        return function(module, *tensors)

    return call
