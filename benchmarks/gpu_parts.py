"""What `benchmarks.gpu` does: its parts by name, each a function that returns figures."""

from __future__ import annotations

import copy
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import first_command, train_throughput
from benchmarks.harness import Measures, matmul_peak, peak_memory, synchronize
from benchmarks.train_throughput import COMPILED, EAGER, OURS, PER_STEP, Workload
from minimind.data.plan import Steps
from minimind.model.transformer import Transformer
from minimind.training.loop import StepResult, train, train_step
from minimind.training.precision import DTYPES, Precision
from minimind.training.state import TrainConfig, TrainState

GRID = (
    ("26M", 4096),
    ("64M", 16_384),
    ("26M", 65_536),
    ("64M", 65_536),
    ("135M", 65_536),
    ("0.6B", 16_384),
)
COMPILED_EARLY = (("26M", 4096), ("64M", 16_384), ("135M", 65_536))  # it takes half a minute each
LIGER, TRANSFORMERS = (f"transformers{w}, sorted by length" for w in (" with Liger", ""))
MINIMIND = [f"MiniMind's loop, 16 padded to {length}" for length in (768, 512)]
COPIED = {"cuda": 2**30, "cpu": 2**24}  # bytes
LEARNING_RATE = 1e-3
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")

Case = tuple[str, str, int | None]  # a contestant, its shape, tokens a step; None: 16 rows


@dataclass(frozen=True)
class Part:
    """Something to measure; `alone` if in a process of its own, with cuBLAS set to repeat."""

    do: Callable[[], Measures]
    alone: bool = False


def parts(device: torch.device, small: bool) -> dict[str, Part]:
    """All of them by name, the most important first."""
    same = partial(Same, "tiny" if small else "5M", device, 600 if small else 4000)
    first, last = speeds(device, small)

    def measured(case: Case) -> tuple[str, Part]:
        contestant, shape, tokens = case
        name = f"{contestant}: {shape}, {tokens or f'{PER_STEP} rows'}"
        return name, Part(partial(speed, *case, device, small))

    return {
        "peak": Part(partial(peak, device)),
        "graphed step": Part(lambda: same().graphed_step()),
        "loss curves": Part(lambda: same().curves(3 if small else 40)),
        "repeated": Part(lambda: same().repeated()),
        "repeated, deterministic": Part(lambda: same().repeated(deterministic=True), alone=True),
        **dict(map(measured, first)),
        "first command": Part(partial(first_command_parts, small)),
        **dict(map(measured, last)),
    }


def speeds(device: torch.device, small: bool) -> tuple[list[Case], list[Case]]:
    """What is measured before README's first command and, if there is time, after it."""
    if small:
        names = (OURS, COMPILED, EAGER, TRANSFORMERS, *MINIMIND)
        return [(name, "tiny", 600) for name in names], []
    first: list[Case] = [(OURS, *case) for case in GRID]
    first += [(EAGER, "26M", 4096)]
    first += [(COMPILED, *case) for case in COMPILED_EARLY]
    first += [(name, "64M", None) for name in (OURS, *MINIMIND)]
    has_liger = device.type == "cuda" and find_spec("liger_kernel")
    peers = [LIGER, TRANSFORMERS] if has_liger else [TRANSFORMERS]
    first += [(name, "135M", 16_384) for name in (OURS, *peers)]
    first += [(name, "64M", 16_384) for name in peers]
    return first, [(COMPILED, *case) for case in GRID if case not in COMPILED_EARLY]


def peak(device: torch.device) -> Measures:
    """Of products, by type, and of a copy, bytes read and written."""
    seconds = 0.5
    products = {n: matmul_peak(device, seconds, DTYPES[n]) for n in ("bf16", "fp32")}
    source = torch.empty(COPIED[device.type], dtype=torch.uint8, device=device)
    target, times = torch.empty_like(source), []
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        target.copy_(source)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return {"flops_per_second": products, "copied_per_second": 2 * len(source) / min(times)}


def speed(
    contestant: str, shape: str, tokens: int | None, device: torch.device, small: bool
) -> Measures:
    """All rounds together, after one to warm up."""
    steps = 1 if small else 10 if contestant.startswith(OURS) else 5
    arguments = ["--device", str(device), "--only", shape, "--contestant", contestant]
    arguments += ["--precision", "bf16", "--steps", str(steps)]
    arguments += [] if tokens is None else ["--tokens-per-step", str(tokens)]
    options = train_throughput.parse(arguments)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    work = train_throughput.contestant(options)
    work()
    rounds = [work() for _ in range(options.rounds)]

    def total(key: str) -> Any:
        return sum(measures[key] for measures in rounds)

    figures = {
        "contestant": contestant,
        "shape": shape,
        "tokens_per_step": total("tokens") / total("steps"),
        "tokens_per_second": total("tokens") / total("seconds"),
        "flops_per_second": total("model_flops") / total("seconds"),
        "ms": 1e3 * total("seconds") / total("steps"),
        "peak_gb": peak_memory(),
    }
    if contestant.startswith(OURS):
        figures |= {key: rounds[-1][key] for key in ("first_step", "graphs", "notes")}
        figures |= {key: total(key) for key in ("eager", "batches")}
        figures["host_ms"] = 1e3 * total("host_seconds") / total("steps")
    return figures


def first_command_parts(small: bool) -> Measures:
    """README's first command, or a little of it."""
    few = ["--max-steps", "2", "--limit", "40"] if small else []
    with tempfile.TemporaryDirectory() as folder:
        return first_command.measure(Path(folder), few)


