"""Write docs/options.md from the commands' own options: `python -m tests.support.options_page`."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from minimind.chat.__main__ import ChatOptions
from minimind.clean.__main__ import CleanOptions
from minimind.evaluate.__main__ import EvaluateOptions
from minimind.inspect.__main__ import InspectOptions
from minimind.pretrain.__main__ import PretrainOptions
from minimind.sft.options import SFTOptions

COMMANDS = {
    "sft": SFTOptions,
    "chat": ChatOptions,
    "evaluate": EvaluateOptions,
    "inspect": InspectOptions,
    "clean": CleanOptions,
    "pretrain": PretrainOptions,
}
PAGE = Path(__file__).parents[2] / "docs" / "options.md"
HEAD = """# Options

Every option of every command, with its default; `--help` says the same. This page is made from the
code by `python -m tests.support.options_page`, and a test holds it to that.
"""
COLUMNS = "| option | default | what it does |\n|--|--|--|\n"


def page() -> str:
    """The page in Markdown."""
    parts = [HEAD]
    for name, options in COMMANDS.items():
        rows = "".join(f"| {' | '.join(row)} |\n" for row in rows_of(options))
        about = (inspect.getdoc(options) or "").partition("\n\nExit codes")[0]
        parts.append(f"## python -m minimind.{name}\n\n{about}\n\n{COLUMNS}{rows}")
    return "\n".join(parts)


def rows_of(options: type[Any], defaults: Any = None) -> Iterator[tuple[str, str, str]]:
    """(option, default, help) of each of a dataclass's fields, those of dataclasses in it, too.

    `defaults` is an instance with values in place of the class's own.
    """
    helps = _helps(options)
    for field in fields(options):
        default = _default(field) if defaults is None else getattr(defaults, field.name)
        if is_dataclass(default):
            yield from rows_of(type(default), default)
            continue
        name = f"`--{field.name.replace('_', '-')}`"
        if "Positional" in str(field.type):
            name = f"`{field.name.upper()}`"
        elif default is True:
            name = name.replace("--", "--no-")
        words = " ".join(helps[field.name].split()).replace("|", "\\|")
        yield name, _shown(default), words[0].upper() + words[1:]


def _default(field: Field[Any]) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _shown(default: Any) -> str:
    if default is MISSING:
        return "must be given"
    if isinstance(default, bool):
        return "on; this turns it off" if default else "off"
    if isinstance(default, Path):  # one inside the package differs from machine to machine
        return "the embedded base" if default.is_absolute() else f"`{default}`"
    if isinstance(default, tuple):
        return " ".join(map(str, default)) or "none"
    return "none" if default is None else str(default)


def _helps(options: type[Any]) -> dict[str, str]:
    """The words under each field, or those of the class's Attributes section; bases' too."""
    found = {}
    for base in options.__bases__:
        if is_dataclass(base):
            found |= _helps(base)
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(body, ast.ClassDef)
    for field, words in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(words, ast.Expr):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = ast.literal_eval(words.value)
    attributes = inspect.getdoc(options).partition("Attributes:\n")[2].partition("\n\n")[0]
    for name, words in re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE):
        found.setdefault(name, words)
    return found


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
