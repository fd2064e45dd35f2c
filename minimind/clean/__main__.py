"""`python -m minimind.clean data.jsonl --out clean.jsonl`: keep good rows, list the others."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from minimind.clean.cleaning import DATASET_RULES, Cleaning, CleaningReport, clean_rows
from minimind.clean.rules import RULES, Rule, Thresholds
from minimind.cli.command import following_options, run_command
from minimind.cli.options import parse_options
from minimind.cli.output import check_file
from minimind.data.conversation import parse_conversation
from minimind.data.row_options import RowKeys
from minimind.data.storage import readable_again

ALL_RULES = (*RULES, *DATASET_RULES)


@dataclass(frozen=True, kw_only=True)
class CleanOptions:
    """Keep the rows that are worth training on, byte for byte, and list the others with reasons.

    Rules find mechanical faults: repetitions, broken text, leaked templates, duplicates and the
    like. They can't tell whether an answer is true or safe: read rows.

    Exit codes: 0 done, 1 the run failed, 2 a wrong option, 3 data that can't be used,
    130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """JSONL, gzipped JSONL or JSON array files of conversations; - is standard input."""
    out: Path
    """The file for the kept rows."""
    rejected: Path | None = None
    """The file for the others, with place, rule and evidence; default: rejected.jsonl beside it."""
    rules: tuple[str, ...] = ALL_RULES
    """The rules to apply."""
    skip: tuple[str, ...] = ()
    """Rules to leave out."""
    rule: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A rule of your own, module:function; may be given several times; see docs/data.md."""
    similarity: float = 0.85
    """Least share of common 5-grams of letters of two near duplicates."""
    keys: Annotated[RowKeys, tyro.conf.OmitArgPrefixes] = field(default_factory=RowKeys)
    json: bool = False
    """Print the report as JSON."""
    overwrite: bool = False
    """Replace --out and --rejected if they exist."""
    thresholds: Annotated[Thresholds, tyro.conf.OmitArgPrefixes] = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no data file; name one, such as data.jsonl, or - for standard input")
        for option, names in (("rules", self.rules), ("skip", self.skip)):
            for name in names:
                if name not in ALL_RULES:
                    raise ValueError(f"--{option} has {name}; use some of {', '.join(ALL_RULES)}")

    def cleaning(self) -> Cleaning:
        chosen = [name for name in self.rules if name not in self.skip]
        rules = {name: RULES[name] for name in chosen if name in RULES}
        rules |= {name: _import_rule(name) for name in self.rule}
        return Cleaning(
            rules=rules,
            dataset_rules=[name for name in chosen if name in DATASET_RULES],
            thresholds=self.thresholds,
            similarity=self.similarity,
            parse=partial(parse_conversation, **asdict(self.keys)),
        )


def run(options: CleanOptions) -> None:
    """Clean the files, and report."""
    out = options.out
    rejected = options.rejected or out.parent / "rejected.jsonl"
    with following_options():
        cleaning = options.cleaning()
        _check_places(options, out, rejected)
    with (
        readable_again(options.files) as files,
        tqdm(desc="cleaning", unit="rows", file=sys.stderr, disable=None) as bar,
    ):
        names = dict(zip(files, options.files, strict=True))
        try:
            report = clean_rows(files, cleaning, out, rejected, bar.update, names)
        except OSError as error:
            fact = f"can't be written ({error.strerror or error})"
            left = f"it is unchanged, and {rejected} is unchanged or complete"
            raise OSError(f"{out}: {fact}: {left}; make room, or name another place") from None
    if options.json:
        print(json.dumps(vars(report), ensure_ascii=False))
        return
    print("\n".join(_lines(report, cleaning)))
    print(f"{out} has the kept rows, {rejected} the others")


def _check_places(options: CleanOptions, out: Path, rejected: Path) -> None:
    if out.resolve() == rejected.resolve():
        raise ValueError(f"{out}: is named twice; name another --rejected")
    for path in (out, rejected):
        check_file(path, options.overwrite, options.files)


def _lines(report: CleaningReport, cleaning: Cleaning) -> list[str]:
    lines = [f"{report.rows:,} rows: {report.kept:,} kept, {report.rows - report.kept:,} rejected"]
    lines += [f"    {name}: {count:,}" for name, count in report.rejected.most_common()]
    lines += report.describe()
    lines += [f"not checked: {name} ({why})" for name, why in report.not_checked.items()]
    silent = [name for name in cleaning.rules if name not in report.rejected]
    if silent:
        lines.append(f"nothing found by: {', '.join(silent)}")
    for name, before in report.before.items():
        lines.append(f"{name}: {_figure(before)} before, {_figure(report.after.get(name))} after")
    return lines


def _figure(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name!r} {share:.1%}" for name, share in value.items())
    return "none" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _import_rule(name: str) -> Rule:
    module, _, function = name.partition(":")
    if not (module and function):
        raise ValueError(f"--rule {name}: write it as module:function")
    sys.path.insert(0, "")  # for a module in the current folder
    try:
        rule: Rule = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the user's module raises
        raise ValueError(f"--rule {name}: can't be imported ({error}); check its name") from None
    finally:
        sys.path.remove("")
    if not callable(rule):
        raise ValueError(f"--rule {name}: is no function of a conversation and thresholds")
    return rule


def main(argv: list[str] | None = None) -> int:
    return run_command(
        argv,
        partial(parse_options, "minimind.clean", CleanOptions),
        run,
        interrupted=lambda options: f"interrupted; {options.out} is unchanged",
    )


if __name__ == "__main__":
    sys.exit(main())
