"""Drive a training run: train, log, validate, save and stop. Pretraining and fine-tuning use it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from minimind.atomic_io import folder_lock
from minimind.data.packing import Batch
from minimind.data.plan import Batches, Steps
from minimind.data.show import show_row
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training.checkpoint import BEST, save_checkpoint
from minimind.training.loop import train
from minimind.training.loss import token_scores
from minimind.training.metrics import STOPPED, NonFinite, StepLogger
from minimind.training.precision import Precision, autocast, choose_precision
from minimind.training.progress import Progress
from minimind.training.resume import TrainingError, resume, rows_hash, run_fingerprint
from minimind.training.run_folder import CHECKPOINTS, METRICS, NON_FINITE, RunWeights
from minimind.training.state import TrainConfig, TrainState
from minimind.training.step import supervised_states
from minimind.training.stop import stop_requests

ROUNDED = "measured in float32; saved in bf16"

Measure = Callable[[Transformer, Precision], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """When a run validates, saves and stops."""

    eval_every: int | None = None
    """Steps between two validations; none: an epoch."""
    save_every: int | None = None
    """Steps between two checkpoints, 0 for none before the end; none: an epoch."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep, the newest."""
    max_minutes: float | None = None
    """Stop after this many minutes, with a checkpoint to resume; the schedule isn't shortened."""
    save_dtype: Literal["fp32", "bf16"] = "fp32"
    """Type of the weights written for use; checkpoints are always float32."""
    shard: int | None = None
    """Under torchrun, how many processes hold one copy of the weights together; default: all."""

    def __post_init__(self) -> None:
        least = {"eval_every": 1, "save_every": 0, "keep_checkpoints": 1, "max_minutes": 0}
        for name, low in {**least, "shard": 1}.items():
            value = getattr(self, name)
            if value is not None and not value >= low:  # NaN isn't either
                raise ValueError(f"{name} is {value}; use {low} or more")


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """How a run ended. Losses are validation losses, None without validation data.

    The best weights are those in the run's folder: the best of the scheduled validations. A run
    that stops before the first of them (but step 0's) has the weights of its last step there,
    validated beside the schedule.
    """

    steps: int  # done in all
    first_loss: float | None  # before the first step
    best_loss: float | None
    last_loss: float | None
    best_step: int
    last_loss_step: int  # of `last_loss`; the last step, unless the run was stopped
    finished: bool  # False if a signal or the time limit stopped it
    supervised_per_second: float  # of this call's training, without validating and saving
    skipped: int  # steps of this call that changed nothing, since fp16 gradients overflowed
    precision: Precision  # what "auto" chose
    eager_batches: int  # of this call: beyond the fixed shape that graphs or --compile need
    notes: tuple[str, ...]  # how it computed, and why
    rounded: str | None = None  # how losses were measured, where the saved weights are rounded


