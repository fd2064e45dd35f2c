"""Ask a model, score it, and compare what came of it. Knows no command line and prints nothing.

    question  --encode_prompt-->  generate_batch  -->  answer  -->  metrics     \\
    row       --encode_rows---->  score           -->  nats, tokens, ...         } a Record
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from minimind.data.dataset import Dataset, Example
from minimind.data.masking import encode_prompt, encode_rows, truncate
from minimind.evaluate.metrics import ALWAYS, CHOSEN, Case
from minimind.evaluate.questions import Question
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, generate_batch
from minimind.tokenizer import Tokenizer
from minimind.training.scoring import Scores, score

Floats = npt.NDArray[np.float64]
Metrics = dict[str, Callable[[Case], "float | None"]]

BLOCK_ROWS = 512  # read, scored and answered before the next
RESAMPLES = 2000
LARGEST_EXPONENT = 700  # a perplexity beyond e to this is no float any more

# name -> (of one row, divided by): a figure is the sum of the first over the sum of the second.
SCORED = {
    "loss": ("nats", "supervised"),
    "accuracy": ("correct", "supervised"),
    "bits_per_byte": ("text_bits", "text_bytes"),
}


@dataclass(slots=True)
class Record:
    """What came of one row.

    Attributes:
        path, line: where it stands.
        question: the last message before the answer.
        expected: the row's answer, if it has one.
        answer: what the model said; None if it wasn't asked.
        tokens: of the answer, the stop token too.
        values: per metric, and what figures are made of; only those that apply.
        cut: whether some of the row's answers lies beyond the model's context, unscored.
    """

    path: str
    line: int
    question: str
    expected: str | None
    answer: str | None = None
    tokens: int = 0
    values: dict[str, float] = field(default_factory=dict)
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How to evaluate.

    Attributes:
        sampling: how answers are made; None asks nothing.
        scoring: whether rows with answers are scored.
        metrics: names of CHOSEN, beside those that are always measured.
        tokens_per_batch: tokens scored at once, or one row's; changes nothing but memory.
        rows_per_batch: answers made side by side.

    Raises:
        ValueError: no such metric, its package isn't installed, or a number that isn't positive.
    """

    sampling: SampleConfig | None
    scoring: bool = True
    metrics: tuple[str, ...] = ()
    tokens_per_batch: int = 4096
    rows_per_batch: int = 16

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in CHOSEN:
                raise ValueError(f"metrics has {name}; use some of {', '.join(CHOSEN)}")
            CHOSEN[name](Case("", "a", "a", "a"))  # a missing package is told before the work
        for name in ("tokens_per_batch", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a positive number")


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    evaluation: Evaluation,
    done: Callable[[int], object] = lambda rows: None,
) -> Iterator[Record]:
    """Evaluate a model row by row; each Record comes in its row's order.

    Args:
        model: on any device.
        tokenizer: its tokenizer.
        questions: rows.
        evaluation: what to do with them.
        done: told how many rows are through.

    Raises:
        ValueError: the model's logits aren't finite.
    """
    metrics: Metrics = ALWAYS | {name: CHOSEN[name] for name in evaluation.metrics}
    source = iter(questions)
    while block := list(islice(source, BLOCK_ROWS)):
        records = [_record(question) for question in block]
        if evaluation.scoring:
            _score(model, tokenizer, block, records, evaluation.tokens_per_batch)
        if evaluation.sampling is not None:
            _answer(model, tokenizer, block, records, evaluation, done)
            for question, record in zip(block, records, strict=True):
                _judge(question, record, metrics)
        else:
            done(len(block))
        yield from records


