"""Run a command: its terminal, its errors and exit codes, its record."""

from __future__ import annotations

import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minimind.atomic_io import replace_file
from minimind.cli.options import Options
from minimind.data.errors import DataError
from minimind.training import distributed
from minimind.training.environment import versions
from minimind.training.resume import TrainingError
from minimind.training.run_folder import RECORD

# How commands end; 130 is what shells say of a Ctrl-C.
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_DATA, EXIT_INTERRUPTED = 0, 1, 2, 3, 130


class OptionError(ValueError):
    """An option's value can't be used."""


def run_command(
    argv: list[str] | None,
    parse: Callable[[list[str]], Options],
    run: Callable[[Options], bool | None],
    *,
    out_of_memory: Callable[[Options], str] = lambda _: "this much data; use fewer rows",
    interrupted: Callable[[Options], str] = lambda _: "interrupted",
) -> int:
    """Parse the command line, run, and turn what goes wrong into a line and an exit code.

    Args:
        argv: None for this process's.
        parse: its ValueError or OSError is a wrong option.
        run: returns False if what it checked failed.
        out_of_memory: says what was used and what to do where memory runs out.
        interrupted: says after Ctrl-C what is left, unless the KeyboardInterrupt itself does.
    """
    prepare_terminal()
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError) as error:
        return fail(EXIT_USAGE, error)
    try:
        passed = run(options) is not False
        sys.stdout.flush()  # here, where a closed pipe is handled
        return EXIT_OK if passed else EXIT_FAILED
    except DataError as error:
        return fail(EXIT_DATA, error)
    except OptionError as error:
        return fail(EXIT_USAGE, error)
    except BrokenPipeError:
        # Its reader has seen enough, as `head` does. Python would fail again as it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (TrainingError, ValueError, OSError) as error:
        return fail(EXIT_FAILED, error)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and distributed.is_loss_of_another(error):
            fact = f"another process of this run ended; torchrun's output names it ({error})"
            return fail(EXIT_FAILED, f"{fact}; resume the run from its last checkpoint")
        ran_out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not ran_out and "allocate memory" not in str(error):  # the CPU's error has no type
            raise
        return fail(EXIT_FAILED, f"out of memory with {out_of_memory(options)} ({error})")
    except KeyboardInterrupt as interruption:
        said = interruption.args
        return fail(EXIT_INTERRUPTED, said[0] if said else interrupted(options))


def prepare_terminal() -> None:
    """Read and print UTF-8 under any locale, warnings as one-line notes; mute other processes."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            errors = "strict" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(encoding="utf-8", errors=errors)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    if not distributed.is_main_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        warnings.showwarning = lambda *_: None


@contextmanager
def following_options() -> Iterator[None]:
    """Raise each ValueError and OSError inside as an OptionError: a wrong option caused it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise OptionError(str(error)) from error


def fail(code: int, error: object) -> int:
    where = "" if distributed.is_main_process() else f" in process {distributed.rank()}"
    print(f"error{where}: {error}", file=sys.stderr)
    return code


def less_to_train_on(tokens_per_batch: int | None) -> str:
    """What to do where training runs out of memory."""
    given = f"--tokens-per-batch {tokens_per_batch}"
    if tokens_per_batch is None:
        given = "the default of --tokens-per-batch, printed above"
    return (
        f"{given}; halve it (and --max-length, where rows are as long), or use "
        "--activation-checkpointing"
    )


def write_record(out: Path, command: list[str], **facts: Any) -> dict[str, Any]:
    """Write run.json and return what is in it; `command`: the words after `-m`."""
    command = [*distributed.launcher(), "-m", *command]
    record = {**facts, "versions": versions(), "command": command}
    text = json.dumps(record, default=str, ensure_ascii=False, indent=1)
    replace_file(out / RECORD, text + "\n")
    return record
