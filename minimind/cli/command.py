"""Run a command: its terminal, its errors and exit codes, its record."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch

from minimind.atomic_io import replace_file
from minimind.cli.options import Options
from minimind.data.errors import DataError
from minimind.terminal import EscapingStream, as_it_is, end_quietly, unescaped
from minimind.training import distributed
from minimind.training.environment import versions
from minimind.training.resume import TrainingError
from minimind.training.run_folder import RECORD, describe_unfinished

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
    code = EXIT_OK
    try:
        code = _outcome(argv, parse, run, out_of_memory, interrupted)
    finally:  # after --help too
        code = max(_finish(stream, code) for stream in (sys.stdout, sys.stderr))
    return code


def _outcome(
    argv: list[str] | None,
    parse: Callable[[list[str]], Options],
    run: Callable[[Options], bool | None],
    out_of_memory: Callable[[Options], str],
    interrupted: Callable[[Options], str],
) -> int:
    try:
        options = parse(sys.argv[1:] if argv is None else argv)
    except (ValueError, OSError) as error:
        return EXIT_FAILED if _is_of_printing(error) else fail(EXIT_USAGE, error)
    except KeyboardInterrupt:
        return fail(EXIT_INTERRUPTED, "interrupted")
    try:
        passed = run(options) is not False
        return EXIT_OK if passed else EXIT_FAILED
    except DataError as error:
        return fail(EXIT_DATA, error)
    except OptionError as error:
        return fail(EXIT_USAGE, error)
    except (TrainingError, ValueError, OSError) as error:
        return EXIT_FAILED if _is_of_printing(error) else fail(EXIT_FAILED, error)
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


def _is_of_printing(error: Exception) -> bool:
    """Whether a stream failed: `_finish` tells it, unless its reader has seen enough, as `head`."""
    failures = [getattr(stream, "failed", None) for stream in (sys.stdout, sys.stderr)]
    return isinstance(error, BrokenPipeError) or error in failures


def _finish(stream: TextIO, code: int) -> int:
    """Write out what is left; where that fails, Python must not try it again as it ends."""
    with suppress(OSError):
        stream.flush()
    error = getattr(stream, "failed", None)
    if error is None:
        return code
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if not isinstance(error, BrokenPipeError):
        fail(code, f"what was printed is incomplete ({error.strerror or error})")
    return code or EXIT_FAILED


def prepare_terminal() -> None:
    """Print UTF-8 under any locale and obey nothing in it, warnings as one-line notes.

    Of several processes the first one prints. Ctrl-C is an exception from here on.
    """
    if signal.getsignal(signal.SIGINT) is end_quietly:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    closed = [name for name in ("stdin", "stdout", "stderr") if getattr(sys, name) is None]
    for name in closed:  # their numbers would become those of the next files to be opened
        nothing = open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8")  # noqa: SIM115
        setattr(sys, name, nothing)
    for stream in map(unescaped, (sys.stdin, sys.stdout, sys.stderr)):
        if isinstance(stream, io.TextIOWrapper):
            errors = "strict" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(encoding="utf-8", errors=errors)
    if not isinstance(sys.stdout, EscapingStream):
        sys.stdout = EscapingStream(sys.stdout)
    if not isinstance(sys.stderr, EscapingStream):
        sys.stderr = EscapingStream(sys.stderr, bars=True)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    if not distributed.is_main_process():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        warnings.showwarning = lambda *_: None
    if "stdout" in closed:
        warnings.warn("standard output is closed, so nothing is printed there", stacklevel=2)


def print_escaped(text: str) -> None:
    """Print a text that is escaped already, and may have colours."""
    with as_it_is(sys.stdout):
        print(text)


@contextmanager
def following_options() -> Iterator[None]:
    """Raise each ValueError and OSError inside as an OptionError: a wrong option caused it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise OptionError(str(error)) from error


def tell_of_an_unfinished_run(model: str | None) -> None:
    """A note where the weights in a folder are those of a run that hasn't ended."""
    said = describe_unfinished(Path(model)) if model is not None else None
    if said and distributed.is_main_process():
        print(f"note: {said}", file=sys.stderr)


def fail(code: int, error: object) -> int:
    where = "" if distributed.is_main_process() else f" in process {distributed.rank()}"
    with suppress(OSError):  # nobody reads it
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
