"""Imports point one way, and importing is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import minimind
from tests.lines import MOST_LINES_A_FILE, lines_of, package

ROOT = Path(minimind.__file__).parent
# A room imports only rooms before it, and modules of its own.
ROOMS = ["shared", "tokenizer", "data", "model", "training", "sampler", "text", "cli"]
SHARED = {"version", "atomic_io", "documents", "terminal"}
COMMANDS = ["sft", "pretrain", "chat", "inspect", "clean", "evaluate"]
CORE = {"shared", "tokenizer", "data", "model", "training", "sampler"}


def room_of(module: str) -> str:
    """minimind.data.masking -> data"""
    name = module.split(".")[1] if "." in module else "minimind"
    return "shared" if name in SHARED else name


def modules() -> dict[str, ast.AST]:
    """All modules by their full names; base/recipe, which is in a clone only, left out."""
    paths = [path for path in sorted(ROOT.rglob("*.py")) if "recipe" not in path.parts]
    names = [".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in paths]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    return {n.removesuffix(".__init__"): ast.parse(t) for n, t in zip(names, texts, strict=True)}


MODULES = modules()


def imported(tree: ast.AST) -> set[str]:
    """Every module of ours that a tree imports, inside functions too."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out from minimind on"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in MODULES else node.module or "" for name in names}
    return {name for name in found if name.split(".")[0] == "minimind"}


def breaches(module: str, tree: ast.AST) -> list[str]:
    """What a module imports from rooms that it must not know."""
    room = room_of(module)
    if room == "minimind":
        allowed = CORE
    elif room in COMMANDS:
        allowed = {*ROOMS, room}
    else:
        allowed = {*ROOMS[: ROOMS.index(room) + 1]} - ({"text", "cli"} if room in CORE else set())
    return sorted(name for name in imported(tree) if room_of(name) not in allowed)


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    assert breaches(module, MODULES[module]) == []


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("minimind.data.masking", "from minimind.data.packing import Batch", []),
        ("minimind.data.masking", "from minimind import reply", ["minimind"]),
        ("minimind.data.masking", "from minimind.model import rope", ["minimind.model.rope"]),
        ("minimind.training.loop", "import minimind.text.ngrams", ["minimind.text.ngrams"]),
        ("minimind.sft.record", "from minimind.chat import graphemes", ["minimind.chat.graphemes"]),
    ],
)
def test_a_breach_is_found(module: str, source: str, wrong: list[str]) -> None:
    assert breaches(module, ast.parse(source)) == wrong


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """The modules that `import minimind` brings, in a Python of its own."""
    code = "import minimind, sys; print(*sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT.parent
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "absent",
    [
        "transformers",
        "datasets",
        "pyarrow",
        "matplotlib",
        "tyro",
        "huggingface_hub",
        "jinja2",
        "sentencepiece",
    ],
)
def test_importing_minimind_does_not_import(absent: str, loaded: set[str]) -> None:
    assert "minimind.sampler" in loaded
    assert absent not in loaded


def test_importing_minimind_loads_no_command_and_no_rule(loaded: set[str]) -> None:
    rooms = {room_of(name) for name in loaded if name.startswith("minimind.")}
    assert rooms.isdisjoint({*COMMANDS, "text", "cli"})


def test_no_file_is_longer_than_a_reader_wants() -> None:
    long = {path.name: lines_of(path) for path in package() if lines_of(path) > MOST_LINES_A_FILE}
    assert not long
