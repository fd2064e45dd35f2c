"""`python -m minimind.sft data.jsonl`: fine-tune a model on conversations, from rows to answers."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from minimind.atomic_io import folder_lock
from minimind.cli.command import following_options, less_to_train_on, new_folder, run_command
from minimind.cli.options import option_names, parse_options, refuse_old_name
from minimind.cli.summary import describe_plan, describe_selection, describe_tokens
from minimind.data.build import REJECTED, DataOptions
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.plan import Batches, Steps, make_steps
from minimind.data.selection import select_rows
from minimind.data.show import prompt_of, show_row
from minimind.data.storage import hash_of
from minimind.model.pretrained import load
from minimind.sampler import generate
from minimind.sft.record import loss_plot, model_card
from minimind.training import distributed
from minimind.training.environment import choose_device, peak_memory, versions
from minimind.training.fit import Outcome, Run, fit
from minimind.training.loop import TrainConfig

CONVERSATIONS_PER_STEP = 16  # the guide's batch size
BASE_LEARNING_RATE = 2e-4  # for the embedded base: measured, see benchmarks/RESULTS.md
ANSWER_TOKENS = 128  # of the validation prompts answered at the end


@dataclass(frozen=True, kw_only=True)
class SFTOptions:
    """Fine-tune a pretrained model on a file of conversations.

    Exit codes: 0 done, or stopped with a checkpoint (--resume goes on), 1 the run failed, 2 a wrong
    option, 3 data that can't be used, 130 interrupted where there was nothing to save.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """JSONL, gzipped JSONL or JSON array files of conversations; - is standard input."""
    model: str | None = None
    """A Hugging Face folder or hub name to start from; default: the small embedded base."""
    out: Path | None = None
    """The run's folder; default: a new runs/NAME-N."""
    epochs: int = 10
    """How often to go over all rows."""
    max_steps: int | None = None
    """Stop the schedule after this many optimizer steps, whatever --epochs says."""
    limit: int | None = None
    """Use only the first rows, this many."""
    tokens_per_step: int | None = None
    """Tokens of one optimizer step; default: 16 times the data's mean row."""
    tokens_per_batch: int = 4096
    """Tokens in memory at once, at most; changes results in their last bits alone."""
    val_data: str | None = None
    """A file of conversations to validate on; rows with its prompts are left out of training."""
    val_fraction: float = 0.05
    """Share of the rows to validate on, chosen by their prompt's text; 0 for none."""
    eval_every: int | None = None
    """Steps between two validations; default: an epoch."""
    save_every: int | None = None
    """Steps between two checkpoints; default: an epoch."""
    keep_checkpoints: int = 2
    """How many checkpoints to keep, the newest."""
    max_minutes: float | None = None
    """Stop after this long, with a checkpoint to go on from."""
    save_dtype: Annotated[str, tyro.conf.arg(metavar="{fp32,bf16}")] = "fp32"
    """Type of the weights written for use: fp32 or bf16."""
    device: str = "auto"
    """auto, cpu or cuda."""
    shard: int | None = None
    """Under torchrun, how many processes hold one copy of the weights together; default: all."""
    seed: int = 0
    """Decides the order of rows."""
    resume: bool = False
    """Go on from the newest checkpoint of --out, or begin if it has none."""
    overwrite: bool = False
    """Delete what is in --out first."""
    dry_run: bool = False
    """Print what would be trained, and stop."""
    config: Path | None = None
    """A JSON file of options, by their names; options on the command line go first."""
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)
    training: Annotated[TrainConfig, tyro.conf.OmitArgPrefixes] = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        positive = ("epochs", "tokens_per_batch", "max_steps", "limit", "tokens_per_step")
        for name in (*positive, "eval_every", "save_every", "keep_checkpoints", "shard"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} is {value}; use a positive number")
        if not self.files:
            raise ValueError("no data file; name one, such as data.jsonl, or - for standard input")
        if self.seed < 0:
            raise ValueError(f"--seed is {self.seed}; use 0 or more")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; use 0 to less than 1")
        if self.max_minutes is not None and not self.max_minutes >= 0:
            raise ValueError(f"--max-minutes is {self.max_minutes}; use 0 or more")
        if self.save_dtype not in ("fp32", "bf16"):
            raise ValueError(f"--save-dtype is {self.save_dtype}; use fp32 or bf16")
        if self.resume and self.overwrite:
            raise ValueError("--resume goes on and --overwrite deletes; use one of them")
        if self.resume and self.out is None:
            raise ValueError("--resume needs --out, the folder of the run to go on with")


