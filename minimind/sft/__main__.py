"""`python -m minimind.sft data.jsonl`: fine-tune a model on conversations, from rows to answers."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from minimind.atomic_io import folder_lock, replace_file
from minimind.cli.command import (
    OptionError,
    following_options,
    less_to_train_on,
    print_escaped,
    run_command,
    tell_of_an_unfinished_run,
    write_record,
)
from minimind.cli.options import flatten
from minimind.cli.output import (
    check_room,
    check_run_folder,
    check_writable,
    claim_folder,
    output_may_break,
)
from minimind.cli.summary import (
    describe_folder,
    describe_losses,
    describe_plan,
    describe_selection,
    describe_speed,
    describe_tokens,
    describe_weights,
)
from minimind.data.build import REJECTED
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError, printable
from minimind.data.plan import Batches, Steps, make_steps
from minimind.data.selection import select_rows
from minimind.data.show import show_row
from minimind.data.storage import hash_of
from minimind.model.grow import grow
from minimind.model.pretrained import load
from minimind.sampler import generate
from minimind.sft.options import SFTOptions, parse
from minimind.sft.record import loss_plot, model_card
from minimind.training import distributed
from minimind.training.environment import choose_device
from minimind.training.fit import RunResult, fit
from minimind.training.memory import tokens_that_fit
from minimind.training.precision import DTYPES
from minimind.training.run_folder import CARD, LAST, METRICS, is_our_card, remove_run

CONVERSATIONS_PER_STEP = 16  # the guide's batch size
ANSWER_TOKENS = 128  # of the validation prompts answered at the end


def run(options: SFTOptions, arguments: list[str]) -> None:
    """Prepare, show what will be trained, train, and answer a few validation prompts.

    Of the processes that torchrun started, the main one tokenizes, prints and writes.
    """
    with following_options():
        device = choose_device(options.device)
        distributed.init_distributed(device)
        if options.out is not None:
            files = (*options.files, options.split.val_data, options.config)
            read = (*files, options.model, options.tokenizer)
            check_run_folder(options.out, read, resume=options.resume, overwrite=options.overwrite)
        elif not options.dry_run:
            check_writable(Path("runs"))
        if distributed.world_size() > 1 and "-" in options.files:
            raise ValueError("standard input can't be read by several processes; name a file")
        model, tokenizer = load(options.model, tokenizer=options.tokenizer)
        tell_of_an_unfinished_run(options.model)
        if not options.dry_run:
            size = DTYPES[options.run.save_dtype].itemsize
            count = sum(p.numel() for p in model.parameters())
            check_room(options.out or Path("runs"), count, size, overwrite=options.overwrite)
    context = model.config.max_position_embeddings
    options = replace(options, data=options.data.for_context(context))
    with distributed.main_process_first():
        selection = select_rows(options.files, tokenizer, options.data, options.split)
        data_hash = hash_of(selection.training, selection.folders[0])
    tokenizer = selection.tokenizer
    model = grow(model, tokenizer)
    print("\n".join(describe_selection(selection, options.split, options.files, context)))
    training, validation = selection.training, selection.validation
    budget = options.tokens_per_batch or tokens_that_fit(model, device)
    longest = max(
        int(part.column("input_length").max(initial=0)) for part in (training, validation)
    )
    if longest > budget:
        print(f"--tokens-per-batch is raised to {longest:,}, so that the longest row fits")
        budget = longest
    steps = _plan(training, options, budget, longest, context)
    print("\n".join(describe_tokens(training, validation)))
    print(f"hash: {data_hash}\n{describe_plan(steps)}")
    print_escaped(show_row(training[0], tokenizer, colour=sys.stdout.isatty()))
    system = selection.reports[0].system
    if system:
        print(f"system message: {printable(system)}; chat and evaluate will use it, too")
    if options.dry_run:
        return

    sys.stdout.flush()  # an output that is broken already ends the command here
    rejected = [folder / REJECTED for folder in selection.folders]
    out = distributed.broadcast(
        _prepare_folder(options, rejected) if distributed.is_main_process() else Path()
    )
    options = replace(options, out=out)
    print(f"training {sum(p.numel() for p in model.parameters()):,} parameters on {device}; {out}")
    model.to(device)
    identity = {
        "base": options.model or "the embedded base",
        "data": data_hash,
        "validation data": hash_of(validation, selection.folders[-1]),
        "--tokens-per-step": steps.tokens_per_step,
        "--seed": options.seed,
    }
    answering = False
    try:
        with output_may_break():
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
                system,
            )
            if distributed.is_main_process():
                rows = {"training": len(training), "validation": len(validation)}
                _report(options, arguments, identity, result, len(steps), rows, system)
                if result.finished:
                    shown = validation if len(validation) else training
                    kind = "validation" if len(validation) else "training"
                    print(f"\n{min(len(shown), 3)} {kind} rows, answered:")
                    answering = True
                    _answer_some(out, shown, device)
                    chat = ["python", "-m", "minimind.chat", "--model", str(out)]
                    print(f"\nchat with it:\n    {shlex.join(chat)}")
    except KeyboardInterrupt:
        if answering:
            done = f"interrupted; the run is finished, and lies in {out}"
            raise KeyboardInterrupt(done) from None
        raise KeyboardInterrupt(
            "interrupted; this resumes from the newest checkpoint, or starts again without one:\n"
            f"    {resume_command(options, arguments)}"
        ) from None


def _report(
    options: SFTOptions,
    arguments: list[str],
    identity: dict[str, Any],
    result: RunResult,
    planned: int,
    rows: dict[str, int],
    system: str | None,
) -> None:
    """Print how the run ended, and write its record, card and picture."""
    out = options.out
    assert out is not None
    print(f"validation loss per supervised token: {describe_losses(result)}")
    by = ", by one validation row" if rows["validation"] == 1 else ""
    print(f"{out} holds {describe_weights(result)}{by}; {out / LAST} those of step {result.steps}")
    print("\n".join(describe_speed(result, "supervised tokens")))
    print(describe_folder(out, result.finished))
    if not result.finished:
        print(f"stopped after step {result.steps} of {planned}; resume with:")
        print(f"    {resume_command(options, arguments)}")
    record = write_record(
        out,
        ["minimind.sft", *arguments],
        options=asdict(options),
        identity=identity,
        rows=rows,
        outcome=asdict(result),
    )
    if is_our_card(out / CARD):
        replace_file(out / CARD, model_card(record, result, system))
    else:
        print(f"{out / CARD} isn't a card of ours, and stays as it is")
    loss_plot(out / METRICS, out / "loss.png")


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    return run_command(
        arguments,
        parse,
        lambda options: run(options, arguments),
        out_of_memory=lambda options: less_to_train_on(options.tokens_per_batch),
        interrupted=lambda _: "interrupted before training; nothing is changed",
    )


def resume_command(options: SFTOptions, arguments: list[str]) -> str:
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    if not any(argument.partition("=")[0] == "--out" for argument in kept):
        kept += ["--out", str(options.out)]
    if options.overwrite and "--overwrite" not in arguments:  # a --config says so
        kept.append("--no-overwrite")
    return shlex.join([*distributed.launcher(), "-m", "minimind.sft", *kept, "--resume"])


def _prepare_folder(options: SFTOptions, rejected: list[Path]) -> Path:
    """Make the run's folder and return it."""
    out = options.out
    if out is None:
        out = claim_folder(options.files[0], Path("runs"))
    out.mkdir(parents=True, exist_ok=True)
    if options.overwrite:
        with folder_lock(out):  # another run may hold it, so the folder itself stays
            remove_run(out)
    lists = [file.read_bytes() for file in rejected if file.exists()]
    if lists:
        replace_file(out / REJECTED, b"".join(lists))
        print(f"{out / REJECTED} lists the rejected rows")
    return out


