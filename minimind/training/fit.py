"""Drive a training run: bar, metrics, validation, checkpoints. Shared by commands.

    runs/NAME-1/
        config.json, model.safetensors, ...   the best weights: a Hugging Face folder
        last/                    the last weights, likewise
        checkpoints/             what --resume goes on from
        metrics.jsonl run.json   what happened, and with which options and versions
        non_finite_rows.jsonl    what a step that ended the run was trained on

Knows no rows and no arguments.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from minimind.atomic_io import folder_lock
from minimind.data.chatml import CHAT_TEMPLATE
from minimind.data.packing import Batch, Batches, Steps
from minimind.data.show import show_row
from minimind.model.pretrained import save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training.checkpoint import load_checkpoint, save_checkpoint
from minimind.training.compiling import Compiling
from minimind.training.environment import processor, versions
from minimind.training.loop import (
    StepResult,
    TrainConfig,
    TrainState,
    supervised_states,
    train,
)
from minimind.training.loss import token_losses
from minimind.training.metrics import Metrics, Reader, behind
from minimind.training.precision import Precision, autocast, resolve_precision
from minimind.training.prefetch import prefetch
from minimind.training.resume import Origin, TrainingError, changes, refusal
from minimind.training.stop import Stop

NON_FINITE = "non_finite_rows.jsonl"


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run needs besides the model and the steps.

    Attributes:
        out: the run's folder; it exists.
        validation: batches to measure the loss on, empty for no validation.
        eval_every: steps between two validations.
        save_every: steps between two checkpoints, 0 for none before the end.
        save_dtype: of the weights written for use; checkpoints are float32 always.
        identity: what a checkpoint must agree with to be gone on from, besides the training
            options, the tokenizer and the model's sizes.
        say: prints a line.
        files: names of the data files, for naming rows in errors.
        max_minutes: stop between two steps after this long, with a checkpoint.
        keep: how many checkpoints to leave.
        options: of the command, for its checkpoints.
        go_on: says how to go on where the run was stopped.
        measure: figures of a model at a validation, "validation_loss" among them; default: this
            loss alone, over `validation`.
        shard: of several processes, how many hold one copy of the model together; None for all.
    """

    out: Path
    validation: Batches | list[Batch]
    eval_every: int
    save_every: int
    save_dtype: torch.dtype
    identity: dict[str, Any]
    say: Callable[[str], None]
    files: tuple[str, ...] = ()
    max_minutes: float | None = None
    keep: int = 2
    options: dict[str, Any] = field(default_factory=dict)
    go_on: str = "the same command goes on"
    shard: int | None = None
    measure: Callable[[Transformer, Precision], Mapping[str, float]] | None = None

    @property
    def validates(self) -> bool:
        """Whether there is anything to validate on."""
        return bool(self.validation or self.measure)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended.

    Attributes:
        steps: optimizer steps done in all.
        first_loss, best_loss, last_loss: validation loss before, at its best, at the end; None
            without validation data.
        best_step: where the best was.
        finished: False if a signal or the time limit stopped it.
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

    A signal or the time limit stops it after a step, with a checkpoint. Under torchrun every
    process calls it, with the same arguments, and the first one says and writes all.

    Raises:
        ValueError: the tokenizer has ids that the model has no rows for, or the processes can't be
            parted as `run.shard` says.
        TrainingError: the loss isn't finite, a checkpoint belongs to another run, or another
            process is gone.
    """
    _check_vocabulary(model, tokenizer)
    distributed.init_distributed(model.device)
    first, place = distributed.is_main_process(), (distributed.rank(), distributed.world_size())
    precision = distributed.broadcast(resolve_precision(config.precision, model.device))
    distributed.shard(model, precision, run.shard)
    state = TrainState(model, replace(config, precision=precision))
    origin = _origin(model, tokenizer, steps, config, run)
    history = _resume(model, state, steps, origin, run)
    stopping, journal = False, run.out / "metrics.jsonl" if first else None
    with (
        folder_lock(run.out) if first else nullcontext(),
        _explained(run),
        Stop(run.max_minutes) as stop,
        Metrics(journal, state.step) as metrics,
    ):
        judge = _Judge(model, tokenizer, state, history, metrics, run, len(steps))
        if judge.due(state.step) and state.step not in history.steps:
            judge.validate()
        reader = Reader(
            state.precision,
            metrics,
            lambda *of_a_step: TrainingError(_not_finite(of_a_step, steps, run, tokenizer)),
        )
        bar = tqdm(
            train(model, steps.of_rank(*place), config, state),
            total=len(steps),
            initial=state.step,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.1 if sys.stderr.isatty() else 30,  # seconds; a log needs fewer lines
            disable=not first,
        )
        reader.start_clock()
        for result in bar:
            stopping, last = distributed.any_rank(stop.wanted()), result.step == len(steps)
            # If it stops here, the next call validates.
            validating = judge.due(result.step) and not stopping
            saving = last or stopping or (run.save_every and result.step % run.save_every == 0)
            reader.add(result)
            reader.read(0 if validating or saving else behind(state.device))
            bar.set_postfix_str(reader.latest, refresh=False)
            if validating:
                shown = judge.validate()
                if first:
                    bar.write(shown, sys.stderr)
            if saving:
                extra = _extra(origin, history, steps, state.step)
                save_checkpoint(run.out / "checkpoints", model, state, extra, run.keep)
            if validating or saving:
                reader.start_clock()
            if stopping:
                break
        bar.close()
        judge.keep(run.out / "last")
        if not run.validates:
            judge.keep(run.out)
    if stopping:
        run.say(f"stopped after step {state.step} of {len(steps)}; {run.go_on}")
    return _outcome(state, history, reader, finished=not stopping)


class _Judge:
    """Validates a run's model, and keeps its weights: those that were best so far, or the last."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        state: TrainState,
        history: _History,
        metrics: Metrics,
        run: Run,
        last_step: int,
    ) -> None:
        self._model, self._tokenizer, self._state = model, tokenizer, state
        self._history, self._metrics, self._run = history, metrics, run
        self._last_step = last_step
        self._batches = run.validation
        if isinstance(self._batches, Batches):
            self._batches = self._batches.of_rank(distributed.rank(), distributed.world_size())

    def due(self, step: int) -> bool:
        """Whether to validate after a step."""
        every = self._run.eval_every
        return self._run.validates and (step % every == 0 or step == self._last_step)

    def validate(self) -> str:
        """Measure, note, keep the weights if they are the best, and say the figures."""
        step = self._state.step
        figures = self._figures()
        self._metrics.write({"step": step, **figures})
        self._history.add(step, figures["validation_loss"])
        if self._history.best_step == step:
            self.keep(self._run.out)
        told = (f"{name.replace('_', ' ')} {value:.4f}" for name, value in figures.items())
        return f"step {step}: {', '.join(told)}"

    def keep(self, folder: Path) -> None:
        """Save the weights for use."""
        weights = distributed.gather_model(self._model)
        if distributed.is_main_process():
            save(folder, weights, self._tokenizer, self._run.save_dtype)

    def _figures(self) -> dict[str, float]:
        model, precision = self._model, self._state.precision
        if not self._run.measure:
            return {"validation_loss": validation_loss(model, self._batches, precision)}
        whole, figures = distributed.gather_model(model), None
        if distributed.is_main_process():
            figures = dict(self._run.measure(whole.to(model.device), precision))
        return distributed.broadcast(figures) or {}


