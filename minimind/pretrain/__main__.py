"""`python -m minimind.pretrain FILES --out RUN`: train a small model from plain text."""

from __future__ import annotations

import json
import math
import shlex
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from minimind.atomic_io import folder_lock
from minimind.cli.command import following_options, less_to_train_on, run_command, write_record
from minimind.cli.options import check_least, flatten, parse_options
from minimind.cli.output import check_room, check_run_folder, output_may_break
from minimind.cli.summary import (
    describe_folder,
    describe_losses,
    describe_plan,
    describe_share,
    describe_speed,
    describe_weights,
)
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.plan import Steps, make_steps
from minimind.data.selection import split_by_prompt
from minimind.data.storage import hash_of
from minimind.model.pretrained import is_state_dict, load, load_tokenizer
from minimind.model.transformer import Transformer
from minimind.pretrain.corpus import build_corpus, scripts_of
from minimind.pretrain.shapes import shape_named
from minimind.pretrain.summary import describe_corpus, describe_mix
from minimind.pretrain.trial import steps_within
from minimind.tokenizer import Tokenizer
from minimind.training import distributed
from minimind.training.checkpoint import newest_checkpoint
from minimind.training.environment import choose_device
from minimind.training.fit import Measure, RunConfig, RunResult, fit
from minimind.training.memory import tokens_that_fit
from minimind.training.precision import DTYPES, Precision, resolve_precision
from minimind.training.run_folder import LAST, METRICS, remove_run
from minimind.training.scoring import score
from minimind.training.state import TrainConfig


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Pretrain a model on text files and JSON rows with a "text".

    The budget is --epochs, --tokens or --minutes; the learning rate falls until it is used up.

    Exit codes: 0 done, or stopped with a checkpoint (the same command resumes it), 1 the run
    failed, 2 a wrong option, 3 data that can't be used, 130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Text files, one document each; .jsonl and .json files of rows with a "text"; with .gz too."""
    out: Path
    """The run's folder; a run that is there is resumed from its newest checkpoint."""
    overwrite: bool = False
    """Delete the run that is in --out first; other files there stay."""
    model: str | None = None
    """A Hugging Face folder, a hub name or a .pth to start from; default: random weights of
    --config."""
    config: str | None = None
    """A new model's shape: tiny, small (the default), medium, or a JSON file like a config.json."""
    tokenizer: str | None = None
    """A folder or hub name with the tokenizer of a new model or of a .pth; default: the embedded
    base's, or the one in the .pth's folder."""
    mix: tuple[float, ...] = ()
    """A weight per file, its share of the tokens trained; default: as much as there is of each."""
    epochs: int | None = None
    """Train for this many times the tokens of all files; default: once."""
    tokens: int | None = None
    """Train this many tokens, a part of the text or several rounds of it."""
    minutes: float | None = None
    """Train for about this long: a trial finds how many steps that is, once for the run."""
    max_length: int = 512
    """Tokens per window; longer documents are cut into several."""
    tokens_per_step: int = 8192
    """Tokens of one optimizer step."""
    tokens_per_batch: int | None = None
    """Tokens in memory at once; changes results in their last bits only; default: 8,192 on a CPU,
    on a GPU what its memory holds."""
    val_fraction: float = 0.01
    """Share of the documents to validate on, chosen by their text; 0 for none."""
    device: str = "auto"
    """auto, cpu or cuda."""
    seed: int = 0
    """Decides the first weights and the order."""
    run: Annotated[RunConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: RunConfig(eval_every=200, save_every=100, save_dtype="bf16")
    )
    training: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: TrainConfig(learning_rate=1e-3, weight_decay=0.1, warmup_ratio=0.05)
    )

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no file; name one, such as text.jsonl")
        least = {"max_length": 1, "tokens_per_step": 1, "tokens_per_batch": 1}
        check_least(self, least | {"epochs": 1, "tokens": 1, "seed": 0})
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--minutes is {self.minutes}; use a positive number")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; use 0 to less than 1")
        if sum(budget is not None for budget in (self.epochs, self.tokens, self.minutes)) > 1:
            raise ValueError("--epochs, --tokens and --minutes are budgets; use one of them")
        tokenizer = None if is_state_dict(self.model) else self.tokenizer
        if self.model is not None and (self.config or tokenizer):
            option = "--config" if self.config else "--tokenizer"
            raise ValueError(f"--model brings its own shape and tokenizer; drop {option}")
        if self.mix and len(self.mix) != len(self.files):
            fact = f"--mix has {len(self.mix)} weights for {len(self.files)} files"
            raise ValueError(f"{fact}; give each one")
        if not all(0 < weight < math.inf for weight in self.mix):
            weights = " ".join(f"{weight:g}" for weight in self.mix)
            raise ValueError(f"--mix is {weights}; use positive weights, and leave out other files")


