"""Imports point one way, and importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minimind

ROOT = Path(minimind.__file__).parent

# A module imports only modules that stand above it, or before it on its own line.
ORDER = """
    version, durable
    control_tokens, vocabulary, tokenizer
    data:      conversation, strict_json, reader, sources, chatml, scripts, ngrams
    data:      mojibake, unsafe, quality, near_duplicates, diversity
    data:      questions, masking, documents, table, dataset, selection, corpus, mixing, packing
    model:     config, shapes, rope, elementwise, attention, cache, linear, transformer, pretrained
    training:  precision, compiling, distributed, optim, loss, prefetch, loop, trial, checkpoint
    graphemes, sampler, scoring, metrics, evaluation
    survey, preflight, cleaning
    summary, page, evaluate_page, inspect_page, prompt_line
    stopping, resuming, journal, run, command
    base.recipe: korean, english, facts, grammar, statements, stories, sums, filter, pretraining
    sft, pretrain, chat, evaluate, inspect, clean
    base.recipe: world, gather, search, questions
"""
# And three rules more:
# - data and model don't know each other; only model.pretrained imports data.chatml, to save it.
# - the last two lines are the commands: nothing imports them. They, run and command
#   alone parse and print.
# - conversation, strict_json, reader and chatml need the standard library only.
MEETING = ("model.pretrained", "data.chatml")
STANDARD_ONLY = (
    "data.conversation",
    "data.strict_json",
    "data.reader",
    "data.chatml",
    "data.scripts",
)


def table() -> list[list[str]]:
    """ORDER as lists of modules' full names."""
    lines = []
    for line in ORDER.strip().splitlines():
        package, _, names = line.rpartition(":")
        prefix = package.strip() + "." if package else ""
        lines.append([prefix + name.strip() for name in names.split(",")])
    return lines


PLACE = {name: place for place, name in enumerate(name for line in table() for name in line)}
COMMANDS = frozenset(table()[-2] + table()[-1])


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {
    name_of(path): ast.parse(path.read_text(encoding="utf-8"), str(path))
    for path in sorted(ROOT.rglob("*.py"))
    if path.name != "__init__.py"
}


def imported(tree: ast.AST) -> set[str]:
    """Every module that a tree imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out from minimind on"
            module = node.module or ""
            for alias in node.names:  # `from minimind.data import chatml` names a module, too
                inner = f"{module}.{alias.name}".removeprefix("minimind.")
                found.add(f"minimind.{inner}" if inner in PLACE else module)
    return found


def own(tree: ast.AST) -> set[str]:
    names = {name for name in imported(tree) if name.split(".")[0] == "minimind"}
    return {name.removeprefix("minimind.") for name in names}


def others(tree: ast.AST) -> set[str]:
    return {name.split(".")[0] for name in imported(tree)} - {"minimind"}


def upward(name: str, tree: ast.AST) -> list[str]:
    """What a module imports that stands beside or below it, or isn't a module at all."""
    return sorted(other for other in own(tree) if PLACE.get(other, len(PLACE)) >= PLACE[name])


def test_every_module_has_its_place() -> None:
    assert sorted(PLACE) == sorted(MODULES), "put a new module into ORDER, above what imports it"


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str) -> None:
    assert upward(name, MODULES[name]) == []


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("data.masking", "from minimind.data.packing import Batch", ["data.packing"]),
        ("data.masking", "from minimind.data import packing", ["data.packing"]),
        ("data.masking", "def f():\n    import minimind.data.masking", ["data.masking"]),
        ("sampler", "from minimind import reply", ["minimind"]),
        ("sampler", "from minimind.sft import run", ["sft"]),
        ("sampler", "from minimind.data.masking import encode_prompt", []),
    ],
)
def test_an_upward_import_is_found_wherever_it_hides(
    name: str, source: str, wrong: list[str]
) -> None:
    assert upward(name, ast.parse(source)) == wrong


def test_the_data_chain_and_the_model_chain_meet_in_one_place_only() -> None:
    meetings = {
        (name, other)
        for name, tree in MODULES.items()
        for other in own(tree)
        if {name.split(".")[0], other.split(".")[0]} == {"data", "model"}
    }
    assert meetings == {MEETING}


def test_nobody_imports_a_command() -> None:
    assert {(name, c) for name, tree in MODULES.items() for c in own(tree) & COMMANDS} == set()


def test_packages_hold_no_code() -> None:
    for path in ROOT.rglob("__init__.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = {type(node) for node in tree.body[1:]}  # after the docstring
        assert kinds <= {ast.ImportFrom, ast.Assign}  # names, and __all__
        assert path.parent == ROOT or not kinds
        assert not {module.removeprefix("minimind.") for module in imported(tree)} & COMMANDS


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_rows_are_read_and_rendered_by_the_standard_library_alone(name: str) -> None:
    assert others(MODULES[name]) <= sys.stdlib_module_names
    assert own(MODULES[name]) <= set(STANDARD_ONLY)


def test_only_commands_run_and_command_parse_arguments_print_and_draw_bars() -> None:
    def speaks(tree: ast.AST) -> bool:
        calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
        printing = any(isinstance(func, ast.Name) and func.id == "print" for func in calls)
        return printing or not others(tree).isdisjoint({"tyro", "tqdm", "argparse"})

    speaking = {name for name, tree in MODULES.items() if speaks(tree)}
    assert speaking <= COMMANDS | {"run", "command"}
    assert "sft" in speaking  # the check sees what it looks for


@pytest.mark.parametrize(
    "absent",
    ["transformers", "datasets", "pyarrow", "matplotlib", "tyro", "huggingface_hub", "jinja2"],
)
def test_importing_minimind_does_not_import(absent: str, loaded: set[str]) -> None:
    assert "minimind.sampler" in loaded
    assert absent not in loaded


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that `import minimind` brings, in a Python of its own."""
    code = "import minimind, sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT.parent
    )
    return set(run.stdout.split())
