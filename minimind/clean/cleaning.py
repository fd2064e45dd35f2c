"""Part good rows from bad ones, in two passes over the files. Knows no command line.

pass 1   each row: rules ----> verdicts, on disk          memory hardly
         each row: key, signature ----> duplicates        grows with rows
pass 2   each row: kept as its very bytes, or rejected with file, line, rule and evidence

Memory grows by some hundred bytes a row, most of them pages of mapped files: benchmarks/RESULTS.md.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from minimind.clean.diversity import Diversity
from minimind.clean.rules import Rule, Thresholds, Verdict, judge
from minimind.data.conversation import Conversation, parse_conversation
from minimind.data.errors import DataError, one_line
from minimind.data.reader import REST_UNREAD, Row, read_rows
from minimind.text.near_duplicates import DuplicateFinder, Ints, minhash_available

UNUSABLE, DUPLICATE, NEAR_DUPLICATE = "unusable", "duplicate", "near_duplicate"
DATASET_RULES = (DUPLICATE, NEAR_DUPLICATE)  # rules that one row can't break
DIVERSITY_ROWS = 100_000  # at most; of more every n-th is taken


@dataclass(frozen=True, kw_only=True)
class Cleaning:
    """What to look for.

    Attributes:
        rules: of one row, by name.
        of_the_set: of DATASET_RULES.
        thresholds: where rules begin to object.
        similarity: from which share of common 5-grams of letters on two rows are near duplicates.
        parse: how a row becomes a Conversation; see `parse_conversation`.
    """

    rules: Mapping[str, Rule]
    of_the_set: Sequence[str]
    thresholds: Thresholds
    similarity: float = 0.85
    parse: Callable[..., Conversation] = parse_conversation

    def __post_init__(self) -> None:
        if not 0 < self.similarity <= 1:
            raise ValueError(f"similarity is {self.similarity}; use more than 0, up to 1")


@dataclass(kw_only=True)
class CleaningReport:
    """What came of it.

    Attributes:
        rows: read, unusable ones too.
        kept: written.
        rejected: rows by rule; a row that breaks several counts in each.
        not_checked: what couldn't be, and why.
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
    """Write the good rows of some files to one, and the others to another.

    Both files appear whole at the end, or not at all. Until then, about a kilobyte a row and the
    rows themselves are kept beside them.

    Args:
        files: each is read twice.
        cleaning: what to look for.
        out: the kept rows, byte for byte, in order; an array's rows are written one a line.
        rejected: JSON Lines of file, line, rule, evidence, all verdicts, and the row's source.
        done: told how many rows were looked at.
        names: by which files are told, where it isn't by their paths.

    Raises:
        DataError: a file can't be opened or read to its end, or changes meanwhile.
        ValueError: a rule gives what is no evidence.
    """
    report = CleaningReport()
    near = NEAR_DUPLICATE in cleaning.of_the_set
    if near and not minhash_available():
        near = False
        report.not_checked[NEAR_DUPLICATE] = "needs datasketch: pip install 'minimind-sft[clean]'"
    if not near:
        report.not_checked["topics"] = "found along with near duplicates"
    names = {path: path for path in files} | dict(names or {})
    out, rejected = out.resolve(), rejected.resolve()  # a link stays one
    with _scratch(out.parent) as folder, _scratch(rejected.parent) as beside:
        with DuplicateFinder(folder, near) as finder:
            _judge(files, names, cleaning, folder / "verdicts.jsonl", finder, report, done)
            none = np.full(report.rows, -1, np.int64)
            same = finder.duplicates() if DUPLICATE in cleaning.of_the_set else none
            alike = finder.near_duplicates(cleaning.similarity) if near else none
            topics = finder.topics() if near else None
        with ExitStack() as stack:
            good = stack.enter_context((folder / "kept").open("wb"))
            bad = stack.enter_context((beside / "rejected").open("wb"))
            verdicts = stack.enter_context((folder / "verdicts.jsonl").open(encoding="utf-8"))
            places = np.fromfile(folder / "places.bin", "<u4").reshape(-1, 3)

            def place(row: int) -> str:
                file, line, _ = places[row].tolist()
                return f"{names[files[file]]}:{line}"

            kept = _part(
                _unchanged(read_rows(files), places[:, 2]),
                names,
                cleaning,
                (_verdicts(line) for line in verdicts),
                lambda row: _repeats(row, same, alike, place),
                good,
                bad,
                report,
            )
        if topics is not None:
            report.before |= _topics(topics)
            report.after |= _topics(topics[kept])
        os.replace(beside / "rejected", rejected)
        os.replace(folder / "kept", out)
    return report


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder in the file system in which what it holds will stay."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".cleaning-") as name:
        yield Path(name)


