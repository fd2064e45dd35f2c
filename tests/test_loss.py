from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimind.documents import Documents
from minimind.model.config import ModelConfig
from minimind.model.transformer import Transformer
from minimind.training import loss
from minimind.training.loss import summed_cross_entropy, token_scores

HALF = [torch.bfloat16, torch.float16]


def draw(
    rows: int, vocabulary: int, width: int, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """States, head, labels and weights, some of them 0; the first two want gradients."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(rows, width, generator=generator, dtype=dtype).requires_grad_()
    head = torch.randn(vocabulary, width, generator=generator, dtype=dtype).requires_grad_()
    labels = torch.randint(vocabulary, (rows,), generator=generator)
    weights = torch.rand(rows, generator=generator).round(decimals=1) * 2
    return states, head, labels, weights


def naive(states: Tensor, head: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The slow twin: all logits at once."""
    logits = F.linear(states, head)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses if weights is None else losses * weights).sum()


def gradients(loss: Tensor, *of: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, of))


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative L2 norm; absolute where theirs is 0."""
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).norm()) / (float(theirs.norm()) or 1.0)


def chunks_of(monkeypatch: pytest.MonkeyPatch, rows: int, vocabulary: int) -> None:
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * rows * vocabulary)


@given(
    rows=st.integers(0, 40),
    vocabulary=st.integers(1, 300),
    width=st.integers(1, 24),
    rows_per_chunk=st.integers(1, 50),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_loss_and_gradients_are_those_of_full_logits(
    rows, vocabulary, width, rows_per_chunk, weighted, seed
) -> None:
    states, head, labels, weights = draw(rows, vocabulary, width, seed, torch.float64)
    factors = weights if weighted else None
    with pytest.MonkeyPatch.context() as monkeypatch:
        chunks_of(monkeypatch, rows_per_chunk, vocabulary)
        ours = summed_cross_entropy(states, head, labels, factors)
        with torch.no_grad():
            without_gradient = summed_cross_entropy(states, head, labels, factors)
    theirs = naive(states, head, labels, factors)
    assert ours.dtype == without_gradient.dtype == torch.float64
    assert ours.shape == ()
    assert difference(ours, theirs) < 1e-12
    assert difference(without_gradient, theirs) < 1e-12
    pairs = zip(gradients(ours, states, head), gradients(theirs, states, head), strict=True)
    for mine, expected in pairs:
        assert difference(mine, expected) < 1e-9  # relative to what may all but vanish


def rounding_bounds(states: Tensor, head: Tensor, labels: Tensor, weights: Tensor) -> list[float]:
    """How far float32 gradients may lie from the exact ones, relative, whatever the order of sums.

    A sum of n products a·b that is taken in float32 lies within n·u·sum(|a·b|) of the exact one,
    u = 2^-24. Roundings don't all go one way: within 6·sqrt(n)·u·sum(|a·b|) for nearly all sums
    (Higham and Mary, A New Approach to Probabilistic Rounding Error Analysis, 2019: all but
    2n·exp(-18)). The longest sums go over the vocabulary: the states' gradient, and the softmax's
    denominator, by which the head's gradient is scaled.
    """
    p = F.linear(states, head).softmax(-1)
    d_logits = (p - F.one_hot(labels, len(head))).mul_(weights[:, None])
    share = 6 * math.sqrt(len(head)) * 2**-24
    pairs = ((d_logits, head), (d_logits.t(), states))
    return [share * float((a.abs() @ b.abs()).norm() / (a @ b).norm()) for a, b in pairs]


@pytest.mark.parametrize("rows_per_chunk", [3, 100])
@pytest.mark.parametrize(("vocabulary", "rows"), [(49_152, 24), (151_936, 10), (256_000, 7)])
def test_at_large_vocabularies_gradients_are_as_exact_as_float32_sums_can_be(
    vocabulary, rows, rows_per_chunk, monkeypatch
) -> None:
    states, head, labels, weights = draw(rows, vocabulary, 8)
    chunks_of(monkeypatch, rows_per_chunk, vocabulary)
    ours = gradients(summed_cross_entropy(states, head, labels, weights), states, head)
    doubles = states.detach().double().requires_grad_(), head.detach().double().requires_grad_()
    truth = gradients(naive(*doubles, labels, weights), *doubles)
    with torch.no_grad():
        bounds = rounding_bounds(*doubles, labels, weights.double())
    for mine, exactly, bound in zip(ours, truth, bounds, strict=True):
        assert mine.dtype == torch.float32
        assert difference(mine, exactly) < bound < 3e-4  # a gradient wrong by 1e-3 can't pass


@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_under_autocast_it_rounds_no_worse_than_the_naive_loss(half, weighted, monkeypatch) -> None:
    states, head, labels, weights = draw(64, 500, 32)
    with torch.no_grad():
        head *= 0.3
    factors = weights if weighted else None
    exact = naive(states, head, labels, factors)
    truth = gradients(exact, states, head)
    chunks_of(monkeypatch, 10, 500)
    with torch.autocast("cpu", half):
        ours = summed_cross_entropy(states, head, labels, factors)
        theirs = naive(states, head, labels, factors)
        with torch.no_grad():
            without_gradient = summed_cross_entropy(states, head, labels, factors)
    assert ours.dtype == theirs.dtype == without_gradient.dtype == torch.float32
    assert difference(ours, theirs) < 1e-5
    assert difference(without_gradient, theirs) < 1e-5
    ours_grad, theirs_grad = gradients(ours, states, head), gradients(theirs, states, head)
    for mine, naively, exactly in zip(ours_grad, theirs_grad, truth, strict=True):
        assert mine.dtype == torch.float32
        assert 0 < difference(mine, exactly) < 1.1 * difference(naively, exactly)


def test_float16_sums_over_many_equal_labels_do_not_overflow() -> None:
    # 4096 positions with one label, states of 40: in float16 their sum would be infinite.
    states = torch.full((4096, 2), 40.0, requires_grad=True)
    head = torch.tensor([[-0.1, -0.1], [0.1, 0.1]], requires_grad=True)
    labels = torch.zeros(4096, dtype=torch.long)
    with torch.autocast("cpu", torch.float16):
        total = summed_cross_entropy(states, head, labels)
    ours, theirs = gradients(total, head)[0], gradients(naive(states, head, labels), head)[0]
    assert float(theirs.abs().max()) > torch.finfo(torch.float16).max
    assert difference(ours, theirs) < 1e-3


def test_no_supervised_position_is_a_loss_of_zero_with_gradients_of_zero() -> None:
    states, head, labels, weights = draw(0, 11, 4)
    for factors in (None, weights):
        total = summed_cross_entropy(states, head, labels, factors)
        assert total.item() == 0.0
        d_states, d_head = gradients(total, states, head)
        assert d_states.shape == (0, 4)
        assert torch.equal(d_head, torch.zeros(11, 4))
    losses, likeliest = token_scores(states, head, labels)
    assert losses.shape == likeliest.shape == (0,)


def test_a_second_backward_over_a_kept_graph_gives_the_same_gradients() -> None:
    states, head, labels, _ = draw(9, 40, 5)
    total = summed_cross_entropy(states, head, labels) / 3
    first = torch.autograd.grad(total, (states, head), retain_graph=True)
    second = torch.autograd.grad(total, (states, head))
    for once, again in zip(first, second, strict=True):
        assert torch.equal(once, again)


def test_only_the_head_or_only_the_states_may_want_a_gradient() -> None:
    states, head, labels, _ = draw(9, 40, 5)
    both = gradients(summed_cross_entropy(states, head, labels), states, head)
    (of_states,) = gradients(summed_cross_entropy(states, head.detach(), labels), states)
    (of_head,) = gradients(summed_cross_entropy(states.detach(), head, labels), head)
    assert torch.equal(of_states, both[0])
    assert torch.equal(of_head, both[1])


def test_a_tied_embedding_gets_both_of_its_gradients(monkeypatch) -> None:
    """The embedding is read at the bottom and used as the head at the top."""
    _, embedding, labels, _ = draw(12, 30, 6)
    input_ids = torch.arange(12)
    chunks_of(monkeypatch, 5, 30)

    def gradient(function) -> Tensor:
        states = torch.tanh(F.embedding(input_ids, embedding))
        return gradients(function(states, embedding, labels), embedding)[0]

    assert difference(gradient(summed_cross_entropy), gradient(naive)) < 1e-6


def test_a_hand_computed_negative_log_likelihood() -> None:
    """Two positions, three tokens: logits (0, ln 2, ln 3) and (ln 5, 0, 0), out of 6 and 7."""
    states = torch.tensor([[1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    head = torch.tensor([[0.0, math.log(5)], [math.log(2), 0.0], [math.log(3), 0.0]])
    labels = torch.tensor([2, 0])
    by_hand = [math.log(6 / 3), math.log(7 / 5)]
    losses, likeliest = token_scores(states, head, labels)
    assert likeliest.tolist() == [True, True]
    assert losses.tolist() == pytest.approx(by_hand, abs=1e-6)
    total = summed_cross_entropy(states, head, labels, torch.tensor([1.0, 0.5]))
    assert total.item() == pytest.approx(by_hand[0] + by_hand[1] / 2, abs=1e-6)
    # softmax - onehot is (1/6, 2/6, 3/6 - 1) at the first position; times the head, by hand:
    expected = (math.log(2) * 2 / 6 + math.log(3) * (3 / 6 - 1), math.log(5) / 6)
    assert gradients(total, states)[0][0].tolist() == pytest.approx(expected, abs=1e-6)


def test_huge_logits_neither_overflow_nor_lose_their_gradient() -> None:
    states = torch.tensor([[1e4], [-1e4]], requires_grad=True)
    head = torch.tensor([[1.0], [-1.0]], requires_grad=True)
    total = summed_cross_entropy(states, head, torch.tensor([1, 1]))
    assert total.item() == 2e4  # wrong by 20,000 at the first position, right at the second
    assert gradients(total, states)[0].tolist() == [[2.0], [0.0]]


class Largest(TorchDispatchMode):
    """Remembers how many elements the largest tensor had that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        many = out if isinstance(out, (tuple, list)) else (out,)
        sizes = [one.numel() for one in many if isinstance(one, Tensor)]
        self.elements = max([self.elements, *sizes])
        return out


