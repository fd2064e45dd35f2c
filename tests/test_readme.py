"""README says what is true: its options, its defaults, its Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import tuning
from minimind.sft.options import BASE_LEARNING_RATE, SFTOptions
from tests.support.tiny import write_base

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows() -> dict[str, str]:
    table = re.findall(r"^\| (`--.*?) \| (.*?) \|", README, re.MULTILINE)
    out = {}
    for names, values in table:
        options = re.findall(r"--([\w-]+)", names)
        defaults = values.split(", ") if len(options) > 1 and ", " in values else [values]
        for index, option in enumerate(options):
            out[option] = defaults[min(index, len(defaults) - 1)]
    return out


def test_the_option_table_gives_the_real_defaults() -> None:
    options = SFTOptions(files=("x",))
    for option, shown in rows().items():
        name = option.replace("-", "_")
        holder = next(
            holder
            for holder in (options, options.run, options.split, options.data, options.training)
            if name in type(holder).__dataclass_fields__
        )
        value = getattr(holder, name)
        if value is None or value is False:
            assert not re.match(r"\d", shown) or "×" in shown, option
        elif isinstance(value, tuple):
            assert tuple(float(part) for part in shown.split()) == value, option
        elif isinstance(value, str):
            assert shown == value, option
        else:
            assert float(shown.split(";")[0]) == value, option
    assert (
        f"{BASE_LEARNING_RATE:g}" == f"{float(rows()['learning-rate'].split(';')[1].split()[0]):g}"
    )


def test_the_ten_lines_of_python_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert code
    lines = (ROOT / "tests/data/conversations.jsonl").read_text(encoding="utf-8").splitlines(True)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(lines[:40]), encoding="utf-8")
    base = write_base(tmp_path / "base")
    text = code[1].replace("tests/data/conversations.jsonl", str(few))
    text = text.replace("minimind.load()", f"minimind.load({str(base)!r})")
    text = text.replace("% 50", "% 2")
    exec(compile(text, "README.md", "exec"), {})
    assert "step 2/" in capsys.readouterr().out


def test_ci_runs_the_two_commands_of_the_first_screen_as_they_stand() -> None:
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()
    commands = re.search(r"```sh\n(.*?)```", README, re.DOTALL)
    assert commands
    lines = [line for line in commands[1].splitlines() if line and not line.startswith("#")]
    assert len(lines) == 2
    assert set(lines) <= set(ci)


def test_benchmarks_tune_as_the_first_command_does() -> None:
    files = " ".join(str(path.relative_to(ROOT)) for path in tuning.SAMPLE)
    assert f"-m minimind.sft {files} --epochs {tuning.EPOCHS}\n" in README
