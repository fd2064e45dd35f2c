"""What a training run is set to, and what it consists of between two steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from minimind.data.packing import Batch
from minimind.data.padding import BatchShape, rounded_shape
from minimind.model.transformer import Transformer
from minimind.training import distributed
from minimind.training.optim import make_optimizer
from minimind.training.precision import CPU_MULTIPLE, DTYPES, Precision, resolve_precision
from minimind.training.working_copy import WorkingCopy, is_plain

if TYPE_CHECKING:
    from minimind.training.graphs import StepGraphs


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """How to train. README.md says where each default comes from.

    Attributes:
        learning_rate: the peak; for the embedded base, minimind.sft takes 2e-4 if none is given.
        betas: AdamW's decay rates of the moments.
        weight_decay: on matrices only.
        max_grad_norm: gradients are clipped to this joint L2 norm.
        warmup_ratio: share of the steps over which the learning rate rises.
        min_lr_ratio: the last step's learning rate as a share of the peak.
        precision: of the matrix products; weights and moments stay float32.
        compile: compile what a layer does before and after attention with torch.compile, for fixed
            sizes: on, off, or auto: on CUDA, where the run is long enough to earn it back.
        activation_checkpointing: compute layers again in the backward pass, to save memory.

    Raises:
        ValueError: a value is out of its range.
    """

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    warmup_ratio: float = 0.03
    min_lr_ratio: float = 0.1
    precision: Precision = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        are_shares = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        checks = {
            "learning_rate": (0 < self.learning_rate < math.inf, "a positive number"),
            "betas": (are_shares, "two numbers from 0 to below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or a positive number"),
            "max_grad_norm": (self.max_grad_norm > 0, "a positive number, inf for no clipping"),
            "warmup_ratio": (0 <= self.warmup_ratio <= 1, "a share of the steps, 0 to 1"),
            "min_lr_ratio": (0 <= self.min_lr_ratio <= 1, "a share of the peak, 0 to 1"),
            "precision": (self.precision in get_args(Precision), "auto, fp32, bf16 or fp16"),
            "compile": (self.compile in ("auto", "on", "off"), "auto, on or off"),
        }
        for name, (ok, remedy) in checks.items():
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)}; use {remedy}")


class TrainState:
    """Everything besides the weights that a run consists of between two steps.

        torch.save((model.state_dict(), state.state_dict()), "run.pt")
        weights, saved = torch.load("run.pt")  # in another process; then:
        model.load_state_dict(weights)
        state.load_state_dict(saved)  # train(..., state=state) continues

    Args:
        model: its weights are float32.
        config: how to train.
        optimizer: default: AdamW as `config` says.

    Attributes:
        step: optimizer steps done.
        optimizer: its moments are part of the state.
        has_own_rates: its groups keep their own peaks; else the peak is the config's.
        scaler: scales the loss in fp16; does nothing in other precisions.
        precision: of the matrix products; what "auto" was resolved to.
        device: where the model is.
        working: what computes in this precision.
        autocast: the precision of autocast; fp32, which is none, where `working` is a copy.
        shape: what batches are padded to; None: each keeps its sizes.
        graphs: the step as CUDA graphs; None: not captured, or not yet.
        may_capture: False once a run is found that can't be captured.
        eager_batches: micro-batches that the shape didn't hold.
        compiled: whether layers are compiled.
        notes: sentences on how the run computes and why, the newest last.

    Raises:
        ValueError: the weights aren't float32.
    """

    def __init__(
        self,
        model: Transformer,
        config: TrainConfig,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        if wrong := {str(p.dtype) for p in model.parameters() if p.dtype != torch.float32}:
            raise ValueError(
                f"the model's weights are {', '.join(sorted(wrong))}; load it with "
                "dtype=torch.float32 (precision='bf16' computes in bfloat16 all the same)"
            )
        self.step = 0
        self.model, self.device = model, model.device
        self.shape: BatchShape | None = None
        self.graphs: StepGraphs | None = None
        self.may_capture, self.compiled = self.device.type == "cuda", False
        self.eager_batches = 0
        self.notes: list[str] = []
        self.has_own_rates = optimizer is not None
        self.optimizer = optimizer or make_optimizer(
            model, config.learning_rate, config.betas, config.weight_decay
        )
        if not isinstance(self.optimizer, (torch.optim.Adam, torch.optim.AdamW)):
            # Fused SGD's momentum starts from garbage after a first step that it skipped itself.
            self.optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        self.keep_peaks(config)
        self.set_precision(resolve_precision(config.precision, model))

    def __getstate__(self) -> dict[str, Any]:
        """A copy computes with its own model, and captures graphs of its own."""
        return self.__dict__ | {"graphs": None}

    def __setstate__(self, attributes: dict[str, Any]) -> None:
        self.__dict__.update(attributes)
        if self.compiled:
            self.compile()

    def keep_peaks(self, config: TrainConfig) -> None:
        """Note each group's peak learning rate as `initial_lr`, as PyTorch's schedulers do."""
        for group in self.optimizer.param_groups:
            if not self.has_own_rates:
                group["initial_lr"] = config.learning_rate
            group.setdefault("initial_lr", float(group["lr"]))

    def set_precision(self, precision: Precision) -> None:
        """Continue in a precision that may differ from the one before."""
        self.precision, self.graphs = precision, None
        # Several processes: FSDP keeps copies of its own. Autocast casts activations then.
        copied = distributed.world_size() == 1 and is_plain(self.model)
        self.autocast: Precision = "fp32" if copied else precision
        self.working = WorkingCopy(self.model, DTYPES[precision if copied else "fp32"])
        if self.compiled:
            self.compile()
        # Small fp16 gradients vanish: the loss is scaled up, and overflowing steps are skipped.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")

    def compile(self, compiled: bool = True) -> None:
        """Compile what layers do, at the next step; or stop using what was compiled."""
        self.compiled, self.graphs = compiled, None
        model = self.working.model
        model.compile_training() if compiled else model.uncompile_training()

    def fixed_shape(self, batch: Batch) -> BatchShape | None:
        """What to pad a batch to; None where it keeps its sizes."""
        if self.shape is not None:
            return self.shape if self.shape.holds(batch) else None
        if self.device.type == "cpu" and self.precision != "fp32":
            return rounded_shape(batch, CPU_MULTIPLE)
        return None

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        return {
            "step": self.step,
            "precision": self.precision,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "compiled": self.compiled,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned; if it has no "optimizer", ours is kept."""
        self.step = state["step"]
        if "optimizer" in state:
            self.optimizer.load_state_dict(state["optimizer"])
        self.compiled = state.get("compiled", False)
        self.set_precision(state["precision"])
        self.scaler.load_state_dict(state["scaler"])
