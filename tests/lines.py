"""Count the lines a reader meets: `python -m tests.lines`. All lines count, blank ones too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import minimind

PACKAGE = Path(minimind.__file__).parent
MOST_LINES_A_FILE = 400

# What a Python of its own has loaded of us after some code, one path a line.
LOADED = """
import sys
from pathlib import Path
{code}
for module in list(sys.modules.values()):
    path = getattr(module, "__file__", None) or ""
    if path.endswith(".py") and Path(path).is_relative_to({package!r}):
        print(path)
"""


def loaded(code: str) -> list[Path]:
    """The files of the package that some code loads."""
    program = LOADED.format(code=code, package=str(PACKAGE))
    run = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
    )
    return [Path(line) for line in run.stdout.splitlines()]


def package() -> list[Path]:
    """All files of the package but base/recipe, which is in a clone only."""
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "recipe" not in path.parts]


def lines_of(path: Path) -> int:
    """How many lines a file has."""
    return len(path.read_text(encoding="utf-8").splitlines())


def main() -> None:
    """Print the three totals, and the files that are too long."""
    parts = {
        "import minimind": loaded("import minimind"),
        "python -m minimind.sft": loaded("import minimind.sft.__main__"),
        "minimind/": package(),
    }
    for name, paths in parts.items():
        total = sum(map(lines_of, paths))
        print(f"{name:24} {len(paths):3} files {total:7,} lines")
    for path in package():
        if lines_of(path) > MOST_LINES_A_FILE:
            print(f"{path.relative_to(PACKAGE.parent)}: {lines_of(path)} lines")


if __name__ == "__main__":
    main()