def validation_loss(model: Transformer, batches: Iterable[Batch], precision: Precision) -> float:
    """The mean loss per supervised token over batches, whatever their cut."""
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=model.device)  # losses, tokens
    with torch.no_grad(), autocast(precision, model.device):
        for batch in prefetch(batches, model.device):

            def losses(model: Transformer, batch: Batch = batch) -> torch.Tensor:
                states, labels = supervised_states(model, batch)
                return token_losses(states, model.head_weight, labels, batch.weights)

            sums[0] += model(losses).double().sum()
            sums[1] += batch.num_supervised
    model.train()
    total, count = distributed.all_reduce_sum(sums).tolist()
    return float(total / count)


@contextmanager
def _explained(run: Run) -> Iterator[None]:
    """Say it where an error came up because another process is gone."""
    try:
        yield
    except RuntimeError as error:
        if not distributed.is_loss_of_another(error):
            raise
        raise TrainingError(
            f"another process of this run is gone, torchrun names it ({error}); {run.go_on}"
        ) from error


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


def _check_vocabulary(model: Transformer, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids and the model rows for "
            f"{model.config.vocab_size}; use the two of one model, or a larger vocab_size"
        )


def _origin(
    model: Transformer, tokenizer: Tokenizer, steps: Steps, config: TrainConfig, run: Run
) -> Origin:
    sizes = {f"config.json's {name}": value for name, value in model.config.to_hf().items()}
    training = {f"--{name.replace('_', '-')}": value for name, value in asdict(config).items()}
    fingerprints = {
        "tokenizer": tokenizer.fingerprint,
        "chat template": hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest(),
    }
    on_cuda = model.device.type == "cuda"
    surroundings = versions() | {
        "processor": processor(),
        "device": torch.cuda.get_device_name(model.device) if on_cuda else model.device.type,
        "processes": distributed.world_size(),
        "tokens per batch": steps.tokens_per_batch,
    }
    origin = Origin(
        identity={**fingerprints, **run.identity, **sizes, **training},
        options=run.options,
        surroundings=surroundings,
        planned=len(steps),
    )
    return Origin(**json.loads(json.dumps(asdict(origin), default=str)))  # as it will be read again


