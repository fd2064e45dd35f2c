"""Make a command's options from its command line."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

import tyro

from minimind.data.errors import show
from minimind.terminal import EscapingStream, as_it_is

Options = TypeVar("Options")

# Options that version 0.2.0 renamed.
RENAMED = {
    "floor-ratio": "min-lr-ratio",
    "hold-back": "val-fraction",
    "keep": "keep-checkpoints",
    "warmup": "warmup-ratio",
}

MOST = 2**48  # of any number: far above what is of use, far below what overflows


def parse_options(command: str, options: type[Options], argv: Sequence[str]) -> Options:
    """Make `options`, a dataclass, from the arguments after `python -m COMMAND`.

    Raises:
        ValueError: an option has its old name, or a value that can't be used.
        SystemExit: 0 for --help, 2 for an unknown option or a value of the wrong kind.
    """
    names = option_names(options)
    for argument in argv:
        if argument.startswith("--"):
            refuse_old_name(argument[2:].partition("=")[0], names, "")
    asks = not {"-h", "--help"}.isdisjoint(argv)  # help has colours, and no text but ours
    with as_it_is(sys.stdout) if asks else redirect_stdout(_NoColours(sys.stdout)):
        found = tyro.cli(options, args=list(argv), prog=f"python -m {command}")
    for option, value in flatten(found).items():
        if isinstance(value, int) and abs(value) >= MOST:
            raise ValueError(f"{option} is {show(value)}; use less than {MOST:,}")
    return found


class _NoColours(EscapingStream):
    """Standard output as tyro sees it, whose errors may spell anything."""

    def isatty(self) -> bool:
        return False


def option_names(options: Any) -> set[str]:
    """The names of a dataclass's options, and of the dataclasses in it: {"val-fraction", ...}."""
    names = set()
    types = get_type_hints(options)
    for field in fields(options):
        inner = types[field.name]
        names |= option_names(inner) if is_dataclass(inner) else {field.name.replace("_", "-")}
    return names


def refuse_old_name(name: str, names: set[str], place: str) -> None:
    """Raise a ValueError with the new name of an option that had another one until 0.1.0."""
    new = RENAMED.get(name.replace("_", "-"))
    if new in names:
        raise ValueError(f"{place}--{name} is called --{new} since 0.2.0; use that")


def check_least(options: Any, least: Mapping[str, int]) -> None:
    """Raise a ValueError where an option that is given is below its least value."""
    for name, low in least.items():
        value = getattr(options, name)
        if value is not None and not value >= low:  # NaN isn't either
            raise ValueError(f"--{name.replace('_', '-')} is {value}; use {low} or more")


def flatten(options: Any) -> dict[str, Any]:
    """{"--save-every": 3, ...}: all options, those of the dataclasses in `options` too."""
    values: dict[str, Any] = {}
    for name, value in asdict(options).items():
        values |= value if isinstance(value, dict) else {name: value}
    return {f"--{name.replace('_', '-')}": value for name, value in values.items()}