def prepare(options: PretrainOptions, device: torch.device) -> tuple[Tokenizer, Transformer]:
    """Load or make the tokenizer and the model, check the run's folder, join the other processes.

    Raises:
        ValueError: an option doesn't fit the others, or the files.
    """
    if options.out.is_file():
        raise ValueError(f"{options.out} is a file; name a folder")
    model, tokenizer = _start(options)
    context = model.config.max_position_embeddings
    if options.max_length > context:
        raise ValueError(
            f"--max-length is {options.max_length} and the model's context "
            f"{context}; lower the one or raise the other"
        )
    if options.model is not None and options.out.resolve() == Path(options.model).resolve():
        raise ValueError(f"{options.out} is --model's own folder; name another --out")
    read = (*options.files, options.model, options.config, options.tokenizer)
    check_run_folder(options.out, read, resume=True, overwrite=options.overwrite)
    size = DTYPES[options.run.save_dtype].itemsize
    count = sum(p.numel() for p in model.parameters())
    check_room(options.out, count, size, overwrite=options.overwrite)
    distributed.init_distributed(device)
    if options.minutes is not None and distributed.world_size() > 1:
        raise ValueError("--minutes is measured by one process; give several --tokens or --epochs")
    return tokenizer, model


def _start(options: PretrainOptions) -> tuple[Transformer, Tokenizer]:
    if options.model is not None:
        return load(options.model, tokenizer=options.tokenizer)
    tokenizer = load_tokenizer(options.tokenizer)
    shape = shape_named(options.config or "small", tokenizer.vocab_size)
    return Transformer(shape).initialize(options.seed), tokenizer


def run(options: PretrainOptions, arguments: list[str]) -> None:
    """Train, and leave a Hugging Face folder in `options.out`."""
    with following_options():
        device = choose_device(options.device)
        tokenizer, model = prepare(options, device)
    # None: tqdm shows no bar where there is no terminal.
    quiet = None if distributed.is_main_process() else True
    with (
        distributed.main_process_first(),
        tqdm(desc="reading, twice", unit="documents", file=sys.stderr, disable=quiet) as bar,
    ):
        windows, report = build_corpus(
            options.files, tokenizer, options.max_length, done=bar.update
        )
    print("\n".join(describe_corpus(report)))
    model.to(device)
    training, validation = split_by_prompt(windows, options.val_fraction)
    parts = (training, validation, options.val_fraction, options.files)
    for line in describe_share(*parts, rows="windows", alike="windows of one document"):
        print(line)
    if not len(training):
        fact, remedy = "no text is left to train on", "see the counts above; lower --val-fraction"
        raise DataError("no_rows", fact, remedy, ", ".join(options.files))
    sys.stdout.flush()  # an output that is broken already ends the command here
    options.out.mkdir(parents=True, exist_ok=True)
    if options.overwrite and distributed.is_main_process():
        with folder_lock(options.out):
            remove_run(options.out)
    budget = options.tokens_per_batch or max(8192, tokens_that_fit(model, device))
    budget = max(budget, options.max_length)
    measure = _measure(validation, tokenizer, budget)
    steps = _plan(options, training, model, measure, budget)
    print("\n".join(describe_mix(steps, options.files)))
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters; {describe_plan(steps)}")
    identity = {
        "--model": options.model,
        "data": hash_of(training),
        "validation data": hash_of(validation),
        "--mix": options.mix,
        "--tokens-per-step": options.tokens_per_step,
        "--seed": options.seed,
    }
    with output_may_break():
        result = fit(
            model,
            tokenizer,
            steps,
            options.training,
            options.run,
            options.out,
            identity,
            flatten(options),
            measure,
            options.files,
        )
        if distributed.is_main_process():
            facts = {"identity": identity | {"steps": len(steps)}, "corpus": asdict(report)}
            _report(options, arguments, result, len(steps), facts)


