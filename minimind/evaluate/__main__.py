"""`python -m minimind.evaluate --model RUN eval.jsonl`: judge models by scores and by answers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from minimind.cli.command import compile_decoding, following_options, new_folder, run_command
from minimind.cli.options import parse_options
from minimind.data.conversation import DataError, printable
from minimind.data.dataset import cache_directory
from minimind.data.plain_text import encode_documents, read_documents
from minimind.data.row_options import RowOptions
from minimind.data.sources import readable_again
from minimind.evaluate.evaluation import (
    Evaluation,
    Record,
    compare,
    describe_counts,
    evaluate,
    score_documents,
)
from minimind.evaluate.page import evaluation_page
from minimind.evaluate.questions import Question, read_questions
from minimind.model.pretrained import load, load_tokenizer
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig
from minimind.tokenizer import Tokenizer
from minimind.training.environment import choose_device, versions

CELL = 11  # a column's least width, so that perplexities fit


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Judge one model, or several side by side, on rows or prompts.

    Rows with an answer are scored: loss, perplexity, bits per byte and accuracy of the supervised
    tokens. Every row is answered, and answers are measured: whether they end by themselves, how
    long they are, whether they repeat themselves and keep to the question's script, and --metrics.

    Exit codes: 0 done, 1 the run failed, 2 a wrong option, 3 data that can't be used,
    130 interrupted.
    """

    files: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Rows with or without answers, or .txt files with a prompt a line; - is standard input:
    rows, or with --documents one text."""
    model: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """A run's folder, another Hugging Face folder or a hub name, once or several times; default:
    the embedded base."""
    out: Path | None = None
    """Folder for results.json and report.html; default: a new evaluations/NAME-N."""
    overwrite: bool = False
    """Replace results that are in --out."""
    metrics: tuple[str, ...] = ()
    """Of answers, beside what is always measured: exact, contains, regex, numeric, chrf."""
    generate: bool = True
    """Answer the rows."""
    score: bool = True
    """Score the answers that rows have."""
    documents: bool = False
    """The files are texts, or JSONL rows with "text": score every token, answer nothing."""
    show: int = 10
    """Print the first rows' questions and answers, this many."""
    limit: int | None = None
    """Use only the first rows, this many."""
    rows: Annotated[RowOptions, tyro.conf.OmitArgPrefixes] = field(default_factory=RowOptions)
    tokens_per_batch: int = 4096
    """Tokens scored at once; changes results in their last bits alone."""
    rows_per_batch: int = 16
    """Rows answered side by side."""
    compile: bool = False
    """Compile the decoder first: half a minute for faster answers."""
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
            raise ValueError("--model names one twice; name each once")
        if self.documents and (self.metrics or self.limit or self.rows.system or not self.score):
            raise ValueError(
                "--documents scores whole texts; leave out --metrics, --limit, --system, --no-score"
            )

    @property
    def evaluation(self) -> Evaluation:
        """What of it the work needs."""
        return Evaluation(
            sampling=self.sampling if self.generate else None,
            scoring=self.score,
            metrics=self.metrics,
            tokens_per_batch=self.tokens_per_batch,
            rows_per_batch=self.rows_per_batch,
        )


def run(options: EvaluateOptions) -> None:
    """Evaluate one model after the other, write the results, and print."""
    found: dict[str, list[Record]] = {}
    with following_options():  # before the work, which may take hours
        evaluation, device = options.evaluation, choose_device(options.device)
        _check_out(options.out or Path("evaluations"), options.overwrite)
        for later in options.model[1:]:
            load_tokenizer(later)
    with readable_again(options.files, cache_directory()) as files:
        names = dict(zip(files, options.files, strict=True))
        for name in options.model or (None,):
            label = "the embedded base" if name is None else name
            with following_options():
                model, tokenizer = load(name, device=device)
            if options.compile:
                compile_decoding(model, options.rows_per_batch, print)
            if options.documents:
                found[label] = [
                    _score_text(model, tokenizer, file, names[file], options) for file in files
                ]
                continue
            with tqdm(desc=label, unit="rows", file=sys.stderr, disable=None) as bar:
                records = evaluate(
                    model, tokenizer, _questions(files, names, options), evaluation, bar.update
                )
                found[label] = list(records)
            for record in found[label]:
                record.path = names[record.path]
    if not any(record.values for records in found.values() for record in records):
        remedy = "name a file with some that fit the model's context"
        raise DataError("no_rows", "has no rows to ask or to score", remedy, options.files[0])
    results = {"options": asdict(options), "versions": versions()} | compare(found)
    out = _write(results, options)
    for sentence in _answers(found, options.show):
        print(sentence)
    print("\n".join(_table(results)))
    print(f"\n{out / 'results.json'} and {out / 'report.html'} hold every row")