def _extra(origin: Origin, history: _History, steps: Steps, step: int) -> dict[str, Any]:
    """What a checkpoint after `step` steps holds besides the state."""
    return {
        "origin": asdict(origin),
        "rows": rows_hash(steps, step),
        "steps": history.steps,
        "losses": history.losses,
    }


def _outcome(state: TrainState, history: _History, reader: Reader, finished: bool) -> Outcome:
    return Outcome(
        steps=state.step,
        first_loss=history.losses[0] if history.losses else None,
        best_loss=min(history.losses, default=None),
        last_loss=history.losses[-1] if history.losses else None,
        best_step=history.best_step if history.losses else state.step,
        finished=finished,
        supervised_per_second=reader.supervised_per_second,
        skipped=reader.skipped,
        precision=state.precision,
        compiling=state.compiling or Compiling(),
    )


def rows_hash(steps: Steps, step: int) -> str:
    """Of the rows that the last of `step` steps trained: another plan would have others."""
    return hashlib.sha256(steps.rows_of(step - 1).tobytes()).hexdigest()


def _resume(
    model: Transformer, state: TrainState, steps: Steps, origin: Origin, run: Run
) -> _History:
    def check(extra: dict[str, Any]) -> None:
        if problem := refusal(Origin(**extra["origin"]), origin):
            raise TrainingError(f"{run.out}: {problem}")

    precision = state.precision
    try:
        extra, passed_over = load_checkpoint(run.out / "checkpoints", model, state, check)
        same_rows = extra is None or extra["rows"] == rows_hash(steps, state.step)
    except (KeyError, TypeError, IndexError) as error:
        raise TrainingError(
            f"{run.out}: its checkpoint isn't what this version writes ({error!r}); go on with the "
            "minimind that wrote it, or use another --out"
        ) from error
    for sentence in passed_over:
        run.say(sentence)
    if extra is None:
        if passed_over:  # a run from the beginning would write over what it left
            raise TrainingError(
                f"{run.out}: none of its checkpoints is whole; restore one, or begin again "
                "in another --out"
            )
        return _History([], [])
    if not same_rows:
        raise TrainingError(
            f"{run.out}: step {state.step} of its checkpoint trained other rows than this plan has "
            "there; use the NumPy and the minimind that it was made with, or another --out"
        )
    run.say(f"going on from step {state.step} of {len(steps)}")
    for sentence in changes(Origin(**extra["origin"]), origin):
        run.say(sentence)
    if distributed.world_size() > 1 and state.precision != precision:  # weights are gathered in it
        run.say(f"not bit-exact: precision was {state.precision} and is {precision}")
        state.compute_in(precision)
    return _History(extra["steps"], extra["losses"])


def _not_finite(
    of_a_step: tuple[StepResult, float, float], steps: Steps, run: Run, tokenizer: Tokenizer
) -> str:
    """Write aside the rows of a step whose loss or norm isn't finite, and name them."""
    result, loss, norm = of_a_step
    rows = np.array(result.rows)
    files, lines = (steps.dataset.table.take(name, rows).tolist() for name in ("file", "line"))
    names = [
        f"{run.files[file]}:{line}" if line else f"row {row}"
        for row, file, line in zip(result.rows, files, lines, strict=True)
    ]
    aside = run.out / NON_FINITE if distributed.is_main_process() else Path(os.devnull)
    with aside.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for name, row in zip(names, result.rows, strict=True):
            example = steps.dataset[row]
            shown = show_row(example, tokenizer, colour=False)
            entry = {"step": result.step, "row": name, "shown": shown, **asdict(example)}
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return (
        f"step {result.step}: the loss is {loss} and the gradient's norm {norm}; its rows are "
        f"{', '.join(names[:20])}{more}. Lower --learning-rate or use --precision fp32, and look "
        f"at {run.out / NON_FINITE}; checkpoints in {run.out} are from before it"
    )
