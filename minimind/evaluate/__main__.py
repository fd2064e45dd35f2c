"""`python -m minimind.evaluate --model RUN eval.jsonl`: score models and measure their answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from minimind.atomic_io import replace_file
from minimind.cli.command import following_options, run_command, tell_of_an_unfinished_run
from minimind.cli.decoding import compile_decoding
from minimind.cli.options import parse_options
from minimind.cli.output import check_file, claim_folder, print_first
from minimind.data.errors import SHOWN_ROWS, BadRowsError, DataError, printable
from minimind.data.keys import KeyCounts
from minimind.data.plain_text import encode_documents, read_documents
from minimind.data.row_options import RowOptions
from minimind.data.storage import readable_again
from minimind.evaluate.evaluation import Evaluation, evaluate, score_documents
from minimind.evaluate.figures import Record, compare, describe_counts
from minimind.evaluate.page import evaluation_page
from minimind.evaluate.questions import Question, read_questions
from minimind.model.pretrained import is_state_dict, load, load_system_message, load_tokenizer
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig
from minimind.tokenizer import Tokenizer
from minimind.training.environment import choose_device, versions

RESULTS, REPORT = "results.json", "report.html"
CELL = 11  # a column's least width, so that perplexities fit


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Evaluate one model, or several side by side, on rows or prompts.

    Rows with an answer are scored: loss, perplexity, bits per byte and accuracy of the supervised
    tokens. The model also answers every row, and its answers are measured: whether they end by
    themselves, how long they are, whether they repeat themselves and are in the question's script,
    and --metrics.

    Exit codes: 0 done, 1 the run failed, 2 a wrong option, 3 data that can't be used,
    130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Rows with or without answers, or .txt files with a prompt per line; - is standard input:
    rows, or with --documents one text."""
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run's folder, another Hugging Face folder, a hub name or a .pth; give several to compare
    them; default: the embedded base."""
    tokenizer: str | None = None
    """The folder of a .pth's tokenizer; default: the folder that the .pth is in."""
    out: Path | None = None
    """Folder for results.json and report.html; default: a new evaluations/NAME-N."""
    overwrite: bool = False
    """Replace the results in --out."""
    metrics: tuple[str, ...] = ()
    """More metrics of answers: exact, contains, regex, numeric, chrf."""
    generate: bool = True
    """Answer the rows."""
    score: bool = True
    """Score the answers that rows have."""
    documents: bool = False
    """The files are texts, or JSONL rows with "text": score every token, answer nothing."""
    show: int = 10
    """How many of the first rows to print, with question and answers."""
    limit: int | None = None
    """Use only the first N rows."""
    rows: Annotated[RowOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=RowOptions)
    tokens_per_batch: int = 4096
    """Tokens scored at once; changes results in their last bits only."""
    rows_per_batch: int = 16
    """Rows answered at once."""
    compile: bool = False
    """Compile the decoder first: takes half a minute, then answers come faster."""
    device: str = "auto"
    """auto, cpu or cuda."""
    sampling: Annotated[SampleConfig, tyro.conf.OmitArgPrefixes] = field(
        default_factory=lambda: SampleConfig(seed=0)
    )

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("no file; name one, such as eval.jsonl or prompts.txt")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}; use a positive number")
        if self.show < 0:
            raise ValueError(f"--show is {self.show}; use 0 or more")
        if not (self.generate or self.score):
            raise ValueError("--no-generate and --no-score leave nothing to do; drop one of them")
        if len(set(self.model)) < len(self.model):
            raise ValueError("--model names a model twice; name each once")
        if self.tokenizer is not None and not any(map(is_state_dict, self.model)):
            raise ValueError("--tokenizer is for a .pth, and no --model is one; leave it out")
        of_rows = self.metrics or self.limit or self.compile or self.rows != RowOptions()
        if self.documents and (of_rows or not self.score):
            raise ValueError(
                "--documents scores whole texts; leave out --metrics, --limit, --system, "
                "--prompt-key, --answer-key, --ignore-keys, --on-bad-row, --compile, --no-score"
            )

    def tokenizer_of(self, model: str | None) -> str | None:
        """The --tokenizer of a .pth; another model has its own."""
        return self.tokenizer if is_state_dict(model) else None

    @property
    def evaluation(self) -> Evaluation:
        """The options that `evaluate` takes."""
        return Evaluation(
            sampling=self.sampling if self.generate else None,
            scoring=self.score,
            metrics=self.metrics,
            tokens_per_batch=self.tokens_per_batch,
            rows_per_batch=self.rows_per_batch,
        )