def run(options: SFTOptions, arguments: list[str]) -> None:
    """Prepare, show what will be trained, train, and answer a few validation prompts.

    Of the processes that torchrun started, the first one tokenizes, prints and writes.

    Args:
        options: all of them, with the run's folder.
        arguments: what the options were made from.
    """
    out = options.out
    assert out is not None
    with following_options():
        device = choose_device(options.device)
        distributed.init_distributed(device)
        _check_folder(out, options)
        if distributed.world_size() > 1 and "-" in options.files:
            raise ValueError("standard input can't be read by several processes; name a file")
        model, tokenizer = load(options.model)
    with distributed.main_process_first():
        selection = select_rows(
            options.files,
            tokenizer,
            options.data,
            limit=options.limit,
            val_data=options.val_data,
            val_fraction=options.val_fraction,
        )
        data_hash = hash_of(selection.training, selection.sources[0].folder)
    print("\n".join(describe_selection(selection, options.val_data)))
    training, validation = selection.training, selection.validation
    steps = _plan(training, options)
    with following_options():
        _check_context(model.config.max_position_embeddings, training, validation)

    print("\n".join(describe_tokens(training, validation)))
    print(f"hash: {data_hash}\n{describe_plan(steps)}")
    print(show_row(training[0], tokenizer, colour=sys.stdout.isatty()))
    if options.dry_run:
        return

    if distributed.is_main_process():
        _prepare_folder(out, options, [source.folder / REJECTED for source in selection.sources])
    print(f"training {sum(p.numel() for p in model.parameters()):,} parameters on {device}; {out}")
    model.to(device)
    per_epoch = min(steps.steps_per_epoch, len(steps))
    identity = {
        "base": options.model or "the embedded base",
        "data": data_hash,
        "validation data": hash_of(validation, selection.sources[-1].folder),
        "--tokens-per-step": steps.tokens_per_step,
        "--seed": options.seed,
    }
    outcome = fit(
        model,
        tokenizer,
        steps,
        options.training,
        Run(
            out=out,
            validation=Batches(validation, _budget(options)),
            eval_every=options.eval_every or per_epoch,
            save_every=options.save_every or per_epoch,
            save_dtype=torch.bfloat16 if options.save_dtype == "bf16" else torch.float32,
            identity=identity,
            say=print,
            files=options.files,
            max_minutes=options.max_minutes,
            keep=options.keep_checkpoints,
            options=_flat(options),
            shard=options.shard,
            go_on=f"go on with:\n    {_going_on(out, options, arguments)}",
        ),
    )
    if not distributed.is_main_process():
        return
    _record(out, options, identity, outcome, arguments)
    _report(out, outcome)
    if not outcome.finished:
        return
    print(f"\nthree rows{' that were held back' * bool(len(validation))}, answered:")
    _answer_some(out, validation if len(validation) else training, device)
    print(f"\nchat with it:\n    python -m minimind.chat --model {out}")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        arguments,
        parse,
        lambda options: run(options, arguments),
        out_of_memory=lambda options: less_to_train_on(options.tokens_per_batch),
        interrupted=lambda options: (
            "interrupted; resume from the last checkpoint with:\n"
            f"    {_going_on(options.out or Path(), options, arguments)}"
        ),
    )


def parse(argv: list[str]) -> SFTOptions:
    """Options from the command line, those of a --config file first.

    Raises:
        ValueError: a value or a combination that can't be, or an unreadable --config.
        SystemExit: 0 for --help, 2 for an unknown option or a value of the wrong kind.
    """
    argv = [*_config_arguments(argv), *argv]
    options = parse_options("minimind.sft", SFTOptions, argv)
    if options.out is None:
        name = "stdin" if options.files[0] == "-" else Path(options.files[0]).name.split(".")[0]
        options = replace(options, out=new_folder(name or "run"))
    given = {argument.partition("=")[0].replace("_", "-") for argument in argv}
    if options.model is None and "--learning-rate" not in given:
        faster = replace(options.training, learning_rate=BASE_LEARNING_RATE)
        options = replace(options, training=faster)
    return options


def _config_arguments(argv: list[str]) -> list[str]:
    """Spell a --config file's options as arguments, so that they are checked like them."""
    named = [argv[i + 1] for i, a in enumerate(argv[:-1]) if a == "--config"]
    named += [a.partition("=")[2] for a in argv if a.startswith("--config=")]
    arguments: list[str] = []
    names = option_names(SFTOptions) - {"files", "config"}
    for path in named:
        try:
            options = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"--config {path}: {error}; name a JSON file of options") from error
        if not isinstance(options, dict):
            raise ValueError(f'--config {path}: not a JSON object; use {{"epochs": 3}}')
        for name, value in options.items():
            option = name.replace("_", "-")
            refuse_old_name(name, names, f"--config {path}: ")
            if option not in names:
                raise ValueError(f"--config {path}: no option is called {name}; see --help")
            if isinstance(value, dict):
                raise ValueError(f"--config {path}: {name} is an object; give a plain value")
            if isinstance(value, bool):
                arguments.append(f"--{option}" if value else f"--no-{option}")
            elif isinstance(value, list):
                arguments += [f"--{option}", *(str(v) for v in value)]
            elif value is not None:
                arguments.append(f"--{option}={value}")
    return arguments


