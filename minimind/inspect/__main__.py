"""`python -m minimind.inspect data.jsonl`: see what trains, token by token, and check it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from minimind.atomic_io import replace_file
from minimind.cli.command import following_options, print_escaped, run_command
from minimind.cli.options import parse_options
from minimind.cli.output import check_file, print_first
from minimind.cli.summary import describe_selection, describe_tokens
from minimind.data.build import DataOptions, DataReport
from minimind.data.conversation import Conversation
from minimind.data.dataset import Dataset
from minimind.data.errors import printable
from minimind.data.keys import KeyCounts
from minimind.data.reader import read_conversations
from minimind.data.selection import SplitOptions, select_rows
from minimind.data.storage import hash_of, readable_again
from minimind.inspect.lengths import count_lengths, draw_lengths
from minimind.inspect.page import inspection_page
from minimind.inspect.preflight import Check, check_data
from minimind.inspect.survey import ShownRow, Survey, survey, tables
from minimind.inspect.tokens import show_tokens
from minimind.model.pretrained import load_tokenizer, read_config
from minimind.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """See what fine-tuning would train on these files: counts, suspicious rows, every token.

    Give --model and the data options that you give to minimind.sft. Then the hash and the numbers
    of training and validation rows are the ones that minimind.sft prints. --limit, --val-data and
    --val-fraction decide only these: the other counts, the rows shown and the checks are of all
    usable rows of the files, trained or not.

    Exit codes: 0 done, 1 a check or the run failed, 2 a wrong option, 3 data that can't be used,
    130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """JSONL, gzipped JSONL or JSON array files of conversations; - is standard input."""
    model: str | None = None
    """Use this base's tokenizer: a Hugging Face folder, a hub name or a .pth; default: the embedded
    base."""
    tokenizer: str | None = None
    """The folder of a .pth's tokenizer; default: the folder that the .pth is in."""
    check: bool = False
    """Check what the data and the base's tokenizer could break: bad rows, keys that aren't read,
    losses to length, masks, stop tokens; exit with 1 if a check fails."""
    rows: tuple[str, ...] = ()
    """Show these rows, too: LINE, or FILE:LINE where there are several files."""
    html: Path | None = None
    """Write a page with all of it to this file."""
    overwrite: bool = False
    """Replace --html if it exists."""
    json: bool = False
    """Print JSON instead of text."""
    split: Annotated[SplitOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=SplitOptions)
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no data file; name one, such as data.jsonl, or - for standard input")
        for row in self.rows:
            file, colon, line = row.rpartition(":")
            if not (line.isascii() and line.isdigit()):
                raise ValueError(f"--rows has {row}; use LINE or FILE:LINE")
            if colon and file not in self.files:
                raise ValueError(f"--rows has {row}; its file is none of {', '.join(self.files)}")
        if self.html is not None:
            try:
                check_file(self.html, self.overwrite, (*self.files, self.split.val_data))
            except ValueError as error:
                raise ValueError(f"--html {error}") from None


