"""A step's kernels captured once as two CUDA graphs, and launched again with two calls.

    one micro-batch   forward and backward, gradients added to fixed tensors     replayed for each
    update            norm, clipping, AdamW                                      replayed once

A micro-batch, padded to the run's one shape, is copied into one fixed buffer. One that the shape
doesn't hold is computed eagerly, into the same gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from minimind.data.packing import Batch, Step
from minimind.data.padding import empty_buffer, pad, view_batch
from minimind.model.attention import flash_serves
from minimind.training import distributed
from minimind.training.precision import DTYPES
from minimind.training.state import TrainConfig, TrainState
from minimind.training.step import batch_loss, forward_backward, update

WARM_UPS = 3  # runs before a capture, as PyTorch's notes on CUDA graphs ask for
MOST_DIFFERENCE = 1e-3  # between the first graphed and the first eager loss, nats a token
FREE_OPTIONS = ("params", "lr", "initial_lr")  # of an optimizer's group: not captured as constants

Run = Callable[[], None]


def why_not_captured(config: TrainConfig, state: TrainState) -> str | None:
    """What of this run no graph can hold; None if graphs can be tried."""
    head_dim, dtype = state.model.config.head_dim, DTYPES[state.precision]
    if distributed.world_size() > 1:
        return "several processes exchange gradients"
    if state.autocast != "fp32":
        return "the model has modules or hooks of a caller's own"
    if state.precision == "fp16":
        return "fp16 changes its loss's scale from step to step"
    if config.activation_checkpointing:
        return "activation checkpointing computes layers again"
    if not flash_serves(torch.empty(1, 1, head_dim, dtype=dtype, device=state.device)):
        return f"no flash attention here for {state.precision} and heads of {head_dim}"
    return None


def capture(function: Run) -> Run:
    """Capture what a function queues on CUDA; returns what queues the same again."""
    current = torch.cuda.current_stream()
    side = torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function()
    current.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


class StepGraphs:
    """A run's step as graphs, captured when it is made.

    Args:
        state: with a shape; the default optimizer's moments are made here.
        first: a micro-batch that the shape holds, on the CPU.
        capture: how to capture; tests on a CPU give a function's own calls.

    Raises:
        RuntimeError: something can't be captured, or the graph's loss isn't the eager one.
    """

    def __init__(
        self,
        config: TrainConfig,
        state: TrainState,
        first: Batch,
        capture: Callable[[Run], Run] = capture,
    ) -> None:
        self.prepare(config, state)
        self._load(first)
        # Before the capture, whose memory it then doesn't add to.
        with torch.compiler.set_stance("force_eager"):
            eager = batch_loss(state.working.model, self._batch, config, state.autocast).detach()
        self._micro_batch = capture(self._forward_backward)
        self._begin_step(1)
        self._micro_batch()
        graphed, expected = (x.item() / max(1, first.num_supervised) for x in (self._total, eager))
        if not abs(graphed - expected) <= MOST_DIFFERENCE:
            raise RuntimeError(f"the first loss is {graphed:.5f}, and eagerly {expected:.5f}")
        self._begin_step(1)
        if state.has_own_rates:  # a caller's optimizer may do anything
            self._update: Run = self._step_optimizer
        else:
            # It makes the moments, and changes nothing more: the loss isn't finite.
            self._total.fill_(math.nan)
            with _capturable(state.optimizer, self._rates):
                self._update = capture(self._step_optimizer)
        self._begin_step(1)
        self._captured = self._what_is_read()

    def prepare(self, config: TrainConfig, state: TrainState) -> None:
        """Make what the graphs read and write at fixed addresses."""
        assert state.shape is not None
        self._config, self._state, self._shape = config, state, state.shape
        self._buffer = empty_buffer(self._shape, state.device)
        self._batch = view_batch(self._buffer, self._shape)
        self._supervised, self._total, self._norm = torch.zeros(3, device=state.device).unbind()
        self._rates = [torch.zeros((), device=state.device) for _ in state.optimizer.param_groups]
        state.model.zero_grad()  # an earlier capture's, and what a weight had before it was frozen
        self._parameters = list(state.model.parameters())
        self._trained = [p for p in self._parameters if p.requires_grad]
        self._gradients = [torch.zeros_like(p) for p in self._trained]
        self._begin_step(1)

    def serves(self, config: TrainConfig) -> bool:
        """Whether a step by this config, on what the state now holds, is what was captured."""
        same = config == self._config and self._state.shape == self._shape
        return same and self._what_is_read() == self._captured

    def _what_is_read(self) -> list[object]:
        """Where weights and moments lie, and what the update has as constants."""
        optimizer = self._state.optimizer
        facts: list[object] = [(p.data_ptr(), p.requires_grad) for p in self._parameters]
        facts.append(len(optimizer.param_groups))
        if self._state.has_own_rates:  # its update isn't captured
            return facts
        for group in optimizer.param_groups:
            facts += [value for name, value in group.items() if name not in FREE_OPTIONS]
            for parameter in group["params"]:
                moments = optimizer.state.get(parameter, {}).values()
                facts += [parameter.data_ptr(), *(x.data_ptr() for x in moments)]
        return facts

    def run(self, step: Step, rates: Sequence[float]) -> tuple[Tensor, Tensor]:
        """One optimizer step: its loss and the gradients' norm, scalars on the device."""
        self._begin_step(step.supervised)
        for batch in step:
            if self._shape.holds(batch):
                self._load(batch)
                self._micro_batch()
            else:
                self._state.eager_batches += 1
                device_batch = batch.to(self._state.device)
                with torch.compiler.set_stance("force_eager"):
                    forward_backward(
                        device_batch, self._supervised, self._total, self._config, self._state
                    )
        for tensor, rate in zip(self._rates, rates, strict=True):
            tensor.fill_(rate)
        self._update()
        return self._total.clone(), self._norm.clone()

    def _begin_step(self, supervised: int) -> None:
        self._supervised.fill_(supervised)
        self._total.zero_()
        torch._foreach_zero_(self._gradients)
        for parameter, gradient in zip(self._trained, self._gradients, strict=True):
            parameter.grad = gradient  # a caller may have set it to None

    def _load(self, batch: Batch) -> None:
        """Copy a micro-batch to where the graph reads it, behind what is queued already."""
        pinned, padded = pad(batch, self._shape, pin_memory=self._buffer.is_cuda)
        self._buffer.copy_(pinned, non_blocking=True)
        # Only what isn't captured reads lengths on the host.
        documents = replace(self._batch.documents, lengths=padded.documents.lengths)
        self._batch = replace(self._batch, documents=documents)

    def _forward_backward(self) -> None:
        forward_backward(self._batch, self._supervised, self._total, self._config, self._state)

    def _step_optimizer(self) -> None:
        self._norm.copy_(update(self._total, self._config, self._state))


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer, rates: Sequence[Tensor]) -> Iterator[None]:
    """While a step is captured, its learning rates are tensors; a state dict never shows it."""
    optimizer._warned_capturable_if_run_uncaptured = True  # warming up is meant
    groups = optimizer.param_groups
    before = [(group["lr"], group["capturable"]) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"], group["capturable"] = rate, True
    try:
        yield
    finally:
        for group, (rate, capturable) in zip(groups, before, strict=True):
            group["lr"], group["capturable"] = rate, capturable
