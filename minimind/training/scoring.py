"""Measure how well a model predicts the supervised tokens of a dataset.

    row        <|im_start|> user \n Hi <|im_end|> ... assistant \n Hello ! <|im_end|>
    scored                                                         x   x       x

Sums are taken row by row in float64, so that they don't depend on how rows were batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from minimind.data.dataset import Dataset, Example
from minimind.data.packing import Ints, cut, make_batch
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training.loss import token_scores
from minimind.training.precision import Precision, autocast, resolve_precision
from minimind.training.step import supervised_states

Floats = npt.NDArray[np.float64]

BLOCK_ROWS = 2**14  # planned at once


@dataclass(frozen=True, slots=True)
class Scores:
    """Sums per row, each of shape (rows,); the properties are over all rows.

    Attributes:
        nats: -log p, summed over a row's supervised tokens.
        tokens: how many supervised tokens a row has.
        correct: how many of them are the model's likeliest token.
        text_nats: as `nats`, without control tokens such as the one that ends an answer.
        text_bytes: UTF-8 bytes of the tokens in `text_nats`.

    Source: bits per byte, Gao et al. 2020 (The Pile), arXiv:2101.00027.
    """

    nats: Floats
    tokens: Ints
    correct: Ints
    text_nats: Floats
    text_bytes: Ints

    @property
    def loss(self) -> float:
        """Nats per supervised token."""
        return float(self.nats.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """e to the power of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of the supervised tokens that are the model's likeliest."""
        return float(self.correct.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the supervised text: comparable between tokenizers; NaN without text."""
        total = int(self.text_bytes.sum())
        return float(self.text_nats.sum()) / math.log(2) / total if total else math.nan

    def select(self, rows: npt.ArrayLike) -> Scores:
        """Scores of some rows only: indices, or a mask."""
        return Scores(*(getattr(self, field.name)[rows] for field in fields(self)))


@torch.no_grad()
def score(
    model: Transformer,
    examples: Iterable[Example],
    tokenizer: Tokenizer | None = None,
    *,
    tokens_per_batch: int = 4096,
    precision: Precision = "fp32",
) -> Scores:
    """Score a model on the supervised tokens of examples; the weights of messages aren't used.

    Rows longer than the model's context are scored at positions that it wasn't trained on.

    Args:
        model: on any device.
        examples: a Dataset, or Examples (copied into one).
        tokenizer: what the examples were made with; without it there are no bits per byte.
        tokens_per_batch: tokens in memory at once, or one row's; results don't depend on it.
        precision: of the matrix products.

    Returns:
        Scores, a row for each example; one without a supervised token has zeros.

    Raises:
        ValueError: no example has a supervised token, `tokens_per_batch` isn't positive, or the
            model's losses aren't finite.
    """
    dataset = examples if isinstance(examples, Dataset) else Dataset.from_examples(examples)
    if tokens_per_batch < 1:
        raise ValueError(f"tokens_per_batch is {tokens_per_batch}; use a positive number")
    lengths = dataset.column("input_length").astype(np.int64)
    rows = np.flatnonzero(lengths)
    if not len(rows):
        raise ValueError(
            f"none of {len(dataset)} rows has a supervised token; check that answers fit max_length"
        )
    precision = resolve_precision(precision, model)
    budget = max(tokens_per_batch, int(lengths.max()))
    bytes_of_id = np.full(model.config.vocab_size, -1)  # -1: a control token is no text
    if tokenizer is not None:
        for id in set(range(len(bytes_of_id))) - tokenizer.control_ids:
            bytes_of_id[id] = len(tokenizer.token_bytes(id))
    tokens = dataset.column("supervised").astype(np.int64)
    sums = np.zeros((4, len(dataset)))  # nats, correct, text_nats, text_bytes
    for block in np.array_split(rows, -(-len(rows) // BLOCK_ROWS)):
        for group in cut(block, lengths[block], budget):
            batch = make_batch(dataset, group).to(model.device)
            with autocast(precision, model.device):
                states, labels = supervised_states(model, batch)
                losses, correct = token_scores(states, model.head_weight, labels)
            nats = losses.double().cpu().numpy()  # (supervised tokens of the group,)
            size = bytes_of_id[labels.cpu().numpy()]
            columns = nats, correct.cpu().numpy(), nats * (size >= 0), size.clip(0)
            row = np.repeat(np.arange(len(group)), tokens[group])
            sums[:, group] = [np.bincount(row, column) for column in columns]
    finite = np.isfinite(sums[0])
    if not finite.all():
        raise ValueError(
            f"model: its loss of example {int(finite.argmin())} isn't finite; its weights are "
            "broken, or too large for its dtype: load it with dtype=torch.float32"
        )
    return Scores(sums[0], tokens, sums[1].astype(np.int64), sums[2], sums[3].astype(np.int64))