def run(options: EvaluateOptions) -> None:
    """Evaluate one model after the other, write the results, and print."""
    with following_options():  # now, since the work may take hours
        evaluation, device = options.evaluation, choose_device(options.device)
        _check_out(options.out or Path("evaluations"), options.overwrite)
        for later in options.model[1:]:
            load_tokenizer(later, options.tokenizer_of(later))
    records: dict[str, list[Record]] = {}
    systems: dict[str, str | None] = {}
    with readable_again(options.files) as files:
        names = dict(zip(files, options.files, strict=True))
        keys = KeyCounts() if options.documents else _check_rows(names, options)
        print("\n".join(keys.describe()), end="\n" if keys.describe() else "", flush=True)
        for name in options.model or (None,):
            label = "the embedded base" if name is None else name
            with following_options():
                model, tokenizer = load(name, device, tokenizer=options.tokenizer_of(name))
                tell_of_an_unfinished_run(name)
            if options.compile:
                compile_decoding(model, options.rows_per_batch, print)
            if options.documents:
                records[label] = [
                    _score_file(model, tokenizer, file, names[file], options) for file in files
                ]
                continue
            rows = options.rows
            if rows.system is None and (system := load_system_message(name)):
                said = f"system message, as in training: {printable(system)}"
                print(f"{label}: {said}; --system '' drops it")
                rows = replace(rows, system=system)
            systems[label] = rows.system or None
            questions = _read_questions(names, rows, options.limit)
            with tqdm(desc=label, unit="rows", file=sys.stderr, disable=None) as bar:
                found = evaluate(model, tokenizer, questions, evaluation, bar.update)
                records[label] = list(found)
            for record in records[label]:
                record.path = names[record.path]
    if not any(record.sums for of_model in records.values() for record in of_model):
        remedy = "name a file with rows that fit the model's context"
        raise DataError("no_rows", "has no rows to answer or to score", remedy, options.files[0])
    about = {"options": asdict(options), "versions": versions(), "keys": vars(keys)}
    results = about | {"system_messages": systems} | compare(records)
    with print_first(partial(_write, results, options)):
        print(*_answers(records, options.show), "", *_table(results), "", sep="\n")


def _score_file(
    model: Transformer, tokenizer: Tokenizer, file: str, name: str, options: EvaluateOptions
) -> Record:
    texts = (document.text for document in read_documents(file, name))
    examples = encode_documents(texts, tokenizer, model.config.max_position_embeddings)
    return score_documents(model, tokenizer, examples, name, options.tokens_per_batch)


def _check_out(out: Path, overwrite: bool) -> None:
    existing = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"--out {out}: {existing} is not a writable folder; name another")
    for name in (RESULTS, REPORT):
        check_file(out / name, overwrite)


def _write(results: dict[str, Any], options: EvaluateOptions) -> None:
    """Write both files, into a new folder unless one is named, and say where."""
    out = options.out or claim_folder(options.files[0], Path("evaluations"))
    text = json.dumps(results, ensure_ascii=False, allow_nan=False, indent=1, default=str)
    replace_file(out / RESULTS, text + "\n")
    replace_file(out / REPORT, evaluation_page(results))
    print(f"{out / RESULTS} and {out / REPORT} hold every row", flush=True)


def _check_rows(names: dict[str, str], options: EvaluateOptions) -> KeyCounts:
    """Read the rows once before the work; `names` says what the user calls each of their files.

    Bad rows are told, and stop it or are skipped.
    """
    keys, rows, bad = KeyCounts(), 0, 0
    first: list[DataError] = []

    def on_error(error: DataError) -> None:
        nonlocal bad
        error.path = names.get(error.path, error.path)
        if error.rest_unread and (not first or options.rows.on_bad_row == "skip"):
            raise error
        bad += 1
        first.append(error)
        if error.rest_unread:
            raise BadRowsError(first, bad, rows + bad)
        del first[SHOWN_ROWS:]

    for question in islice(read_questions(names, options.rows, on_error), options.limit):
        rows += 1
        row = question.conversation
        keys.count_keys(len(row.messages), row.unread, row.read_as)
    if bad and options.rows.on_bad_row == "stop":
        raise BadRowsError(first, bad, rows + bad)
    if bad:
        print(f"{bad:,} rows skipped; the first: {first[0]}", file=sys.stderr)
    return keys


def _read_questions(
    names: dict[str, str], options: RowOptions, limit: int | None
) -> Iterator[Question]:
    """The rows again; bad ones were reported already."""
    return islice(read_questions(names, options, lambda _: None), limit)


def _answers(records: dict[str, list[Record]], show: int) -> Iterator[str]:
    """The first rows' questions, each with every model's answer."""
    for row in islice(zip(*records.values(), strict=True), show):
        if any(record.answer is not None for record in row):
            yield f"\nquestion: {row[0].question}"
            for label, record in zip(records, row, strict=True):
                name = f"answer ({label})" if len(records) > 1 else "answer"
                answer = record.answer
                none = "(none: the question doesn't fit the context)"
                yield f"{name}: {none if answer is None else answer}"


def _table(results: dict[str, Any]) -> Iterator[str]:
    """Figures, a line each and a column per model; then the differences from the first model."""
    models = results["models"]
    names = dict.fromkeys(name for model in models for name in model["figures"])
    width = max(map(len, names), default=0)
    columns = [max(len(model["model"]), CELL) for model in models]
    yield f"{'':{width}}  " + "  ".join(map(str.rjust, (m["model"] for m in models), columns))
    for name in names:
        values = [model["figures"].get(name) for model in models]
        cells = ["-" if value is None else f"{value:.4f}" for value in values]
        yield f"{name:{width}}  " + "  ".join(map(str.rjust, cells, columns))
    yield from map(describe_counts, models)
    for difference in results["differences"]:
        yield f"\n{difference['model']} minus {difference['from']}, 95% interval:"
        for name, (mean, low, high) in difference["figures"].items():
            yield f"{name:{width}}  {mean:+.4f}  ({low:+.4f} to {high:+.4f})"


def main(argv: list[str] | None = None) -> int:
    return run_command(
        argv,
        partial(parse_options, "minimind.evaluate", EvaluateOptions),
        run,
        out_of_memory=lambda options: (
            f"--tokens-per-batch {options.tokens_per_batch} and --rows-per-batch "
            f"{options.rows_per_batch}; halve them"
        ),
        interrupted=lambda _: "interrupted; nothing is written",
    )


if __name__ == "__main__":
    sys.exit(main())
