"""Separate good rows from bad ones, in two passes over the files.

pass 1   each row: rules ----> verdicts, on disk          memory hardly
         each row: key, signature ----> duplicates        grows with rows
pass 2   each row: kept as its very bytes, or rejected with file, line, rule and evidence

Memory grows by some hundred bytes a row, most of them pages of mapped files: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from minimind.clean.diversity import Diversity
from minimind.clean.rules import Rule, Thresholds, Verdict, judge
from minimind.data.conversation import Conversation, parse_conversation
from minimind.data.errors import DataError, one_line
from minimind.data.keys import KeyCounts
from minimind.data.reader import Row, read_rows
from minimind.data.storage import working_folder
from minimind.text.near_duplicates import DuplicateFinder, Ints, minhash_available

UNUSABLE, DUPLICATE, NEAR_DUPLICATE = "unusable", "duplicate", "near_duplicate"
DATASET_RULES = (DUPLICATE, NEAR_DUPLICATE)  # rules that one row alone can't break
_WORKING = ".minimind-clean-"
DIVERSITY_ROWS = 100_000  # at most; of more rows every n-th is taken


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What to look for.

    Attributes:
        rules: of one row, by name.
        dataset_rules: some of DATASET_RULES.
        thresholds: of the rules.
        similarity: least share of common 5-grams of letters of two near duplicates.
        parse: turns a row into a Conversation; see `parse_conversation`.
    """

    rules: Mapping[str, Rule]
    dataset_rules: Sequence[str]
    thresholds: Thresholds
    similarity: float = 0.85
    parse: Callable[..., Conversation] = parse_conversation

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}; use more than 0, up to 1")


@dataclass(kw_only=True)
class CleaningReport(KeyCounts):
    """What became of the rows, and the keys that weren't read in those that can be used.

    Attributes:
        rows: read, unusable ones too.
        kept: written to the cleaned file.
        rejected: rows by rule; a row that breaks several rules counts in each.
        not_checked: what couldn't be checked, and why.
        before, after: figures of diversity.
    """

    rows: int = 0
    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    not_checked: dict[str, str] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)
    after: dict[str, Any] = field(default_factory=dict)


def clean_rows(
    files: Sequence[str],
    cleaning: Cleaning,
    out: Path,
    rejected: Path,
    done: Callable[[int], object] = lambda rows: None,
    names: Mapping[str, str] | None = None,
) -> CleaningReport:
    """Write the good rows of some files to one file, and the others to another.

    At the end each file appears complete or not at all, `rejected` first: if `out` then can't be
    replaced, only `rejected` is new. Until then, about a kilobyte a row and the rows themselves are
    kept in temporary folders beside them.

    Args:
        files: each is read twice.
        cleaning: what to look for.
        out: the kept rows, byte for byte, in order; an array's rows are written one a line.
        rejected: JSON Lines of file, line, rule, evidence, all verdicts, and the row's source.
        done: called with the number of rows that were judged since the last call.
        names: the files' names in messages and in `rejected`, where they aren't their paths.

    Raises:
        DataError: a file can't be opened or read to its end, or changes meanwhile.
        ValueError: a rule returns neither evidence nor None.
    """
    report = CleaningReport()
    near = NEAR_DUPLICATE in cleaning.dataset_rules
    if near and not minhash_available():
        near = False
        report.not_checked[NEAR_DUPLICATE] = "needs datasketch: pip install 'minimind-sft[clean]'"
    names = names or {}
    out, rejected = out.resolve(), rejected.resolve()  # a symbolic link stays one
    with (  # in their file systems, so that the files can be moved
        working_folder(out.parent, _WORKING, 0o777) as folder,
        working_folder(rejected.parent, _WORKING, 0o777) as beside,
    ):
        with (
            DuplicateFinder(folder, near) as finder,
            (folder / "verdicts").open("w", encoding="utf-8") as file,
        ):
            for row in _read(files, names):
                if isinstance(row, DataError) and row.rest_unread:
                    raise row
                found, conversation = _judge(row, cleaning)
                finder.add(None if found else conversation)
                if conversation is not None:
                    messages = len(conversation.messages)
                    report.count_keys(messages, conversation.unread, conversation.read_as)
                file.write(json.dumps([_checksum(row), found]) + "\n")
                report.rows += 1
                done(1)
            originals: dict[str, Ints] = {}
            if DUPLICATE in cleaning.dataset_rules:
                originals[DUPLICATE] = finder.duplicates()
            if near:
                originals[NEAR_DUPLICATE] = finder.near_duplicates(cleaning.similarity)
        with (folder / "kept").open("wb") as good, (beside / "rejected").open("wb") as bad:
            judged = _with_verdicts(_read(files, names), folder / "verdicts")
            _partition(judged, originals, cleaning, good, bad, report)
        os.replace(beside / "rejected", rejected)
        os.replace(folder / "kept", out)
    return report