def _judge(
    files: Sequence[str],
    names: Mapping[str, str],
    cleaning: Cleaning,
    verdicts: Path,
    finder: DuplicateFinder,
    report: CleaningReport,
    done: Callable[[int], object],
) -> None:
    """Pass 1: what is wrong with each row by itself, a line each, and what it says."""
    file_index = {path: index for index, path in enumerate(files)}
    with (
        verdicts.open("w", encoding="utf-8", errors="backslashreplace") as out,
        (verdicts.with_name("places.bin")).open("wb") as places,
    ):
        for row in read_rows(files):
            if isinstance(row, DataError) and _rest_is_unread(row):
                row.path = names[row.path]
                raise row
            found, conversation = _verdicts_of(row, cleaning)
            finder.add(None if found else conversation)
            out.write(json.dumps(found, ensure_ascii=False) + "\n")
            place = np.array([file_index[row.path], row.line, _checksum(row)], "<u4")
            places.write(place.tobytes())
            report.rows += 1
            done(1)


def _rest_is_unread(error: DataError) -> bool:
    """Whether rows after an error are lost: what was kept would look like all that was good."""
    return not error.line or error.kind == "unreadable" or error.remedy.endswith(REST_UNREAD)


def _checksum(row: Row | DataError) -> int:
    return zlib.crc32(row.raw if isinstance(row, Row) else str(row).encode("utf-8", "replace"))


def _unchanged(
    rows: Iterator[Row | DataError], checksums: npt.NDArray[np.uint32]
) -> Iterator[Row | DataError]:
    """The rows, which must be those of pass 1: verdicts are theirs."""
    count = 0
    for count, row in enumerate(rows, start=1):
        if count > len(checksums) or _checksum(row) != checksums[count - 1]:
            raise _changed(row.path)
        yield row
    if count < len(checksums):
        raise _changed("")


def _changed(path: str) -> DataError:
    remedy = "clean it when nothing else writes to it"
    return DataError("changed", "changed while it was cleaned", remedy, path)


def _verdicts_of(
    row: Row | DataError, cleaning: Cleaning
) -> tuple[list[Verdict], Conversation | None]:
    try:
        conversation = _conversation(row, cleaning)
    except DataError as error:
        return [Verdict(UNUSABLE, f"{error.fact}; {error.remedy}")], None
    return judge(conversation, cleaning.rules, cleaning.thresholds), conversation


def _conversation(row: Row | DataError, cleaning: Cleaning) -> Conversation:
    if isinstance(row, DataError):
        raise row
    return cleaning.parse(row.value, path=row.path, line=row.line, text=row.text)


def _part(
    rows: Iterator[Row | DataError],
    names: Mapping[str, str],
    cleaning: Cleaning,
    verdicts: Iterator[list[Verdict]],
    repeats: Callable[[int], list[Verdict]],
    good: BinaryIO,
    bad: BinaryIO,
    report: CleaningReport,
) -> npt.NDArray[np.bool_]:
    """Pass 2: write each row where it belongs; (rows,) which were kept."""
    before, after, kept = Diversity(), Diversity(), np.zeros(report.rows, bool)
    every = -(-report.rows // DIVERSITY_ROWS) or 1
    for index, row in enumerate(rows):
        found = next(verdicts) or repeats(index)
        report.rejected.update({verdict.rule for verdict in found})
        if found:
            _write_rejected(bad, names[row.path], row, found)
        else:
            assert isinstance(row, Row)
            good.write(_source(row))
            kept[index] = True
        if index % every == 0 and not isinstance(row, DataError):
            try:
                conversation = _conversation(row, cleaning)
            except DataError:
                continue
            before.add(conversation)
            if not found:
                after.add(conversation)
    report.kept = int(kept.sum())
    report.before, report.after = before.figures(), after.figures()
    return kept


def _source(row: Row) -> bytes:
    """The row's bytes, and a line end for an array's row and for the last line if it has none."""
    return row.raw if row.raw.endswith(b"\n") else f"{one_line(row.raw.decode())}\n".encode()


def _write_rejected(bad: BinaryIO, name: str, row: Row | DataError, found: list[Verdict]) -> None:
    text = row.row if isinstance(row, DataError) else _source(row).decode().rstrip("\r\n")
    entry = {"file": name, "line": row.line, "rule": found[0].rule, "evidence": found[0].evidence}
    entry |= {"verdicts": [verdict._asdict() for verdict in found], "row": text}
    line = json.dumps(entry, ensure_ascii=False) + "\n"
    bad.write(line.encode("utf-8", "backslashreplace"))


def _repeats(row: int, same: Ints, alike: Ints, place: Callable[[int], str]) -> list[Verdict]:
    if same[row] >= 0:
        return [Verdict(DUPLICATE, f"says the same as {place(int(same[row]))}")]
    if alike[row] >= 0:
        return [Verdict(NEAR_DUPLICATE, f"says nearly the same as {place(int(alike[row]))}")]
    return []


def _topics(topics: Ints) -> dict[str, float]:
    """How many topics rows fall into, and the largest one's share."""
    if not len(topics):
        return {}
    _, counts = np.unique(topics, return_counts=True)
    return {"topics": float(len(counts)), "largest topic": float(counts.max() / len(topics))}


def _verdicts(line: str) -> list[Verdict]:
    return [Verdict(*pair) for pair in json.loads(line)]
