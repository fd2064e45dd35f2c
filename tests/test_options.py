"""Options are made from command lines; names of 0.1.0 are refused with the new ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import import_module
from typing import Annotated, Any, get_type_hints

import pytest
import tyro

from minimind.cli.command import EXIT_USAGE
from minimind.cli.options import RENAMED, check_least, flatten, option_names, parse_options
from tests.support.options_page import COMMANDS


@dataclass(frozen=True, kw_only=True)
class Inner:
    save_every: int = 3


@dataclass(frozen=True, kw_only=True)
class Outer:
    epochs: int | None = None
    run: Annotated[Inner, tyro.conf.OmitArgPrefixes] = field(default_factory=Inner)


def test_options_of_a_dataclass_within_another_stand_beside_its_own() -> None:
    options = parse_options("x", Outer, ["--epochs", "2", "--save_every=5"])
    assert options == Outer(epochs=2, run=Inner(save_every=5))
    assert flatten(options) == {"--epochs": 2, "--save-every": 5}
    assert option_names(Outer) == {"epochs", "save-every"}


def test_a_number_that_is_too_small_is_named() -> None:
    check_least(Outer(), {"epochs": 1})
    with pytest.raises(ValueError, match="--epochs is 0; use 1 or more"):
        check_least(Outer(epochs=0), {"epochs": 1})


@pytest.mark.parametrize("old", RENAMED)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_old_option_is_refused_with_its_new_name(
    command: str, old: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main: Any = import_module(f"minimind.{command}.__main__").main
    for argument in (f"--{old}=1", f"--{old.replace('-', '_')}"):
        try:
            code = main(["a.jsonl", argument])
        except SystemExit as error:  # tyro's way, for a command without the new option
            code = error.code
        assert code == EXIT_USAGE
        given = argument.partition("=")[0]
        sentence = f"error: {given} is called --{RENAMED[old]} since 0.2.0; use that"
        known = RENAMED[old] in option_names(COMMANDS[command])
        assert (sentence in capsys.readouterr().err) == known


@pytest.mark.parametrize("options", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("digits", [15, 30, 5000])
def test_a_huge_number_is_refused_by_its_options_name(options: Any, digits: int) -> None:
    needed = {"files": ["a"], "out": ["--out", "o"]}
    given = [word for f in fields(options) for word in needed.get(f.name, [])]
    for name in whole_numbers(options):
        with pytest.raises((ValueError, SystemExit)) as caught:
            parse_options("x", options, [*given, f"--{name}", "9" * digits])
        if isinstance(caught.value, SystemExit):  # tyro's
            assert caught.value.code == 2
        else:
            assert re.search(f"{name.replace('-', '[-_]')} is", str(caught.value))


def whole_numbers(options: Any) -> Iterator[str]:
    """The options that take an integer, those of the dataclasses in `options` too."""
    types = get_type_hints(options)
    for option in fields(options):
        inner = types[option.name]
        if is_dataclass(inner):
            yield from whole_numbers(inner)
        elif inner in (int, int | None):
            yield option.name.replace("_", "-")
