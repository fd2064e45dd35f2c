"""Compile a module's function for inputs of any number of tokens."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from minimind.model.torch_versions import leave_size_open


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, compiled at its first call that needs gradients; other calls run eagerly.

    It takes a module, then tensors whose first size is the number of tokens. This number is left
    open, so that nothing is compiled again. Where compiling fails, a warning says why, and this and
    all later calls run eagerly.
    """
    fast = torch.compile(function, dynamic=True)
    failed = False

    def call(module: torch.nn.Module, *tensors: Tensor) -> Any:
        nonlocal failed
        if failed or not torch.is_grad_enabled():  # passes without gradients are few
            return function(module, *tensors)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own, about its own code
                leave_size_open(tensors, "tokens")
                return fast(module, *tensors)
        except torch._dynamo.exc.TorchDynamoException as error:
            failed = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"not compiled: {reason}", stacklevel=2)
        return function(module, *tensors)

    return call
