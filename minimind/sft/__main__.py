"""`python -m minimind.sft data.jsonl`: fine-tune a model on conversations, from rows to answers."""

from __future__ import annotations

import math
import shlex
import shutil
import sys
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch

from minimind.atomic_io import folder_lock
from minimind.cli.command import (
    OptionError,
    following_options,
    less_to_train_on,
    print_escaped,
    run_command,
    write_record,
)
from minimind.cli.options import flatten
from minimind.cli.summary import describe_plan, describe_selection, describe_tokens
from minimind.data.build import REJECTED
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.plan import Batches, Steps, make_steps
from minimind.data.selection import Selection, select_rows
from minimind.data.show import show_row
from minimind.data.storage import hash_of
from minimind.model.pretrained import load
from minimind.sampler import generate
from minimind.sft.options import SFTOptions, parse
from minimind.sft.record import describe_losses, loss_plot, model_card
from minimind.training import distributed
from minimind.training.environment import choose_device, peak_memory
from minimind.training.fit import fit

CONVERSATIONS_PER_STEP = 16  # the guide's batch size
ANSWER_TOKENS = 128  # of the validation prompts answered at the end


def run(options: SFTOptions, arguments: list[str]) -> None:
    """Prepare, show what will be trained, train, and answer a few validation prompts.

    Of the processes that torchrun started, the main one tokenizes, prints and writes.
    """
    out = options.out
    assert out is not None  # `parse` has named it
    with following_options():
        device = choose_device(options.device)
        distributed.init_distributed(device)
        _check_folder(out, options)
        if distributed.world_size() > 1 and "-" in options.files:
            raise ValueError("standard input can't be read by several processes; name a file")
        model, tokenizer = load(options.model)
    with distributed.main_process_first():
        selection = select_rows(options.files, tokenizer, options.data, options.split)
        data_hash = hash_of(selection.training, selection.folders[0])
    print("\n".join(describe_selection(selection, options.split.val_data)))
    training, validation = selection.training, selection.validation
    budget = max(options.tokens_per_batch, options.data.max_length)  # the longest row fits
    steps = _plan(selection, options, budget, model.config.max_position_embeddings)
    print("\n".join(describe_tokens(training, validation)))
    print(f"hash: {data_hash}\n{describe_plan(steps)}")
    print_escaped(show_row(training[0], tokenizer, colour=sys.stdout.isatty()))
    if options.dry_run:
        return

    if distributed.is_main_process():
        _prepare_folder(out, options, [folder / REJECTED for folder in selection.folders])
    print(f"training {sum(p.numel() for p in model.parameters()):,} parameters on {device}; {out}")
    model.to(device)
    identity = {
        "base": options.model or "the embedded base",
        "data": data_hash,
        "validation data": hash_of(validation, selection.folders[-1]),
        "--tokens-per-step": steps.tokens_per_step,
        "--seed": options.seed,
    }
    result = fit(
        model,
        tokenizer,
        steps,
        options.training,
        options.run,
        out,
        identity,
        flatten(options),
        Batches(validation, budget),
        options.files,
    )
    if not distributed.is_main_process():
        return
    record = write_record(
        out,
        ["minimind.sft", *arguments],
        options=asdict(options),
        identity=identity,
        outcome=asdict(result),
    )
    (out / "README.md").write_text(model_card(record), encoding="utf-8")
    loss_plot(out / "metrics.jsonl", out / "loss.png")
    if result.best_loss is not None:
        print(f"validation loss per supervised token: {describe_losses(record['outcome'])}")
        print(f"{out} holds the best weights, {out / 'last'} those of step {result.steps}")
    if result.skipped:
        print(f"{result.skipped} steps skipped: their fp16 gradients overflowed")
    print(f"{result.supervised_per_second:,.0f} supervised tokens/s; peak memory {peak_memory()}")
    if not result.finished:
        print(f"stopped after step {result.steps} of {len(steps)}; resume with:")
        print(f"    {resume_command(options, arguments)}")
        return
    print(f"\nthree {'validation' if len(validation) else 'training'} rows, answered:")
    _answer_some(out, validation if len(validation) else training, device)
    print(f"\nchat with it:\n    python -m minimind.chat --model {out}")


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        arguments,
        parse,
        lambda options: run(options, arguments),
        out_of_memory=lambda options: less_to_train_on(options.tokens_per_batch),
        interrupted=lambda options: (
            "interrupted; this resumes from the newest checkpoint, or starts again without one:\n"
            f"    {resume_command(options, arguments)}"
        ),
    )