def compare(found: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """All there is to know, as JSON has it: figures, differences from the first model, rows.

    Args:
        found: per model the Records of the same rows.
    """
    (first, of_first), *others = found.items()
    rows = [
        {
            "path": records[0].path,
            "line": records[0].line,
            "question": records[0].question,
            "expected": records[0].expected,
            "answers": [{"answer": record.answer, "values": record.values} for record in records],
        }
        for records in zip(*found.values(), strict=True)
    ]
    return {
        "models": [_of_model(name, records) for name, records in found.items()],
        "differences": [
            {"model": name, "from": first, "figures": _differences(records, of_first)}
            for name, records in others
        ],
        "rows": rows,
    }


def _of_model(name: str, records: Sequence[Record]) -> dict[str, Any]:
    paths = list(dict.fromkeys(record.path for record in records))
    by_path = {path: [record for record in records if record.path == path] for path in paths}
    return {
        "model": name,
        "rows": len(records),
        "asked": sum(record.answer is not None for record in records),
        "scored": sum("supervised" in record.values for record in records),
        "cut": sum(record.cut for record in records),
        "figures": figures(records),
        "sources": {path: figures(by_path[path]) for path in paths if len(paths) > 1},
    }


def describe_counts(model: dict[str, Any]) -> str:
    """How many rows a model's figures are over; `model` is one of the results' models."""
    asked, cut = f"{model['scored']:,} scored, {model['asked']:,} asked", ""
    if model["cut"]:
        cut = f"; of {model['cut']:,} answers what lies beyond its context isn't scored"
    return f"{model['model']}: of {model['rows']:,} rows {asked}{cut}"


def _differences(
    ours: Sequence[Record], theirs: Sequence[Record]
) -> dict[str, tuple[float, float, float]]:
    """Per figure the difference and its interval, over the rows that both have it of.

    Scores are of a row's same text: a row that one's context cuts is left out, and so are figures
    per token where the models' tokens aren't the same.
    """
    out = {}
    whole = np.array([not (a.cut or b.cut) for a, b in zip(ours, theirs, strict=True)])
    for name in names_of_figures(ours):
        a, b = parts(ours, name), parts(theirs, name)
        both = (a[1] > 0) & (b[1] > 0) & (whole | (name not in SCORED))
        if name in SCORED and SCORED[name][1] == "supervised" and (a[1] != b[1])[both].any():
            continue
        if both.any():
            out[name] = paired_bootstrap((a[0][both], a[1][both]), (b[0][both], b[1][both]))
    return out


def figures(records: Sequence[Record]) -> dict[str, float]:
    """What all records have in common, by name; only what applies to some of them."""
    out: dict[str, float] = {}
    for name in names_of_figures(records):
        over, under = parts(records, name)
        if not under.any():
            continue
        out[name] = float(over.sum() / under.sum())
        if name == "loss" and out[name] < LARGEST_EXPONENT:
            out["perplexity"] = math.exp(out[name])
    return out


def names_of_figures(records: Sequence[Record]) -> list[str]:
    """The figures that can be made of these records."""
    found = dict.fromkeys(name for record in records for name in record.values)
    scored = [name for name, (_, under) in SCORED.items() if under in found]
    raw = {part for pair in SCORED.values() for part in pair}
    return [*scored, *(name for name in found if name not in raw)]


def parts(records: Sequence[Record], name: str) -> tuple[Floats, Floats]:
    """A figure's two parts, row by row: the figure is the quotient of their sums."""
    over, under = SCORED.get(name, (name, None))
    above = [record.values.get(over, 0.0) for record in records]
    below = [
        float(over in record.values) if under is None else record.values.get(under, 0.0)
        for record in records
    ]
    return np.array(above), np.array(below)


def paired_bootstrap(
    ours: tuple[Floats, Floats], theirs: tuple[Floats, Floats], seed: int = 0
) -> tuple[float, float, float]:
    """The difference of a figure between two models, ours minus theirs, on the same rows.

    Args:
        ours: see `parts`.
        theirs: of the same rows, in the same order.
        seed: of the draws.

    Returns:
        The difference, and the 2.5% and 97.5% quantiles of it over rows drawn with replacement.

    Source: Koehn 2004, W04-3250.
    """
    columns = np.stack([*ours, *theirs])  # (4, rows)
    rows = columns.shape[1]
    generator = np.random.default_rng(seed)
    differences = np.empty(RESAMPLES)
    for draw in range(RESAMPLES):
        drawn = columns[:, generator.integers(rows, size=rows)].sum(1)
        differences[draw] = _difference(drawn)
    low, high = np.nanquantile(differences, [0.025, 0.975])
    return _difference(columns.sum(1)), float(low), float(high)


def _difference(sums: Floats) -> float:
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(sums[0] / sums[1] - sums[2] / sums[3])


def _record(question: Question) -> Record:
    place = question.conversation
    return Record(place.path, place.line, question.asked[-1].content, question.expected)


def _score(
    model: Transformer,
    tokenizer: Tokenizer,
    block: list[Question],
    records: list[Record],
    tokens_per_batch: int,
) -> None:
    context = model.config.max_position_embeddings
    rows = encode_rows([question.conversation for question in block], tokenizer)
    kept = [truncate(row, context, tokenizer) for row in rows]
    for row, part, record in zip(rows, kept, records, strict=True):
        record.cut = any(row.loss_mask[len(part) :])
    if any(any(row.loss_mask) for row in kept):
        scores = score(
            model, Dataset.from_examples(kept), tokenizer, tokens_per_batch=tokens_per_batch
        )
        _note_scores(scores, records)


def score_documents(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Iterable[Example],
    path: str,
    tokens_per_batch: int = 4096,
) -> Record:
    """Score text that was cut by `encode_documents`: one Record for all of a file."""
    record = Record(path, 0, "", None)
    source = iter(examples)
    while block := list(islice(source, BLOCK_ROWS)):
        scores = score(model, block, tokenizer, tokens_per_batch=tokens_per_batch)
        part = [Record(path, 0, "", None) for _ in block]
        _note_scores(scores, part)
        for row in part:
            for name, value in row.values.items():
                record.values[name] = record.values.get(name, 0.0) + value
    return record


def _note_scores(scores: Scores, records: list[Record]) -> None:
    columns = {
        "nats": scores.nats,
        "supervised": scores.tokens,
        "correct": scores.correct,
        "text_bits": scores.text_nats / math.log(2),
        "text_bytes": scores.text_bytes,
    }
    for index, record in enumerate(records):
        if scores.tokens[index]:
            record.values |= {name: float(column[index]) for name, column in columns.items()}


def _answer(
    model: Transformer,
    tokenizer: Tokenizer,
    block: list[Question],
    records: list[Record],
    evaluation: Evaluation,
    done: Callable[[int], object],
) -> None:
    assert evaluation.sampling is not None
    prompts = [encode_prompt(question.asked, tokenizer) for question in block]
    # Those of about one length together; what doesn't fit the context isn't asked.
    order = sorted(range(len(block)), key=lambda row: len(prompts[row]))
    fitting = [row for row in order if len(prompts[row]) < model.config.max_position_embeddings]
    done(len(order) - len(fitting))
    for start in range(0, len(fitting), evaluation.rows_per_batch):
        rows = fitting[start : start + evaluation.rows_per_batch]
        answers = generate_batch(
            model, [prompts[row] for row in rows], evaluation.sampling, tokenizer.stop_ids
        )
        for row, ids in zip(rows, answers, strict=True):
            records[row].answer = tokenizer.decode(ids, skip_control=True)
            records[row].tokens = len(ids)
            records[row].values["ended"] = float(ids[-1] in tokenizer.stop_ids)
            records[row].values["tokens"] = float(len(ids))
        done(len(rows))


def _judge(question: Question, record: Record, metrics: Metrics) -> None:
    if record.answer is None:
        return
    case = Case(record.question, record.answer, question.expected, question.pattern)
    values = {name: metric(case) for name, metric in metrics.items()}
    record.values |= {name: value for name, value in values.items() if value is not None}