@pytest.mark.parametrize("half", [None, *HALF], ids=str)
def test_full_logits_never_exist(half, monkeypatch) -> None:
    rows, vocabulary, width, rows_per_chunk = 600, 2000, 8, 50
    states, head, labels, weights = draw(rows, vocabulary, width)
    chunks_of(monkeypatch, rows_per_chunk, vocabulary)
    with Largest() as seen, torch.autocast("cpu", half, enabled=half is not None):
        summed_cross_entropy(states, head, labels, weights).backward()
        token_scores(states, head, labels)
    assert seen.elements == rows_per_chunk * vocabulary
    with Largest() as seen:  # the observer does see full logits
        naive(states, head, labels).backward()
    assert seen.elements == rows * vocabulary


def test_one_row_is_scored_at_a_time_when_even_that_is_over_the_limit(monkeypatch) -> None:
    states, head, labels, _ = draw(3, 10, 2)
    monkeypatch.setattr(loss, "CHUNK_BYTES", 1)
    with Largest() as seen:
        total = summed_cross_entropy(states, head, labels)
    assert seen.elements == head.numel()
    assert difference(total, naive(states, head, labels)) < 1e-6


def test_the_first_answer_token_gets_gradient() -> None:
    """The position where the prompt ends predicts the answer's first token, and learns it."""
    config = ModelConfig(
        model_type="llama",
        vocab_size=20,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=16,
    )
    model = Transformer(config).initialize(std=0.5)
    prompt_end, first_answer_token = 2, 17
    with torch.no_grad():
        logits = model(torch.tensor([[3, 4, 5]]))
        expected = -logits[0, prompt_end].log_softmax(-1)[first_answer_token]
    documents, last = Documents.of([3]), torch.tensor([prompt_end])
    hidden = model.hidden_states(torch.tensor([3, 4, 5]), torch.arange(3), documents, last)
    total = summed_cross_entropy(hidden, model.head_weight, torch.tensor([first_answer_token]))
    total.backward()
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)
    assert model.lm_head.weight.grad[first_answer_token].abs().min() > 0