class Recorder(torch.optim.Optimizer):
    """Keeps the gradients of its last step, and changes nothing."""

    def __init__(self, model: Transformer) -> None:
        self.names = [name for name, _ in model.named_parameters()]
        super().__init__(model.parameters(), {"lr": 0.0})
        self.gradients: dict[str, Tensor] = {}

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        parameters = [p for group in self.param_groups for p in group["params"]]
        pairs = zip(self.names, parameters, strict=True)
        self.gradients = {name: p.grad.clone() for name, p in pairs if p.grad is not None}


class Same:
    """Whether what should be the same is."""

    def __init__(self, shape: str, device: torch.device, tokens: int) -> None:
        arguments = ["--device", str(device), "--only", shape, "--tokens-per-step", str(tokens)]
        self._workload = Workload(train_throughput.parse(arguments))
        self._device, self._tokens = device, tokens

    def graphed_step(self) -> Measures:
        """Loss and gradients of a step of two micro-batches, and a few steps of AdamW.

        A graphed step's beside an eager one's without padding; for scale, that one's beside
        float32's.
        """
        plan = self._workload.plan(self._tokens * 5 // 8)
        exact, in_fp32, _ = self._gradients(plan, "fp32", eager=True)
        slow, in_bf16, _ = self._gradients(plan, "bf16", eager=True)
        fast, graphed, state = self._gradients(plan, "bf16", eager=False)
        losses = {}
        for eager in (True, False):
            model, config = self._new_model(), self._config("bf16")
            own = TrainState(model, config)
            own.may_capture = own.may_capture and not eager
            losses[eager] = [r.loss.item() for r in train(model, plan[:6], config, state=own)]
        return {
            "graphs": state.graphs is not None,
            "notes": state.notes,
            "micro_batches": len(plan[0]),
            "loss": fast,
            "loss_difference": fast - slow,
            "bf16_loss_difference": slow - exact,
            "worst_gradient": _worst(graphed, in_bf16),
            "bf16_worst_gradient": _worst(in_bf16, in_fp32),
            "adamw_losses_differ_by": max(
                abs(a - b) for a, b in zip(losses[True], losses[False], strict=True)
            ),
        }

    def curves(self, steps: int) -> Measures:
        """The loss step by step in each precision, at one learning rate."""
        plan, out = self._workload.plan()[:steps], {}
        for precision in PRECISIONS:
            model, config = self._new_model(), self._config(precision)
            state = TrainState(model, config)
            results = list(train(model, plan, config, state=state))
            skipped = sum(not math.isfinite(r.grad_norm) for r in results)
            losses = [r.loss.item() for r in results]
            out[precision] = {"losses": losses, "skipped": skipped}
            out[precision] |= {"scale": state.scaler.get_scale(), "notes": state.notes}
        return out

    def repeated(self, deterministic: bool = False) -> Measures:
        """Whether six steps leave the same bits: done twice, and resumed after three."""
        figures: Measures = {}
        plan = self._workload.plan()[:6]
        try:
            with _deterministic(deterministic):
                return figures | self._repeated(plan)
        except RuntimeError as error:
            if not deterministic:
                raise
            figures["refused"] = str(error).splitlines()[0]
        with _deterministic(deterministic, warn_only=True):
            return figures | self._repeated(plan)

    def _repeated(self, plan: Steps) -> Measures:
        config = self._config("bf16")
        runs = []
        for _ in range(2):
            model = self._new_model()
            state = TrainState(model, config)
            results = list(train(model, plan, config, state=state))
            runs.append(_bits(model, results))
        model = self._new_model()
        first = TrainState(model, config)
        results = []
        for result in train(model, plan, config, state=first):
            results.append(result)
            if result.step == len(plan) // 2:
                break
        saved = copy.deepcopy((model.state_dict(), first.state_dict()))
        resumed = self._new_model()
        resumed.load_state_dict(saved[0])
        second = TrainState(resumed, config)
        second.load_state_dict(saved[1])
        results += train(resumed, plan, config, state=second)
        return {
            "graphs": state.graphs is not None,
            "notes": state.notes,
            "twice": _equal(*runs),
            "resumed": _equal(runs[0], _bits(resumed, results)),
        }

    def _gradients(
        self, plan: Steps, precision: Precision, eager: bool
    ) -> tuple[float, dict[str, Tensor], TrainState]:
        """Of the plan's first step; eagerly without padding, or as `train` does it."""
        model, config = self._new_model(), self._config(precision, max_grad_norm=math.inf)
        recorder = Recorder(model)
        state = TrainState(model, config, recorder)
        if eager:
            result = train_step(model, plan[0], config, state, 1.0)
        else:
            result = next(train(model, plan, config, state=state))
        return result.loss.item(), recorder.gradients, state

    def _new_model(self) -> Transformer:
        return Transformer(self._workload.config).initialize(1).to(self._device)

    def _config(self, precision: Precision, max_grad_norm: float = 1.0) -> TrainConfig:
        return TrainConfig(
            precision=precision,
            learning_rate=LEARNING_RATE,
            warmup_ratio=0.0,
            min_lr_ratio=1.0,
            max_grad_norm=max_grad_norm,
            compile="off",
        )


@contextmanager
def _deterministic(on: bool, warn_only: bool = False) -> Iterator[None]:
    torch.use_deterministic_algorithms(on, warn_only=warn_only)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _worst(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[float | str]:
    """The largest relative difference of a tensor, and its name."""
    assert ours.keys() == theirs.keys()
    differences = {
        name: float((ours[name] - x).norm() / x.norm().clamp_min(1e-30))
        for name, x in theirs.items()
    }
    name = max(differences, key=differences.__getitem__)
    return [differences[name], name]


def _bits(model: Transformer, results: list[StepResult]) -> list[Tensor]:
    return [*(r.loss for r in results), *(p.detach().clone() for p in model.parameters())]


def _equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
