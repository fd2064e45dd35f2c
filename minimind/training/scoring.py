"""Measure how well a model predicts what a dataset trains. Knows no files and no answers.

    row        <|im_start|> user \n Hi <|im_end|> ... assistant \n Hello ! <|im_end|>
    scored                                                         x   x       x

Sums are taken row by row in float64, so that they don't depend on how rows were batched.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from minimind.data.dataset import Dataset, Example
from minimind.data.packing import cut, make_batch
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training.loop import supervised_states
from minimind.training.loss import token_scores
from minimind.training.precision import Precision, autocast

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BLOCK_ROWS = 2**14  # planned at once


@dataclass(frozen=True, slots=True)
class Scores:
    """Sums per row; the figures are over all of them.

    Attributes:
        nats: (rows,) sum of -log p over a row's supervised tokens.
        tokens: (rows,) how many these are.
        correct: (rows,) how many of them were the model's likeliest.
        text_nats: (rows,) as `nats`, without the tokens that end an answer or a text.
        text_bytes: (rows,) UTF-8 bytes of what `text_nats` is over.
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
        """e to the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def accuracy(self) -> float:
        """Share of the supervised tokens that were the model's likeliest."""
        return float(self.correct.sum() / self.tokens.sum())

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the supervised text: comparable between tokenizers; NaN without text."""
        total = int(self.text_bytes.sum())
        return float(self.text_nats.sum()) / math.log(2) / total if total else math.nan

    def select(self, rows: npt.ArrayLike) -> Scores:
        """Only some of the rows: indices, or a mask."""
        chosen = np.asarray(rows)
        parts = (self.nats, self.tokens, self.correct, self.text_nats, self.text_bytes)
        return Scores(*(part[chosen] for part in parts))


@torch.no_grad()
def score(
    model: Transformer,
    examples: Iterable[Example],
    tokenizer: Tokenizer | None = None,
    *,
    tokens_per_batch: int = 4096,
    precision: Precision = "fp32",
) -> Scores:
    """Score a model on the supervised tokens of examples; weights of messages play no part.

    Args:
        model: on any device.
        examples: a Dataset, or Examples (copied into one).
        tokenizer: what the examples were made with, which tells the bytes of tokens; without it
            there are no bits per byte.
        tokens_per_batch: tokens in memory at once, or one row's; bounds memory, changes nothing.
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
    lengths = dataset.table["input_length"].astype(np.int64)
    rows = np.flatnonzero(lengths)
    if not len(rows):
        raise ValueError(
            f"none of {len(dataset)} rows has a supervised token; "
            "check that rows have an answer that fits into max_length"
        )
    text_bytes = _bytes_of_tokens(tokenizer, model.config.vocab_size)
    sums = np.zeros((5, len(dataset)))
    was_training = model.training
    model.eval()
    with autocast(precision, model.device):
        budget = max(tokens_per_batch, int(lengths.max()))
        for block in np.array_split(rows, -(-len(rows) // BLOCK_ROWS)):
            for group in cut(block, lengths[block], budget):
                batch = make_batch(dataset, group).to(model.device)
                states, labels = supervised_states(model, batch)
                losses, correct = token_scores(states, model.head_weight, labels)
                nats = losses.double().cpu().numpy()
                spelled = text_bytes[labels.cpu().numpy()]
                ends = np.cumsum(batch.lengths)
                owner = np.searchsorted(ends, batch.supervised.cpu().numpy(), side="right")
                text_nats = np.where(spelled >= 0, nats, 0.0)
                columns = (np.ones_like(nats), correct.cpu().numpy(), spelled.clip(0))
                for sum_, column in zip(sums, (nats, text_nats, *columns), strict=True):
                    sum_[group] = np.bincount(owner, column, len(group))
    model.train(was_training)
    finite = np.isfinite(sums[0])
    if not finite.all():
        raise ValueError(
            f"model: its loss of example {int(finite.argmin())} isn't finite; its weights are "
            "broken, or too large for its dtype: load it with dtype=torch.float32"
        )
    tokens, right, text = sums[2:].astype(np.int64)
    return Scores(sums[0], tokens, right, sums[1], text)


def _bytes_of_tokens(tokenizer: Tokenizer | None, vocab_size: int) -> Ints:
    """How many bytes of text each id stands for; -1 for control tokens, which are no text."""
    if tokenizer is None:
        return np.full(vocab_size, -1, np.int64)
    lengths = [
        -1 if id in tokenizer.control_ids else len(tokenizer.token_bytes(id))
        for id in range(vocab_size)
    ]
    return np.array(lengths, np.int64)