def fit(
    model: Transformer,
    tokenizer: Tokenizer,
    steps: Steps,
    config: TrainConfig,
    run: RunConfig,
    out: Path,
    identity: Mapping[str, Any],
    options: Mapping[str, Any],
    validation: Batches | Measure | None = None,
    files: Sequence[str] = (),
    system: str | None = None,
) -> RunResult:
    """Train to the end of `steps` from the newest checkpoint in `out`, or from the beginning.

    A signal or the time limit stops it after a step, with a checkpoint. Under torchrun every
    process calls it with the same arguments; the main one writes. `run_folder` has the files.

    Args:
        out: the run's folder; it exists.
        identity: what a checkpoint must agree with besides model, tokenizer and `config`, by name.
        options: the command's, by name: says which of them made another run.
        validation: batches to measure the loss on, or a function that returns figures by name,
            "validation_loss" among them.
        files: names of the data files, to name rows in errors.
        system: the system message of the rows, to record with the weights.

    Raises:
        ValueError: `run.shard` doesn't divide the processes.
        TrainingError: a loss isn't finite, or the checkpoint belongs to another run.
    """
    distributed.init_distributed(model.device)
    rank, world_size = distributed.rank(), distributed.world_size()
    lengths = steps.lengths[steps.rows_of(0)].tolist()  # a typical batch's
    chosen = choose_precision(config.precision, model, lengths)
    precision, reason = distributed.broadcast(chosen)  # rank 0's decides
    distributed.shard(model, precision, run.shard)
    state = TrainState(model, replace(config, precision=precision))
    state.notes += [reason] if reason else []
    fingerprint = run_fingerprint(model, tokenizer, steps, config, identity, options)
    metrics = out / METRICS if rank == 0 else None
    lag = 1 if model.device.type == "cuda" else 0
    weights = RunWeights(out, model, tokenizer, run.save_dtype, system)
    stopping, notes_said = False, 0

    def is_due(every: int | None, step: int) -> bool:
        every = steps.steps_per_epoch if every is None else every
        return step == len(steps) or (every > 0 and step % every == 0)

    with (
        folder_lock(out) if rank == 0 else nullcontext(),
        nullcontext(resume(out, model, state, steps, fingerprint)) as (losses, found),  # locked
        stop_requests(run.max_minutes) as stop_requested,
        StepLogger(metrics, state.step, state.precision, lag) as log,
        Progress(len(steps), log, show=rank == 0) as progress,
    ):

        def measure(**mark: bool) -> float:
            assert validation
            figures = _measure(model, validation, state.precision)
            if not math.isfinite(loss := figures["validation_loss"]):
                raise TrainingError(_why_not_finite(loss, state.step, out))
            log.write({"step": state.step, **figures, **mark})
            progress.show()
            words = (f"{name.replace('_', ' ')} {x:.4f}" for name, x in figures.items())
            progress.say(f"step {state.step}: {', '.join(words)}")
            return loss

        def best_step() -> int:
            return min(losses, key=losses.__getitem__)  # the first of equals

        def validate() -> None:
            loss = losses[state.step] = measure()
            if state.step == best_step():
                weights.save_best(state.step, loss)
            else:
                weights.restore_best(best_step(), losses[best_step()])

        weights.best = found
        if any(losses):  # else a stop's weights stay until the first scheduled validation
            weights.restore_best(best_step(), losses[best_step()])
        if validation and state.step not in losses and is_due(run.eval_every, state.step):
            validate()
        log.start_clock()
        for result in train(model, steps.of_rank(rank, world_size), config, state=state):
            stopping = distributed.any_rank(stop_requested())
            # A run that stops here validates when it is resumed.
            validating = validation and not stopping and is_due(run.eval_every, result.step)
            saving = stopping or is_due(run.save_every, result.step)
            if bad := log.add(result, wait=bool(validating or saving)):
                raise TrainingError(_name_rows(bad, steps, out, files, tokenizer))
            for note in state.notes[notes_said:]:
                progress.say(note)
            notes_said = len(state.notes)
            progress.update()
            if validating:
                validate()
            if saving:
                extra = {
                    "fingerprint": fingerprint,
                    "rows": rows_hash(steps, result.step),
                    "validation_losses": [*losses.items()],
                }
                place, keep = out / CHECKPOINTS, run.keep_checkpoints
                saved = save_checkpoint(place, model, state, extra, keep, weights.best)
                weights.best = saved / BEST if losses else None
            if validating or saving:
                log.start_clock()
            if stopping:
                break
        measured = dict(losses)
        if stopping and validation and not any(losses):  # only step 0 has been validated
            measured[state.step] = measure(**{STOPPED: True})
            weights.save_stopped(state.step, measured[state.step])
        weights.save_last(state.step, measured.get(state.step))
        if not validation:
            weights.save_best(state.step, None)
        weights.end(finished=not stopping)
    last_loss_step = max(measured, default=state.step)
    best = best_step() if losses else state.step
    if len(measured) > len(losses):
        best = last_loss_step
    return RunResult(
        steps=state.step,
        first_loss=losses.get(min(losses, default=0)),
        best_loss=measured.get(best),
        last_loss=measured.get(last_loss_step),
        best_step=best,
        last_loss_step=last_loss_step,
        finished=not stopping,
        supervised_per_second=log.supervised_per_second,
        skipped=log.skipped,
        precision=state.precision,
        eager_batches=state.eager_batches,
        notes=tuple(state.notes),
        rounded=ROUNDED if run.save_dtype == "bf16" and measured else None,
    )


def _measure(
    model: Transformer, validation: Batches | Measure, precision: Precision
) -> dict[str, float]:
    """A validation's figures by name, the same on every rank."""
    if isinstance(validation, Batches):
        batches = validation.of_rank(distributed.rank(), distributed.world_size())
        return {"validation_loss": validation_loss(model, batches, precision)}
    full = distributed.gather_model(model)
    figures: dict[str, float] = {}
    if distributed.is_main_process():
        figures = dict(validation(full.to(model.device), precision))
    return distributed.broadcast(figures)


def validation_loss(model: Transformer, batches: Iterable[Batch], precision: Precision) -> float:
    """The mean loss per supervised token over batches, whatever their cut."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)  # losses, tokens
    with torch.no_grad(), autocast(precision, model.device):
        for batch in batches:
            batch = batch.to(model.device)
            states, labels = supervised_states(model, batch)
            losses, _ = token_scores(states, model.head_weight, labels)
            weighted = losses if batch.weights is None else losses * batch.weights
            sums[0] += weighted.double().sum()
            sums[1] += batch.num_supervised
    model.train()
    total, count = distributed.all_reduce_sum(sums).tolist()
    return float(total / count)


def _why_not_finite(loss: float, step: int, out: Path) -> str:
    remedy = (
        f"lower --learning-rate or use --precision fp32; checkpoints in {out} are intact"
        if step
        else "nothing is trained yet: use --precision fp32, another --model or other rows"
    )
    return f"step {step}: the validation loss is {loss}; {remedy}"


def _name_rows(
    bad: NonFinite, steps: Steps, out: Path, files: Sequence[str], tokenizer: Tokenizer
) -> str:
    """Name the rows of a step whose loss or norm isn't finite, and write them to a file."""
    result, loss, norm = bad
    dataset, rows = steps.dataset, np.array(result.rows)
    places = zip(rows, dataset.take("file", rows), dataset.take("line", rows), strict=True)
    names = [
        f"{files[file]}:{line}" if line and files else f"row {row}" for row, file, line in places
    ]
    path = out / NON_FINITE if distributed.is_main_process() else Path(os.devnull)
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for name, row in zip(names, result.rows, strict=True):
            example = steps.dataset[row]
            shown = show_row(example, tokenizer, colour=False)
            entry = {"step": result.step, "row": name, "shown": shown, **asdict(example)}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (
        f"step {result.step}: the loss is {loss} and the gradient's norm {norm}; its rows are "
        f"{', '.join(names[:20])}{more}. Lower --learning-rate or use --precision fp32, and look "
        f"at {out / NON_FINITE}; checkpoints in {out} are from before it"
    )
