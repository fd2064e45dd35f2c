"""Print every error of the files in bad_rows. Works without torch, in any locale."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minimind.data.conversation import DataError
from minimind.data.reader import read_conversations

BAD_ROWS = Path(__file__).parent / "bad_rows"


def report() -> str:
    """For each file how many rows were read all the same, and then each error: kind and message."""
    os.chdir(BAD_ROWS)  # so that messages name the file alone
    blocks = []
    for name in sorted(os.listdir()):
        errors: list[DataError] = []
        good = sum(1 for _ in read_conversations(name, on_error=errors.append))
        blocks.append(f"== {name}: {good} rows, {len(errors)} errors\n")
        blocks += [f"{error.kind}: {error}\n" for error in errors]
    return "".join(blocks)


if __name__ == "__main__":
    sys.stdout.buffer.write(report().encode())
