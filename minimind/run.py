"""Drive a training run: bar, metrics, validation, checkpoints. Shared by commands.

    runs/NAME-1/
        config.json, model.safetensors, ...   the best weights: a Hugging Face folder
        last/                    the last weights, likewise
        checkpoints/             what --resume goes on from
        metrics.jsonl run.json   what happened, and with which options and versions

Knows no rows and no arguments.
"""

from __future__ import annotations

import io
import json
import math
import platform
import resource
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm

from minimind.data.packing import Batch, Steps
from minimind.model.pretrained import save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training.checkpoint import load_checkpoint, save_checkpoint
from minimind.training.compiling import Compiling
from minimind.training.loop import (
    StepResult,
    TrainConfig,
    TrainState,
    supervised_states,
    train,
)
from minimind.training.loss import token_losses
from minimind.training.precision import Precision, autocast
from minimind.training.prefetch import prefetch
from minimind.version import __version__


class TrainingError(RuntimeError):
    """A run that can't go on; the last checkpoint is intact."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run needs besides the model and the steps.

    Attributes:
        out: the run's folder; it exists.
        validation: batches to measure the loss on, none for no validation.
        eval_every: steps between two validations.
        save_every: steps between two checkpoints, 0 for none before the end.
        save_dtype: of the weights written for use; checkpoints are float32 always.
        identity: what a checkpoint must agree with to be gone on from.
        say: prints a line.
        files: names of the data files, for naming rows in errors.
        max_minutes: stop between two steps after this long, with a checkpoint.
    """

    out: Path
    validation: list[Batch]
    eval_every: int
    save_every: int
    save_dtype: torch.dtype
    identity: dict[str, Any]
    say: Callable[[str], None]
    files: tuple[str, ...] = ()
    max_minutes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: optimizer steps done in all.
        first_loss, best_loss, last_loss: validation loss before, at its best, at the end; None
            without validation data.
        best_step: where the best was.
        finished: False if it stopped before its last step.
        supervised_per_second: over the training of this call, validation and saving left out.
        skipped: steps of this call that changed nothing, since fp16 gradients overflowed.
        precision: of the matrix products; what "auto" came to.
        compiling: whether layers ran compiled, and why.
    """

    steps: int
    first_loss: float | None
    best_loss: float | None
    last_loss: float | None
    best_step: int
    finished: bool
    supervised_per_second: float
    skipped: int
    precision: Precision
    compiling: Compiling


def fit(
    model: Transformer, tokenizer: Tokenizer, steps: Steps, config: TrainConfig, run: Run
) -> Outcome:
    """Train to the end of `steps` from the newest checkpoint of `run.out`, or from the beginning.

    Raises:
        TrainingError: the loss isn't finite, or a checkpoint belongs to another run.
    """
    state = TrainState(model, config)
    history = _resume(model, state, run)
    started = time.monotonic()
    training_seconds, supervised, skipped = 0.0, 0, 0
    unread: list[_Reading] = []
    deadline = math.inf if run.max_minutes is None else started + 60 * run.max_minutes
    with _Metrics(run.out / "metrics.jsonl", state.step) as metrics:

        def validate() -> None:
            loss = validation_loss(model, run.validation, state.precision)
            metrics.write({"step": state.step, "validation_loss": loss})
            history.add(state.step, loss)
            if history.best_step == state.step:
                save(run.out, model, tokenizer, run.save_dtype)

        if run.validation and not history.steps:
            validate()

        def note(reading: _Reading, seconds: float) -> None:
            nonlocal training_seconds, supervised, skipped
            result, (loss, norm) = reading.result, reading.wait()
            # In fp16 an infinite gradient is an overflow: the scaler skips that step.
            overflow = state.precision == "fp16" and not math.isfinite(norm)
            if not math.isfinite(loss if overflow else loss + norm):
                raise TrainingError(_not_finite(result, loss, norm, steps, run))
            skipped += overflow
            supervised += result.supervised
            training_seconds += seconds
            metrics.write(_line(result, loss, None if overflow else norm, seconds))
            bar.set_postfix_str(
                f"loss {loss:.3f}, lr {result.learning_rate:.1e}, "
                f"{supervised / training_seconds:,.0f} supervised tokens/s"
            )

        bar = tqdm(
            train(model, steps, config, state),
            total=len(steps),
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
        )
        clock = time.perf_counter()  # stands while this function validates and saves
        for result in bar:
            unread.append(_Reading(result))
            last, stopping = result.step == len(steps), time.monotonic() > deadline
            validating = run.validation and (last or result.step % run.eval_every == 0)
            saving = last or stopping or (run.save_every and result.step % run.save_every == 0)
            while len(unread) > (0 if validating or saving else _behind(state.device)):
                unread[0].wait()
                clock, before = time.perf_counter(), clock
                note(unread.pop(0), clock - before)
            if validating:
                validate()
                bar.write(
                    f"step {result.step}: validation loss {history.losses[-1]:.4f}", sys.stderr
                )
            if saving:
                extra = {"identity": run.identity, "steps": history.steps, "losses": history.losses}
                save_checkpoint(run.out / "checkpoints", model, state, extra)
            if validating or saving:
                clock = time.perf_counter()
            if stopping:
                break
        bar.close()

    save(run.out / "last", model, tokenizer, run.save_dtype)
    if not run.validation:
        save(run.out, model, tokenizer, run.save_dtype)
    return Outcome(
        steps=state.step,
        first_loss=history.losses[0] if history.losses else None,
        best_loss=min(history.losses, default=None),
        last_loss=history.losses[-1] if history.losses else None,
        best_step=history.best_step if history.losses else state.step,
        finished=state.step == len(steps),
        supervised_per_second=supervised / training_seconds if training_seconds else 0.0,
        skipped=skipped,
        precision=state.precision,
        compiling=state.compiling or Compiling(),
    )


def validation_loss(model: Transformer, batches: list[Batch], precision: Precision) -> float:
    """The mean loss per supervised token over batches, whatever their cut."""
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64, device=model.device), 0
    with torch.no_grad(), autocast(precision, model.device):
        for batch in prefetch(batches, model.device):
            states, labels = supervised_states(model, batch)
            losses = token_losses(states, model.head_weight, labels, batch.weights)
            total += losses.double().sum()
            count += batch.num_supervised
    model.train()
    return float(total) / count


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        ValueError: the device isn't there.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        try:
            device = torch.device(name)
            torch.zeros((), device=device)
        except (RuntimeError, AssertionError) as error:
            first_line = str(error).splitlines()[0]
            raise ValueError(
                f"device {name}: {first_line}; use auto, or a device that is here"
            ) from error
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32 for what isn't in half precision anyway
    return device


def new_folder(name: str, root: Path = Path("runs")) -> Path:
    """The first of runs/NAME-1, runs/NAME-2, ... that isn't there."""
    number = 1
    while (root / f"{name}-{number}").exists():
        number += 1
    return root / f"{name}-{number}"


