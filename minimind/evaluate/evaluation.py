"""Score a model on rows, let it answer them, and measure the answers.

    prompt  --encode_prompt-->  generate_batch  -->  answer  -->  metrics     \\
    row     --encode_rows---->  score           -->  nats, tokens, ...         } a Record
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from minimind.data.blocks import BLOCK_ROWS, blocks, characters
from minimind.data.dataset import Dataset, Example
from minimind.data.masking import as_framed, encode_prompt, encode_rows, truncate
from minimind.evaluate.figures import Record
from minimind.evaluate.metrics import DEFAULT_METRICS, OPTIONAL_METRICS, Case
from minimind.evaluate.questions import Question
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, generate_batch
from minimind.tokenizer import Tokenizer
from minimind.training.scoring import Scores, score


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How to evaluate.

    Attributes:
        sampling: how rows are answered; None to answer none.
        scoring: whether rows with answers are scored.
        metrics: names of OPTIONAL_METRICS.
        tokens_per_batch: tokens scored at once, or one row's; results don't depend on it.
        rows_per_batch: rows answered at once.
    """

    sampling: SampleConfig | None
    scoring: bool = True
    metrics: tuple[str, ...] = ()
    tokens_per_batch: int = 4096
    rows_per_batch: int = 16

    def __post_init__(self) -> None:
        for name in self.metrics:
            if name not in OPTIONAL_METRICS:
                raise ValueError(f"metrics has {name}; use some of {', '.join(OPTIONAL_METRICS)}")
            OPTIONAL_METRICS[name](Case("", "a", "a", "a"))  # raises if its package is missing
        for name in ("tokens_per_batch", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use a positive number")


def evaluate(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Iterable[Question],
    evaluation: Evaluation,
    progress: Callable[[int], object] = lambda rows: None,
) -> Iterator[Record]:
    """Yield a Record for each question, in order; `progress` is told how many rows are done."""
    for block in blocks(questions, lambda row: characters(row.conversation), count=BLOCK_ROWS):
        records = [
            Record(
                row.conversation.path, row.conversation.line, row.prompt[-1].content, row.expected
            )
            for row in block
        ]
        if evaluation.scoring:
            _score(model, tokenizer, block, records, evaluation.tokens_per_batch)
        if evaluation.sampling is None:
            progress(len(block))
        else:
            _answer(model, tokenizer, block, records, evaluation, progress)
        yield from records


def _score(
    model: Transformer,
    tokenizer: Tokenizer,
    block: list[Question],
    records: list[Record],
    tokens_per_batch: int,
) -> None:
    context = model.config.max_position_embeddings
    conversations = [as_framed(row.conversation, tokenizer.framed) for row in block]
    rows = encode_rows(conversations, tokenizer)
    kept = [truncate(row, context, tokenizer) for row in rows]
    for row, part, record in zip(rows, kept, records, strict=True):
        record.cut = any(row.loss_mask[len(part) :])
    if any(any(row.loss_mask) for row in kept):
        dataset = Dataset.from_examples(kept)
        scores = score(model, dataset, tokenizer, tokens_per_batch=tokens_per_batch)
        for index, record in enumerate(records):
            record.sums |= _sums(scores.select([index]))


def score_documents(
    model: Transformer,
    tokenizer: Tokenizer,
    examples: Iterable[Example],
    path: str,
    tokens_per_batch: int = 4096,
) -> Record:
    """Score text that `encode_documents` cut: one Record for all of it."""
    record = Record(path, 0, "", None)
    source = iter(examples)
    while block := list(islice(source, BLOCK_ROWS)):
        sums = _sums(score(model, block, tokenizer, tokens_per_batch=tokens_per_batch))
        for name, (total, count) in sums.items():
            total_before, count_before = record.sums.get(name, (0.0, 0.0))
            record.sums[name] = total_before + total, count_before + count
    return record


def _sums(scores: Scores) -> dict[str, tuple[float, float]]:
    """Per figure its sum and count over all rows of `scores`."""
    tokens, text_bytes = float(scores.tokens.sum()), float(scores.text_bytes.sum())
    sums = {
        "loss": (float(scores.nats.sum()), tokens),
        "accuracy": (float(scores.correct.sum()), tokens),
        "bits_per_byte": (float(scores.text_nats.sum()) / math.log(2), text_bytes),
    }
    return {name: (total, count) for name, (total, count) in sums.items() if count}


def _answer(
    model: Transformer,
    tokenizer: Tokenizer,
    block: list[Question],
    records: list[Record],
    evaluation: Evaluation,
    progress: Callable[[int], object],
) -> None:
    assert evaluation.sampling is not None
    metrics = DEFAULT_METRICS | {name: OPTIONAL_METRICS[name] for name in evaluation.metrics}
    prompts = [
        encode_prompt(question.prompt, tokenizer, tools=question.conversation.tools)
        for question in block
    ]
    context = model.config.max_position_embeddings
    fitting = [row for row, prompt in enumerate(prompts) if len(prompt) < context]
    fitting.sort(key=lambda row: len(prompts[row]))  # rows of similar length share a batch
    progress(len(block) - len(fitting))
    for start in range(0, len(fitting), evaluation.rows_per_batch):
        rows = fitting[start : start + evaluation.rows_per_batch]
        answers = generate_batch(
            model, [prompts[row] for row in rows], evaluation.sampling, tokenizer.stop_ids
        )
        for row, ids in zip(rows, answers, strict=True):
            question, record = block[row], records[row]
            record.answer = tokenizer.decode(ids, skip_control=True)
            case = Case(record.question, record.answer, question.expected, question.pattern)
            measured = {name: metric(case) for name, metric in metrics.items()}
            ended = ids[-1] in tokenizer.stop_ids
            values = {"ended": float(ended), "tokens": float(len(ids)), **measured}
            record.sums |= {
                name: (value, 1.0) for name, value in values.items() if value is not None
            }
        progress(len(rows))