def _check_folder(out: Path, options: SFTOptions) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    if options.overwrite and out.exists() and any(out.iterdir()):
        read = (*options.files, options.val_data, options.model, options.config)
        names = [str(name) for name in read if name is not None]
        places = {name: Path(name).resolve() for name in names}
        inside = [name for name, at in places.items() if out.resolve() in (at, *at.parents)]
        if inside or not (out / "metrics.jsonl").exists():
            fact = f"holds {inside[0]}, read by this run" if inside else "isn't the folder of a run"
            raise FileExistsError(f"{out} {fact}; --overwrite would delete it: name another --out")
    has_model, has_run = ((out / name).exists() for name in ("model.safetensors", "metrics.jsonl"))
    if options.resume and has_model and not has_run:
        raise FileExistsError(f"{out} holds a model, but no run to go on with; name another --out")
    if out.exists() and any(out.iterdir()) and not (options.resume or options.overwrite):
        raise FileExistsError(
            f"{out} exists and isn't empty; --resume goes on with it, --overwrite deletes it, "
            "or name another --out"
        )


def _prepare_folder(out: Path, options: SFTOptions, rejected: list[Path]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        with folder_lock(out):  # the folder itself stays: another run would hold the one that was
            for old in out.iterdir():
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    lists = [file.read_bytes() for file in rejected if file.exists()]
    if lists:
        (out / REJECTED).write_bytes(b"".join(lists))


def _check_context(context: int, *parts: Dataset) -> None:
    longest = max(int(part.table["input_length"].max()) for part in parts if len(part))
    if longest > context:
        raise ValueError(
            f"the longest row has {longest:,} tokens and the model's context {context:,}; "
            f"use --max-length {context}, or another --model"
        )


def _plan(training: Dataset, options: SFTOptions) -> Steps:
    if not len(training):
        raise DataError(
            "no_rows",
            "no row is left to train on",
            "see the counts above; check --val-data, --val-fraction, --max-length and --train-on",
            ", ".join(options.files),
        )
    mean = float(training.table["input_length"].mean())
    return make_steps(
        training,
        tokens_per_step=options.tokens_per_step or math.ceil(CONVERSATIONS_PER_STEP * mean),
        tokens_per_batch=_budget(options),
        epochs=options.epochs,
        seed=options.seed,
    ).truncated(options.max_steps)


def _budget(options: SFTOptions) -> int:
    """Tokens of a batch: at least one row of the greatest length fits."""
    return max(options.tokens_per_batch, options.data.max_length)


def _flat(options: SFTOptions) -> dict[str, Any]:
    """All options by their names on the command line."""
    plain = asdict(options)
    data, training = plain.pop("data"), plain.pop("training")
    return {**plain, **data, **training}


def _going_on(out: Path, options: SFTOptions, arguments: list[str]) -> str:
    """The command that goes on with this one's run."""
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    named = [] if any(a.split("=")[0] == "--out" for a in kept) else ["--out", str(out)]
    if options.overwrite and "--overwrite" not in arguments:  # a --config says so
        named.append("--no-overwrite")
    return shlex.join([*distributed.launcher(), "-m", "minimind.sft", *kept, *named, "--resume"])


def _record(
    out: Path,
    options: SFTOptions,
    identity: dict[str, Any],
    outcome: Outcome,
    arguments: list[str],
) -> None:
    record = {
        "options": asdict(options),
        "identity": identity,
        "versions": versions(),
        "outcome": asdict(outcome),
        "command": [*distributed.launcher(), "-m", "minimind.sft", *arguments],
    }
    text = json.dumps(record, default=str, ensure_ascii=False, indent=1)
    (out / "run.json").write_text(text + "\n", encoding="utf-8")
    (out / "README.md").write_text(model_card(record), encoding="utf-8")
    loss_plot(out / "metrics.jsonl", out / "loss.png")


def _report(out: Path, outcome: Outcome) -> None:
    if outcome.best_loss is not None:
        print(
            f"validation loss per supervised token: {outcome.first_loss:.4f} before, "
            f"{outcome.best_loss:.4f} at its best, {outcome.last_loss:.4f} at the end\n"
            f"{out} holds the best (step {outcome.best_step}), {out / 'last'} the last "
            f"(step {outcome.steps})"
        )
    if outcome.skipped:
        print(f"{outcome.skipped} steps skipped: their fp16 gradients overflowed")
    print(f"{outcome.supervised_per_second:,.0f} supervised tokens/s; peak memory {peak_memory()}")


def _answer_some(out: Path, rows: Dataset, device: torch.device, count: int = 3) -> None:
    """Answer a few prompts greedily with the weights that were kept, beside what their rows say."""
    model, tokenizer = load(out, device=str(device))
    for index in range(min(count, len(rows))):
        row = rows[index]
        prompt = prompt_of(row)
        trained = [*row.loss_mask[len(prompt) :], False].index(False)
        said = row.input_ids[len(prompt) : len(prompt) + trained]
        ids = list(
            generate(
                model,
                prompt,
                temperature=0.0,
                max_new_tokens=ANSWER_TOKENS,
                stop_ids=tokenizer.stop_ids,
            )
        )
        print(f"\n{tokenizer.decode(prompt, skip_control=True).strip()}")
        print(tokenizer.decode(ids, skip_control=True))
        print(f"(the row says: {tokenizer.decode(said, skip_control=True)})")


if __name__ == "__main__":
    sys.exit(main())