def run(options: InspectOptions) -> bool:
    """Look over the rows, check them if asked to, and show them; False if a check failed."""
    with following_options():
        tokenizer = load_tokenizer(options.model, options.tokenizer)
        config = read_config(options.model)
    context = config.max_position_embeddings if config else None
    model_type = config.model_type if config else None
    options = replace(options, data=options.data.for_context(context))
    with readable_again(options.files) as files:
        selection = select_rows(
            files, tokenizer, options.data, options.split, options.files, verify=options.check
        )
        tokenizer = selection.tokenizer
        names = dict(zip(files, options.files, strict=True))
        places = [_place(row, options.files[0]) for row in options.rows]
        data = selection.training
        whole = Dataset(data.input_ids, data.loss_mask, data.weights, data.columns)
        rows = _read(files, names, options.data)
        found = survey(rows, tokenizer, options.data, places, whole if options.check else None)
    report = selection.reports[0]
    checks = list(check_data(found, report, tokenizer, model_type)) if options.check else []
    counts = tables(report, found)
    data_hash = hash_of(selection.training)
    lines = [
        *describe_selection(selection, options.split, options.files, context),
        *describe_tokens(selection.training, selection.validation),
        f"hash: {data_hash}",
    ]
    if found.duplicates:
        lines.append(f"duplicates: {found.duplicates:,} rows repeat an earlier row")
    shown = {row.place for row in found.shown}
    lines += [f"no usable row at {place}" for place in places if place not in shown]
    length = options.data.limit

    def write_page() -> None:
        if options.html:
            title = f"What trains: {', '.join(options.files)}"
            document = inspection_page(title, lines, checks, counts, found, tokenizer, length)
            replace_file(options.html, document)

    with print_first(write_page):
        if options.json:
            facts = {
                "hash": data_hash,
                **_figures(report, found, length),
                "counts": counts,
                "sentences": lines,
                "checks": [asdict(check) for check in checks],
                "shown": [_shown(row) for row in found.shown],
            }
            print(json.dumps(facts, ensure_ascii=False))
        else:
            _print([*lines, *draw_lengths(found.lengths, length)], counts, checks, found, tokenizer)
    if options.html and not options.json:
        print(f"\n{options.html} shows all of it")
    return all(check.outcome != "failed" for check in checks)


def _place(row: str, first_file: str) -> str:
    """FILE:LINE of what --rows names."""
    file, _, line = row.rpartition(":")
    return f"{file or first_file}:{int(line)}"


def _read(files: list[str], names: dict[str, str], options: DataOptions) -> Iterator[Conversation]:
    """The rows again, under the names that were given; bad rows were reported already."""
    for conversation in read_conversations(
        files,
        prompt_key=options.prompt_key,
        answer_key=options.answer_key,
        system=options.system,
        ignore_keys=options.ignore_keys,
        on_error=lambda _: None,
    ):
        yield replace(conversation, path=names[conversation.path])


def _print(
    lines: Sequence[str],
    counts: Mapping[str, Mapping[Any, int]],
    checks: Sequence[Check],
    found: Survey,
    tokenizer: Tokenizer,
) -> None:
    print("\n".join(lines))
    for title, table in counts.items():
        largest = sorted(table.items(), key=lambda item: -item[1])[:8]
        print(f"{title}: " + ", ".join(f"{count:,} {value}" for value, count in largest))
    for row in found.shown:
        print(f"\n{printable(row.place)} ({', '.join(row.reasons)})")
        part, more = row.first_tokens()
        shown = show_tokens(part, row.kept, tokenizer, colour=sys.stdout.isatty())
        print_escaped(shown + printable(more))
    if checks:
        print()
    for check in checks:
        print(f"{check.outcome}: {check.name} ({check.fact})")
        if check.consequence:
            print(f"    consequence: {check.consequence}")


def _figures(report: DataReport, found: Survey, max_length: int) -> dict[str, Any]:
    """The counts of --json; tokens are those before truncation."""
    lengths = np.array(found.lengths)
    counted = ("rows", "unsupervised", "truncated", "dropped_long", "tokens_lost")
    return {
        **{name: getattr(report, name) for name in counted},
        **{name: getattr(report, name) for name in ("bad", *vars(KeyCounts()))},
        "duplicates": found.duplicates,
        "tokens": int(lengths.sum()),
        "supervised": report.supervised + report.tokens_lost,
        "tokens_per_row": np.percentile(lengths, [0, 5, 50, 95, 100]).tolist()
        if len(lengths)
        else [],
        "rows_by_tokens": count_lengths(found.lengths, max_length),
    }


def _shown(row: ShownRow) -> dict[str, Any]:
    return {
        "place": row.place,
        "reasons": row.reasons,
        "input_ids": list(row.example.input_ids),
        "trained": [int(mark) for mark in row.example.loss_mask],
        "kept": row.kept,
    }


def main(argv: list[str] | None = None) -> int:
    return run_command(argv, partial(parse_options, "minimind.inspect", InspectOptions), run)


if __name__ == "__main__":
    sys.exit(main())