def resume_command(options: SFTOptions, arguments: list[str]) -> str:
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    if not any(argument.partition("=")[0] == "--out" for argument in kept):
        kept += ["--out", str(options.out)]
    if options.overwrite and "--overwrite" not in arguments:  # a --config says so
        kept.append("--no-overwrite")
    return shlex.join([*distributed.launcher(), "-m", "minimind.sft", *kept, "--resume"])


def _check_folder(out: Path, options: SFTOptions) -> None:
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out} is a file; name a folder")
    if not out.exists() or not any(out.iterdir()):
        return
    is_run = (out / "metrics.jsonl").exists()
    if options.overwrite:
        read = (*options.files, options.split.val_data, options.model, options.config)
        inside = [x for x in read if x and Path(x).resolve().is_relative_to(out.resolve())]
        if inside or not is_run:
            fact = f"holds {inside[0]}, read by this run" if inside else "isn't the folder of a run"
            raise FileExistsError(f"{out} {fact}; --overwrite would delete it: name another --out")
    elif not options.resume:
        raise FileExistsError(
            f"{out} exists and isn't empty; --resume continues its run, --overwrite deletes it, or "
            "name another --out"
        )
    elif (out / "model.safetensors").exists() and not is_run:
        raise FileExistsError(f"{out} holds a model, but no run to resume; name another --out")


def _prepare_folder(out: Path, options: SFTOptions, rejected: list[Path]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        with folder_lock(out):  # another run may hold it, so the folder itself stays
            for old in out.iterdir():
                shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
    lists = [file.read_bytes() for file in rejected if file.exists()]
    if lists:
        (out / REJECTED).write_bytes(b"".join(lists))


def _plan(selection: Selection, options: SFTOptions, tokens_per_batch: int, context: int) -> Steps:
    training = selection.training
    if not len(training):
        fact = "no row is left to train on"
        remedy = "see the counts above; check --val-data, --val-fraction, --max-length, --train-on"
        raise DataError("no_rows", fact, remedy, ", ".join(options.files))
    parts = (training, selection.validation)
    longest = max(part.column("input_length").max(initial=0) for part in parts)
    if longest > context:
        raise OptionError(
            f"the longest row has {longest:,} tokens and the model's context {context:,}; "
            f"use --max-length {context}, or another --model"
        )
    mean = float(training.column("input_length").mean())
    steps = make_steps(
        training,
        tokens_per_step=options.tokens_per_step or math.ceil(CONVERSATIONS_PER_STEP * mean),
        tokens_per_batch=tokens_per_batch,
        epochs=options.epochs,
        seed=options.seed,
    )
    return steps[: options.max_steps]


def _answer_some(out: Path, rows: Dataset, device: torch.device) -> None:
    """Answer three rows' prompts greedily with the saved weights, beside the rows' own answers."""
    model, tokenizer = load(out, device)
    for row in islice(rows, 3):
        prompt = row.input_ids[: row.loss_mask.index(True)]
        end = [*row.loss_mask, False].index(False, len(prompt))
        expected = row.input_ids[len(prompt) : end]
        answer = generate(
            model, prompt, temperature=0, max_new_tokens=ANSWER_TOKENS, stop_ids=tokenizer.stop_ids
        )
        print(f"\n{tokenizer.decode(prompt, skip_control=True).strip()}")
        print(tokenizer.decode(list(answer), skip_control=True))
        print(f"(the row says: {tokenizer.decode(expected, skip_control=True)})")


if __name__ == "__main__":
    sys.exit(main())