def compile_decoding(model: Transformer, rows: int, say: Callable[[str], None]) -> None:
    """Compile what decodes a token, or say why it stays eager."""
    try:
        model.compile_decoding(rows)
    except Exception as error:  # whatever the compiler raises, answers can be given without it
        say(f"not compiled: {type(error).__name__}: {error}".splitlines()[0])


def versions() -> dict[str, str]:
    """What a result depends on besides data and options."""
    found = {"python": platform.python_version(), "threads": str(torch.get_num_threads())}
    names = ("torch", "tokenizers", "safetensors", "numpy")
    return {"minimind": __version__} | found | {name: version(name) for name in names}


def fail(code: int, error: object) -> int:
    """Say what went wrong, and hand on the exit code."""
    print(f"error: {error}", file=sys.stderr)
    return code


def prepare_terminal() -> None:
    """Read and print Korean under any locale, and print warnings as one-line notes."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            errors = "strict" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(encoding="utf-8", errors=errors)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)


def peak_memory() -> str:
    """The most memory this process has held, on the GPU too where there is one."""
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is bytes there, KiB elsewhere
    peak = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.2f} GB"
    if torch.cuda.is_available():
        peak += f", {torch.cuda.max_memory_allocated() / 1e9:.2f} GB on the GPU"
    return peak


class _History:
    """Validation losses so far."""

    def __init__(self, steps: list[int], losses: list[float]) -> None:
        self.steps, self.losses = steps, losses

    def add(self, step: int, loss: float) -> None:
        self.steps.append(step)
        self.losses.append(loss)

    @property
    def best_step(self) -> int:
        return self.steps[self.losses.index(min(self.losses))]


class _Metrics:
    """metrics.jsonl, without lines of steps that will be done again."""

    def __init__(self, path: Path, step: int) -> None:
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                if line.endswith("\n") and step and json.loads(line)["step"] <= step:
                    kept.append(line)
        path.write_text("".join(kept), encoding="utf-8")
        self._file: TextIO = path.open("a", encoding="utf-8")

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, values: Mapping[str, float | None]) -> None:
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()


def _resume(model: Transformer, state: TrainState, run: Run) -> _History:
    def check(extra: dict[str, Any]) -> None:
        for name, value in run.identity.items():
            if extra["identity"].get(name) != value:
                raise TrainingError(
                    f"{run.out}: its checkpoint was trained with {name} "
                    f"{extra['identity'].get(name)}, this run has {value}; "
                    "use the same data and options, or another --out"
                )

    extra, passed_over = load_checkpoint(run.out / "checkpoints", model, state, check)
    for sentence in passed_over:
        run.say(sentence)
    if extra is None:
        return _History([], [])
    run.say(f"going on from step {state.step}")
    return _History(extra["steps"], extra["losses"])


def _behind(device: torch.device) -> int:
    """How many steps' numbers may be unread: on CUDA one, read while the next step runs."""
    return 1 if device.type == "cuda" else 0


class _Reading:
    """A step's loss and gradient norm on their way to the host."""

    def __init__(self, result: StepResult) -> None:
        self.result = result
        # Queued behind this step and before the next one, which needn't be over to read them.
        numbers = torch.stack([result.loss, result.grad_norm])
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrived = torch.cuda.Event() if numbers.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> tuple[float, float]:
        """The loss and the norm, once the step is over."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, norm = self._numbers.tolist()
        return loss, norm


def _line(
    result: StepResult, loss: float, norm: float | None, seconds: float
) -> dict[str, float | None]:
    return {
        "step": result.step,
        "loss": loss,
        "learning_rate": result.learning_rate,
        "grad_norm": norm,  # null: fp16 gradients overflowed, the step was skipped
        "tokens": result.tokens,
        "supervised": result.supervised,
        "seconds": round(seconds, 4),
    }


def _not_finite(result: StepResult, loss: float, norm: float, steps: Steps, run: Run) -> str:
    named = np.array(result.rows[:20])
    files, lines = (steps.dataset.table.take(name, named).tolist() for name in ("file", "line"))
    rows = ", ".join(
        f"{run.files[file]}:{line}" if line else f"row {row}"
        for row, file, line in zip(named, files, lines, strict=True)
    )
    return (
        f"step {result.step}: the loss is {loss} and the gradient's norm "
        f"{norm}; its rows are {rows}. Lower --learning-rate "
        f"or use --precision fp32; checkpoints in {run.out} are from before it"
    )