def _report(
    options: PretrainOptions,
    arguments: list[str],
    result: RunResult,
    planned: int,
    facts: dict[str, Any],
) -> None:
    """Print how the run ended, and write its record."""
    out = options.out
    print(f"validation loss per token: {describe_losses(result)}")
    print(f"{out} holds {describe_weights(result)}; {out / LAST} those of step {result.steps}")
    if result.finished:
        tune = ["python", "-m", "minimind.sft", "data.jsonl", "--model", str(out)]
        print(f"fine-tune it with:\n    {shlex.join(tune)}")
    else:
        again = "the same command resumes it" + ", without --overwrite" * options.overwrite
        print(f"stopped after step {result.steps} of {planned}; {again}")
    print("\n".join(describe_speed(result, "tokens")))
    print(describe_folder(out, result.finished))
    metrics = (out / METRICS).read_text(encoding="utf-8").splitlines()
    write_record(
        out,
        ["minimind.pretrain", *arguments],
        options=asdict(options),
        **facts,
        outcome=asdict(result),
        validations=[line for line in map(json.loads, metrics) if "validation_loss" in line],
    )


def _measure(validation: Dataset, tokenizer: Tokenizer, tokens_per_batch: int) -> Measure | None:
    """Measures validation documents: their loss, and bits per byte, in all and by script."""
    if not len(validation):
        print("no documents to validate on; give more documents or raise --val-fraction")
        return None
    scripts = np.array(scripts_of(validation, tokenizer))
    documents = len(np.unique(validation.column("key")))
    tokens = validation.column("input_length").sum()
    print(f"validation: {documents:,} documents, {tokens:,} tokens")

    def measure(model: Transformer, precision: Precision) -> dict[str, float]:
        scores = score(
            model, validation, tokenizer, tokens_per_batch=tokens_per_batch, precision=precision
        )
        figures = {"validation_loss": scores.loss, "bits_per_byte": scores.bits_per_byte}
        for script in np.unique(scripts).tolist():
            figures[f"bits_per_byte_{script}"] = scores.select(scripts == script).bits_per_byte
        return figures

    return measure


def _plan(
    options: PretrainOptions,
    training: Dataset,
    model: Transformer,
    measure: Measure | None,
    tokens_per_batch: int,
) -> Steps:
    """The steps that the budget pays for; a resumed run keeps its number of them."""
    steps = make_steps(
        training,
        tokens_per_step=options.tokens_per_step,
        tokens_per_batch=tokens_per_batch,
        seed=options.seed,
        mix=options.mix or None,
    )
    if options.tokens is not None:
        share = options.tokens / steps.tokens_per_epoch
        return steps.with_length(max(1, round(share * steps.steps_per_epoch)))
    if options.minutes is None:
        return steps.with_length((options.epochs or 1) * steps.steps_per_epoch)
    _, extra, _ = newest_checkpoint(options.out / "checkpoints", hash_tensors=False)
    saved = extra.get("fingerprint")
    if saved and saved["options"].get("--minutes") == options.minutes:
        return steps.with_length(saved["steps"])
    lengths = steps.lengths[steps.rows_of(0)].tolist()
    precision = resolve_precision(options.training.precision, model, lengths)
    config = replace(options.training, precision=precision)  # measured once

    def validate() -> None:
        if measure:
            measure(model, precision)

    eval_every = options.run.eval_every or steps.steps_per_epoch
    seconds = 60 * options.minutes
    count = steps_within(seconds, model, steps, config, validate, eval_every)
    return steps.with_length(count)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        arguments,
        partial(parse_options, "minimind.pretrain", PretrainOptions),
        lambda options: run(options, arguments),
        out_of_memory=lambda options: less_to_train_on(options.tokens_per_batch),
        interrupted=_how_to_resume,
    )


def _how_to_resume(options: PretrainOptions) -> str:
    if any((options.out / "checkpoints").glob("step-*")):
        return "interrupted; the same command resumes from its last checkpoint"
    return "interrupted before the first checkpoint; the same command starts again"


if __name__ == "__main__":
    sys.exit(main())