def _read(files: Sequence[str], names: Mapping[str, str]) -> Iterator[Row | DataError]:
    for row in read_rows(files):
        row.path = names.get(row.path, row.path)
        yield row


def _judge(row: Row | DataError, cleaning: Cleaning) -> tuple[list[Verdict], Conversation | None]:
    """What is wrong with a row by itself, and its conversation if it has one."""
    try:
        if isinstance(row, DataError):
            raise row
        conversation = _parse(row, cleaning)
    except DataError as error:
        return [Verdict(UNUSABLE, f"{error.fact}; {error.remedy}")], None
    return judge(conversation, cleaning.rules, cleaning.thresholds), conversation


def _parse(row: Row, cleaning: Cleaning) -> Conversation:
    return cleaning.parse(row.value, path=row.path, line=row.line, text=row.text)


def _checksum(row: Row | DataError) -> int:
    return zlib.crc32(row.raw if isinstance(row, Row) else str(row).encode("utf-8", "replace"))


def _with_verdicts(
    rows: Iterator[Row | DataError], verdicts: Path
) -> Iterator[tuple[Row | DataError, list[Verdict]]]:
    """Each row with its verdicts of pass 1, which was over the same rows."""
    with verdicts.open(encoding="utf-8") as file:
        for row, line in zip_longest(rows, file):
            checksum, found = json.loads(line) if line else (None, [])
            if row is None or _checksum(row) != checksum:
                remedy = "clean it when nothing else writes to it"
                path = row.path if row else ""
                raise DataError("changed", "changed while it was cleaned", remedy, path)
            yield row, [Verdict(*pair) for pair in found]


def _partition(
    judged: Iterator[tuple[Row | DataError, list[Verdict]]],
    originals: Mapping[str, Ints],
    cleaning: Cleaning,
    good: BinaryIO,
    bad: BinaryIO,
    report: CleaningReport,
) -> None:
    """Pass 2: write each row to its file, and complete the report.

    `originals` has by rule, (rows,) the earlier row that each row repeats, or -1.
    """
    before, after = Diversity(), Diversity()
    every = -(-report.rows // DIVERSITY_ROWS) or 1
    repeated = {row for rows in originals.values() for row in np.unique(rows).tolist()}
    places: dict[int, str] = {}
    for index, (row, found) in enumerate(judged):
        if index in repeated:
            places[index] = f"{row.path}:{row.line}"
        for rule, rows in originals.items():
            if not found and rows[index] >= 0:
                how = "the same as" if rule == DUPLICATE else "nearly the same as"
                found = [Verdict(rule, f"says {how} {places[int(rows[index])]}")]
        report.rejected.update([verdict.rule for verdict in found])
        if found:
            _write_rejected(bad, row, found)
        else:
            assert isinstance(row, Row)
            good.write(_source(row))
            report.kept += 1
        if index % every == 0 and not (found and found[0].rule == UNUSABLE):
            assert isinstance(row, Row)
            conversation = _parse(row, cleaning)
            before.add(conversation)
            if not found:
                after.add(conversation)
    report.before, report.after = before.figures(), after.figures()


def _source(row: Row) -> bytes:
    """The row's bytes, and a line end for an array's row and for the last line if it has none."""
    return row.raw if row.raw.endswith(b"\n") else f"{one_line(row.raw.decode())}\n".encode()


def _write_rejected(bad: BinaryIO, row: Row | DataError, found: list[Verdict]) -> None:
    text = row.row if isinstance(row, DataError) else _source(row).decode().rstrip("\r\n")
    entry = {"file": row.path, "line": row.line, **found[0]._asdict()}
    entry |= {"verdicts": [verdict._asdict() for verdict in found], "row": text}
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    bad.write(line.encode("utf-8", "backslashreplace"))