def _plan(
    training: Dataset, options: SFTOptions, tokens_per_batch: int, longest: int, context: int
) -> Steps:
    if not len(training):
        fact = "no row is left to train on"
        remedy = "see the counts above; check --val-data, --val-fraction, --max-length, --train-on"
        raise DataError("no_rows", fact, remedy, ", ".join(options.files))
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
    cut = 0
    for count, row in enumerate(islice(rows, 3), 1):  # noqa: B007  # the last is told
        prompt = row.input_ids[: row.loss_mask.index(True)]
        end = [*row.loss_mask, False].index(False, len(prompt))
        expected = row.input_ids[len(prompt) : end]
        answer = list(
            generate(
                model,
                prompt,
                temperature=0,
                max_new_tokens=ANSWER_TOKENS,
                stop_ids=tokenizer.stop_ids,
            )
        )
        print(f"\n{tokenizer.decode(prompt, skip_control=True).strip()}")
        print(tokenizer.decode(answer, skip_control=True))
        if answer[-1] not in tokenizer.stop_ids:
            cut += 1
            print(f"(cut after {len(answer)} tokens)")
        print(f"(the row says: {tokenizer.decode(expected, skip_control=True)})")
    if cut:
        print(f"\n{cut} of {count} answers don't end: the model hasn't learned to; train longer")


if __name__ == "__main__":
    sys.exit(main())
