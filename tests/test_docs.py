"""What README and docs tell one to do works, and both READMEs say the same."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from minimind.cli.options import option_names
from minimind.model.config import ModelConfig
from tests.support import options_page
from tests.support.tiny import CONFIG, write_base

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README, KOREAN = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.ko.md")
)
# What makes a command of a page short enough for a test.
SHORTER = {
    "sft": ["--max-steps", "2", "--device", "cpu"],
    "evaluate": ["--max-new-tokens", "4"],
    "pretrain": ["--max-length", "64", "--tokens-per-step", "256"],
    "chat": ["--max-new-tokens", "4"],
}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """Every command of a page's shell blocks, split into words."""
    lines = "".join(blocks(page.read_text(encoding="utf-8"), "sh")).splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that pages speak of."""
    sample = (ROOT / "tests/data/conversations.jsonl").read_text(encoding="utf-8").splitlines(True)
    for name in ("data.jsonl", "eval.jsonl", "tests/data/conversations.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(sample[:40]), encoding="utf-8")
    for name in ("text.txt", "story.txt", "prompts.txt"):
        (tmp_path / name).write_text("옛날에 고양이가 있었어요.\n" * 100, encoding="utf-8")
    shape = ModelConfig.to_hf(CONFIG)
    (tmp_path / "tiny.json").write_text(json.dumps(shape), encoding="utf-8")
    for name in ("embedded", "conversations-1", "conversations-1/last"):
        write_base(tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("minimind.model.pretrained.BASE", tmp_path / "runs" / "embedded")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_works(page: Path, place: Path, monkeypatch) -> None:
    for words in commands(page):
        if "pip" in words:  # the first screen: .ci/run does that
            continue
        if words[0] == "torchrun":  # test_distributed does that
            continue
        assert words[:2] == ["python", "-m"], words
        name = words[2].removeprefix("minimind.")
        arguments = [*words[3:], *SHORTER.get(name, [])]
        if name == "pretrain" and "--model" not in words:
            arguments += ["--config", "tiny.json"]
        monkeypatch.setattr(sys, "argv", [words[2], *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        assert import_module(f"{words[2]}.__main__").main() == 0, words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_piece_of_python_of_a_page_runs(page: Path, place: Path) -> None:
    names: dict[str, object] = {}
    for code in blocks(page.read_text(encoding="utf-8"), "python"):
        exec(compile(code, page.name, "exec"), names)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.ko.md"], ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert find_spec(module) is not None, module
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (page.parent / target).exists(), target
    for path in re.findall(r"`((?:tests|benchmarks|minimind|docs)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_options_page_is_what_the_code_says() -> None:
    assert options_page.PAGE.read_text(encoding="utf-8") == options_page.page()


def test_the_options_page_knows_every_option() -> None:
    for options in options_page.COMMANDS.values():
        shown = {row[0].strip("`").lstrip("-") for row in options_page.rows_of(options)}
        plain = {name.removeprefix("no-").lower() for name in shown}
        assert option_names(options) == plain


def test_both_readmes_have_the_same_commands_links_and_figures() -> None:
    def skeleton(text: str) -> dict[str, list[str]]:
        prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        return {
            "code": re.findall(r"```.*?```", text, re.DOTALL),
            "links": sorted(
                set(re.findall(r"\]\(([^)]+)\)", prose)) - {"README.md", "README.ko.md"}
            ),
            "headings": re.findall(r"^#+", prose, re.MULTILINE),
            "options": re.findall(r"^\| `--.*?\|", prose, re.MULTILINE),
            "speed": re.findall(
                r"\d+(?:\.\d+)?", " ".join(re.findall(r".*(?:litgpt|transf).*", prose))
            ),
            "answers": re.findall(r"^\| [^|]+ \| [^|]+ \|$", details(prose), re.MULTILINE)[1:],
        }

    def details(prose: str) -> str:
        return prose[prose.index("<details>") : prose.index("</details>")]

    assert skeleton(KOREAN) == skeleton(README)