def _score_text(
    model: Transformer, tokenizer: Tokenizer, file: str, name: str, options: EvaluateOptions
) -> Record:
    """Score a file of documents; errors and the Record have its name."""
    texts = (document.text for document in read_documents(file, name))
    examples = encode_documents(texts, tokenizer, model.config.max_position_embeddings)
    return score_documents(model, tokenizer, examples, name, options.tokens_per_batch)


def _check_out(out: Path, overwrite: bool) -> None:
    """Whether results can stand there; known before the work, which may take hours."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise ValueError(f"--out {out}: {there} is no folder that can be written; name another")
    if (out / "results.json").exists() and not overwrite:
        raise ValueError(f"--out {out}: has results; --overwrite replaces them, or name another")


def _write(results: dict[str, Any], options: EvaluateOptions) -> Path:
    """Write both files; says in which folder. A default one is new, and so never another run's."""
    name = "stdin" if options.files[0] == "-" else Path(options.files[0]).name.split(".")[0]
    out = options.out or new_folder(name or "rows", Path("evaluations"))
    out.mkdir(parents=True, exist_ok=options.out is not None)
    text = json.dumps(results, ensure_ascii=False, allow_nan=False, indent=1, default=str)
    (out / "results.json").write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
    (out / "report.html").write_text(evaluation_page(results), encoding="utf-8")
    return out


def _questions(
    files: list[str], names: dict[str, str], options: EvaluateOptions
) -> Iterator[Question]:
    skipped: list[DataError] = []

    def skip(error: DataError) -> None:
        error.path = names.get(error.path, error.path)
        if options.rows.on_bad_row == "stop":
            raise error
        skipped.append(error)

    rows = read_questions(
        files,
        prompt_key=options.rows.prompt_key,
        answer_key=options.rows.answer_key,
        system=options.rows.system,
        on_error=skip,
    )
    yield from islice(rows, options.limit)
    if skipped:
        print(f"{len(skipped):,} rows skipped; the first: {skipped[0]}", file=sys.stderr)


def _answers(found: dict[str, list[Record]], show: int) -> Iterator[str]:
    """The first rows' questions, each with every model's answer."""
    for records in islice(zip(*found.values(), strict=True), show):
        if any(record.answer is not None for record in records):
            yield f"\nquestion: {_shown(records[0].question)}"
            for label, record in zip(found, records, strict=True):
                name = f"answer ({label})" if len(found) > 1 else "answer"
                unasked = "(not asked: it doesn't fit the context)"
                yield f"{name}: {unasked if record.answer is None else _shown(record.answer)}"


def _shown(text: str) -> str:
    """Lines as they are; what would disturb a terminal is shown, not done."""
    return "\n".join(map(printable, text.split("\n")))


def _table(results: dict[str, Any]) -> list[str]:
    """Figures, a line each, a column per model; then what differs from the first."""
    models = results["models"]
    names = dict.fromkeys(name for model in models for name in model["figures"])
    width = max(map(len, names), default=0)
    columns = [max(len(model["model"]), CELL) for model in models]
    heads = [f"{model['model']:>{wide}}" for model, wide in zip(models, columns, strict=True)]
    lines = ["", f"{'':{width}}  " + "  ".join(heads)]
    for name in names:
        cells = [
            f"{model['figures'][name]:{wide}.4f}" if name in model["figures"] else f"{'-':>{wide}}"
            for model, wide in zip(models, columns, strict=True)
        ]
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    lines += map(describe_counts, models)
    for difference in results["differences"]:
        lines.append(f"\n{difference['model']} minus {difference['from']}, 95% interval:")
        for name, (mean, low, high) in difference["figures"].items():
            lines.append(f"{name:{width}}  {mean:+.4f}  ({low:+.4f} to {high:+.4f})")
    return lines


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
