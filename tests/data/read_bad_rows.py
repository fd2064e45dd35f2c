"""Print every error of the files in bad_rows, and of others that git can't keep.

Works without torch, in any locale.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import sys
import tarfile
import tempfile
from pathlib import Path

from minimind.data.errors import DataError
from minimind.data.reader import MAX_LINE, read_conversations

BAD_ROWS = Path(__file__).parent / "bad_rows"
GOOD = b'{"instruction": "Say hi.", "input": "", "output": "Hi."}'
ABSENT = ("/dev/zero", "missing.jsonl", "empty.jsonl/rows.jsonl")
CHANGED = "changed.jsonl"


def tar() -> bytes:
    """A tar archive with a file of rows."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        member = tarfile.TarInfo("rows.jsonl")
        member.size = len(GOOD)
        archive.addfile(member, io.BytesIO(GOOD))
    return stream.getvalue()


MADE = {
    CHANGED: (GOOD + b"\n") * 9,
    "bzip2.jsonl": bz2.compress(GOOD),
    "bom_and_bad_row.jsonl": b"\xef\xbb\xbf{}\n" + GOOD,
    "carriage_returns_only.jsonl": GOOD + b"\r" + GOOD + b"\r",
    "columns.json": b'{"prompt": {"0": "a", "1": "b"}, "completion": {"0": "c", "1": "d"}}',
    "comments.json": b"// rows\n[" + GOOD + b"]",
    "crlf.jsonl": b"{}\r\n" + GOOD + b"\r\n\r\n{'a'\r\n" + GOOD[:-1] + b"\r\n",
    "deep.jsonl": b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n" + GOOD,
    "error_page.jsonl": b"<!DOCTYPE html>\n<html><body>404: Not Found</body></html>\n",
    "gzip_in_gzip.jsonl.gz": gzip.compress(gzip.compress(GOOD, mtime=0), mtime=0),
    "gzip_and_more.jsonl.gz": gzip.compress(GOOD, mtime=0) + b"more",
    "last_line_cut_off.jsonl": GOOD + b"\n" + GOOD[:-9],
    "last_line_without_end.jsonl": b"{}\n" + GOOD,
    "pointer_of_git_lfs.jsonl": b"version https://git-lfs.github.com/spec/v1\nsize 12345\n",
    "separators.jsonl": GOOD + "\u2028".encode() + GOOD + b"\n\x0b\n",
    "table.csv": b"question,answer\n1 + 1?,2\n",
    "tar.jsonl": tar(),
    "xz.jsonl": lzma.compress(GOOD),
    "나쁜.jsonl": b"{}",
    "zstandard.jsonl": b"\x28\xb5\x2f\xfd\x04\x00",
}


def report() -> str:
    """For each file how many rows were read all the same, and then each error: kind and message."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(BAD_ROWS, folder, dirs_exist_ok=True)
        os.chdir(folder)  # so that messages name the file alone
        for name, content in MADE.items():
            Path(os.fsdecode(name.encode())).write_bytes(content)
        Path("folder.jsonl").mkdir()
        with open("long_line.jsonl", "wb") as file:
            file.write(b'{"prompt": "')
            file.seek(MAX_LINE)  # a hole takes no room on a disk
            file.write(b'"}\n' + GOOD)
        blocks = [_report_of(name) for name in [*ABSENT, *sorted(os.listdir())]]
        os.chdir(BAD_ROWS)
    return "".join([_report_of(), *blocks])


def _report_of(*names: str) -> str:
    errors: list[DataError] = []
    good = 0
    try:
        for _ in read_conversations(names, on_error=errors.append):
            good += 1
            if names == (CHANGED,) and good == 1:
                Path(CHANGED).write_bytes(b"")
    except DataError as error:
        errors.append(error)
    name = os.fsencode(" ".join(names)).decode()
    head = f"== {name}: {good} rows, {len(errors)} errors\n"
    return head + "".join(f"{error.kind}: {error}\n" for error in errors)


if __name__ == "__main__":
    sys.stdout.buffer.write(report().encode())
