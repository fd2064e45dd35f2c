"""What a model is scored on, and that the figures are those of a plain calculation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import minimind
from minimind.data.dataset import Dataset, Example
from minimind.data.plain_text import encode_documents
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training.scoring import Scores, score
from tests.support.ragged import CONFIG, new_model, ragged_rows


class Spelling:
    """A tokenizer of the ragged rows: id i spells i % 4 bytes, and 1 and 2 are control tokens."""

    control_ids = frozenset({1, 2})

    def token_bytes(self, id: int) -> bytes:
        return b"x" * (id % 4)


def naive(model: Transformer, example: Example) -> list[tuple[int, float, bool]]:
    """(label, -log p, likeliest) of each supervised token, by full logits in float64."""
    logits = model(torch.tensor([list(example.input_ids)]))[0].double().log_softmax(-1)
    return [
        (label, -logits[at, label].item(), logits[at].argmax().item() == label)
        for at, (label, trained) in enumerate(
            zip(list(example.input_ids)[1:], list(example.loss_mask)[1:], strict=True)
        )
        if trained
    ]


def test_scores_are_those_of_a_plain_loop() -> None:
    model, rows = new_model(), ragged_rows(20, weighted=True)
    scores = score(model, rows, Spelling())
    for index, row in enumerate(rows):
        expected = naive(model, row)
        text = [entry for entry in expected if entry[0] not in Spelling.control_ids]
        assert scores.nats[index] == pytest.approx(sum(nats for _, nats, _ in expected), rel=1e-5)
        assert scores.tokens[index] == len(expected)
        assert scores.correct[index] == sum(right for *_, right in expected)
        assert scores.text_nats[index] == pytest.approx(sum(n for _, n, _ in text), rel=1e-5)
        assert scores.text_bytes[index] == sum(label % 4 for label, *_ in text)
    assert 0 < scores.correct.sum() < scores.tokens.sum()
    every = [entry for row in rows for entry in naive(model, row)]
    assert scores.loss == pytest.approx(sum(nats for _, nats, _ in every) / len(every), rel=1e-6)
    assert scores.accuracy == sum(right for *_, right in every) / len(every)
    assert scores.perplexity == pytest.approx(math.exp(scores.loss))


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(1, 20))
def test_scores_are_the_same_whatever_the_batch(budget: int, block: int) -> None:
    model, rows = new_model(), ragged_rows(17)
    whole = score(model, rows, Spelling())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("minimind.training.scoring.BLOCK_ROWS", block)
        other = score(model, rows, Spelling(), tokens_per_batch=budget)
    assert np.allclose(other.nats, whole.nats, rtol=1e-6, atol=0)
    assert np.allclose(other.text_nats, whole.text_nats, rtol=1e-6, atol=0)
    for name in ("tokens", "correct", "text_bytes"):
        assert getattr(other, name).tolist() == getattr(whole, name).tolist()
    assert other.loss == pytest.approx(whole.loss, rel=1e-6)


def test_a_row_without_a_supervised_token_has_zeros_in_its_place() -> None:
    rows = [Example([3, 4], [False, True]), Example([3, 4, 5], [False] * 3)]
    rows.append(Example([3, 6, 7], [False, True, True]))
    scores = score(new_model(), rows, Spelling())
    assert scores.tokens.tolist() == [1, 0, 2]
    assert scores.nats[1] == 0
    assert scores.select([2]).tokens.tolist() == [2]
    assert scores.select(scores.tokens > 0).loss == pytest.approx(scores.loss)


def test_the_end_of_an_answer_counts_in_the_loss_but_is_no_text(base) -> None:
    model, tokenizer = base
    chat = [{"role": "user", "content": "안녕?"}, {"role": "assistant", "content": "네, 안녕! 👋"}]
    scores = score(model, [minimind.encode_conversation(chat, tokenizer)], tokenizer)
    assert scores.text_bytes.tolist() == [len("네, 안녕! 👋".encode())]
    assert scores.text_nats[0] < scores.nats[0]
    assert scores.tokens.tolist() == [len(tokenizer.encode("네, 안녕! 👋")) + 1]


def test_bits_per_byte_of_a_text_begin_at_its_first_token_and_leave_its_end_out(base) -> None:
    model, tokenizer = base
    text = "비가 온다. It rains."
    ids = [tokenizer.encode_control("<|endoftext|>"), *tokenizer.encode(text)]
    log_p = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    nats = -sum(log_p[at, id].item() for at, id in enumerate(ids[1:]))
    scores = score(model, encode_documents([text], tokenizer, 512), tokenizer)
    assert scores.text_bytes.sum() == len(text.encode())
    assert scores.tokens.sum() == len(ids)  # the end token is scored, too
    expected = nats / math.log(2) / len(text.encode())
    assert scores.bits_per_byte == pytest.approx(expected, rel=1e-5)


def test_without_a_tokenizer_there_are_no_bits_per_byte() -> None:
    model, rows = new_model(), ragged_rows(3)
    scores = score(model, rows)
    assert math.isnan(scores.bits_per_byte)
    assert scores.loss == score(model, rows, Spelling()).loss


def test_scoring_changes_neither_the_mode_nor_the_weights() -> None:
    model = new_model().train()
    before = [p.clone() for p in model.parameters()]
    score(model, ragged_rows(3), Spelling())
    assert model.training
    assert all(map(torch.equal, model.parameters(), before))
    assert all(p.grad is None for p in model.parameters())


def test_figures_that_cannot_be_are_not_numbers() -> None:
    none, zero = np.array([1e6]), np.array([0])
    scores = Scores(none, np.array([10]), zero, np.array([0.0]), zero)
    assert scores.perplexity == math.inf
    assert math.isnan(scores.bits_per_byte)


def test_a_loss_that_is_no_number_is_refused() -> None:
    model = new_model()
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    with pytest.raises(ValueError, match="its loss of example 0 isn't finite; its weights are"):
        score(model, ragged_rows(2))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="none of 1 rows has a supervised token; check"):
        score(new_model(), [Example([3, 4], [True, False])], Spelling())
    with pytest.raises(ValueError, match="tokens_per_batch is 0; use a positive number"):
        score(new_model(), Dataset.from_examples([]), Spelling(), tokens_per_batch=0)


@pytest.fixture(scope="module")
def base() -> tuple[Transformer, Tokenizer]:
    return minimind.load()


def test_the_ragged_rows_have_control_tokens_among_their_labels() -> None:
    assert CONFIG.vocab_size > 3
    labels = {id for row in ragged_rows(20) for id in row.input_ids}
    assert labels >= Spelling.control_ids


def test_a_precision_may_be_measured_and_must_be_known() -> None:
    model, rows = new_model(), ragged_rows(3)
    assert score(model, rows, precision="auto").loss == pytest.approx(score(model, rows).loss, 0.1)
    with pytest.raises(ValueError, match="precision is fp8; use auto, fp32, bf16 or fp16"):
        score(model, rows, precision="fp8")
