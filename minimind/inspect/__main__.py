"""`python -m minimind.inspect data.jsonl`: see what trains, token by token, and check it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from minimind.cli.command import following_options, run_command
from minimind.cli.options import parse_options
from minimind.cli.summary import count_lengths, describe_selection, describe_tokens, draw_lengths
from minimind.data.build import DataOptions
from minimind.data.conversation import Conversation
from minimind.data.errors import printable
from minimind.data.reader import read_conversations
from minimind.data.selection import select_rows
from minimind.data.show import show_tokens
from minimind.data.storage import cache_directory, hash_of, readable_again
from minimind.inspect.page import inspection_page, tables
from minimind.inspect.preflight import Check, check_data
from minimind.inspect.survey import Survey, survey
from minimind.model.pretrained import load_tokenizer
from minimind.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """See what fine-tuning would train on these files: counts, suspicious rows, every token.

    Give --model, --limit and the options of data as to minimind.sft: what is shown is what trains,
    and the hash is the one that minimind.sft prints.

    Exit codes: 0 done, 1 a check or the run failed, 2 a wrong option, 3 data that can't be used,
    130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """JSONL, gzipped JSONL or JSON array files of conversations; - is standard input."""
    model: str | None = None
    """Whose tokenizer: a Hugging Face folder or hub name; default: the small embedded base."""
    check: bool = False
    """Check what would go wrong without a word otherwise; exit with 1 if something does."""
    rows: tuple[str, ...] = ()
    """Show these rows, too: LINE, or FILE:LINE where there are several files."""
    html: Path | None = None
    """Write a page with all of it to this file."""
    json: bool = False
    """Print JSON instead of text."""
    limit: int | None = None
    """Use only the first rows, this many."""
    val_data: str | None = None
    """As for minimind.sft."""
    val_fraction: float = 0.05
    """As for minimind.sft."""
    data: Annotated[DataOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=DataOptions)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no data file; name one, such as data.jsonl, or - for standard input")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; use a positive number")
        if not 0 <= self.val_fraction < 1:
            raise ValueError(f"--val-fraction is {self.val_fraction}; use 0 to less than 1")
        for row in self.rows:
            file, colon, line = row.rpartition(":")
            if not (line.isascii() and line.isdigit()):
                raise ValueError(f"--rows has {row}; use LINE or FILE:LINE")
            if colon and file not in self.files:
                raise ValueError(f"--rows has {row}; its file is none of {', '.join(self.files)}")
        if self.html is not None:
            self._check_html(self.html)

    def _check_html(self, path: Path) -> None:
        """Whether a page can stand there; known before the work, which may be long."""
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise ValueError(f"--html {path}: is a folder, or its folder isn't there; name a file")
        data = filter(None, (*self.files, self.val_data))
        if any(Path(file).resolve() == path.resolve() for file in data):
            raise ValueError(f"--html {path}: is the data itself; name another file")


def run(options: InspectOptions) -> bool:
    """Look, check if asked to, and show; False if a check failed."""
    with following_options():
        tokenizer = load_tokenizer(options.model)
    with readable_again(options.files, cache_directory()) as files:
        selection = select_rows(
            files,
            tokenizer,
            options.data,
            limit=options.limit,
            val_data=options.val_data,
            val_fraction=options.val_fraction,
        )
        names = dict(zip(files, options.files, strict=True))
        places = [_place(row, options.files[0]) for row in options.rows]
        found = survey(_read(files, names, options.data), tokenizer, options.data, places)
        checks: list[Check] = []
        if options.check:
            whole = select_rows(files, tokenizer, options.data).training
            rows = _read(files, names, options.data)
            checks = list(
                check_data(
                    rows,
                    found.rows,
                    whole,
                    selection.sources[0].report,
                    found,
                    tokenizer,
                    options.data,
                )
            )
    lines = [
        *describe_selection(selection, options.val_data),
        *describe_tokens(selection.training, selection.validation),
        f"hash: {hash_of(selection.training)}",
    ]
    if found.duplicates:
        lines.append(f"duplicates: {found.duplicates:,} rows say what a row before them says")
    shown = {row.place for row in found.shown}
    lines += [
        f"no row that can be used stands at {place}" for place in places if place not in shown
    ]
    length = options.data.max_length
    if options.html:
        title = f"What trains: {', '.join(options.files)}"
        document = inspection_page(title, lines, checks, found, tokenizer, length)
        options.html.write_text(document, encoding="utf-8", errors="backslashreplace")
    if options.json:
        facts = _facts(lines, checks, found, hash_of(selection.training), length)
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print([*lines, *draw_lengths(found.lengths, length)], checks, found, tokenizer)
        if options.html:
            print(f"\n{options.html} shows all of it")
    print(end="", flush=True)  # here, where a closed pipe is told
    return all(check.outcome != "failed" for check in checks)


def _place(row: str, first_file: str) -> str:
    """FILE:LINE of what --rows names."""
    file, _, line = row.rpartition(":")
    return f"{file or first_file}:{int(line)}"


def _read(files: list[str], names: dict[str, str], options: DataOptions) -> Iterator[Conversation]:
    """The rows again, under the names that were given; bad ones were told of already."""
    for conversation in read_conversations(
        files,
        prompt_key=options.prompt_key,
        answer_key=options.answer_key,
        system=options.system,
        on_error=lambda _: None,
    ):
        yield Conversation(
            conversation.messages,
            conversation.shape,
            names[conversation.path],
            conversation.line,
        )


def _print(lines: list[str], checks: list[Check], found: Survey, tokenizer: Tokenizer) -> None:
    print("\n".join(lines))
    for title, counts in tables(found).items():
        largest = sorted(counts.items(), key=lambda item: -item[1])[:8]
        print(f"{title}: " + ", ".join(f"{count:,} {value}" for value, count in largest))
    for row in found.shown:
        print(f"\n{printable(row.place)} ({', '.join(row.reasons)})")
        part, more = row.part()
        print(show_tokens(part, row.kept, tokenizer, colour=sys.stdout.isatty()) + printable(more))
    if checks:
        print()
    for check in checks:
        print(f"{check.outcome}: {check.name} ({check.fact})")
        if check.consequence:
            print(f"    consequence: {check.consequence}")


def _facts(
    lines: list[str], checks: list[Check], found: Survey, data_hash: str, max_length: int
) -> dict[str, Any]:
    """What a machine wants to know."""
    lengths = np.array(found.lengths)
    counted = ("rows", "duplicates", "unsupervised", "truncated", "dropped_long", "tokens_lost")
    return {
        "hash": data_hash,
        **{name: getattr(found, name) for name in counted},
        "tokens": int(lengths.sum()),
        "supervised": int(np.array(found.trained).sum()),
        "tokens_per_row": np.percentile(lengths, [0, 5, 50, 95, 100]).tolist()
        if len(lengths)
        else [],
        "rows_by_tokens": count_lengths(found.lengths, max_length),
        "counts": {title: dict(counts) for title, counts in tables(found).items()},
        "sentences": lines,
        "checks": [asdict(check) for check in checks],
        "shown": [
            {
                "place": row.place,
                "reasons": row.reasons,
                "input_ids": list(row.example.input_ids),
                "trained": [int(mark) for mark in row.example.loss_mask],
                "kept": row.kept,
            }
            for row in found.shown
        ],
    }


def main(argv: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    return run_command(argv, partial(parse_options, "minimind.inspect", InspectOptions), run)


if __name__ == "__main__":
    sys.exit(main())
