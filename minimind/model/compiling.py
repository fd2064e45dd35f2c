"""Compile a module's function for inputs of fixed sizes."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

MOST_SIZES = 64  # sizes for which one function may be compiled; PyTorch's own limit is 8


class Compiled:
    """A function, compiled at its first call that needs gradients; other calls run eagerly.

    It takes a module, then tensors, and is compiled again for tensors of other sizes. Where
    compiling fails, a warning says why, and this and all later calls run eagerly until `retry`.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._fast: Callable[..., Any] | None = None
        self._failed = False

    def retry(self) -> None:
        self._failed = False

    def __call__(self, module: torch.nn.Module, *tensors: Tensor) -> Any:
        if self._failed or not torch.is_grad_enabled():  # passes without gradients are few
            return self._function(module, *tensors)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own, about its own code
                if self._fast is None:
                    config = torch._dynamo.config
                    config.recompile_limit = max(config.recompile_limit, MOST_SIZES)
                    self._fast = torch.compile(self._function, dynamic=False)
                return self._fast(module, *tensors)
        except torch._dynamo.exc.TorchDynamoException as error:
            self._failed = True
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        warnings.warn(f"not compiled: {reason}", stacklevel=2)
        return self._function(module, *tensors)


compiled = functools.cache(Compiled)  # one for all layers and models
