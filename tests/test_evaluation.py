"""Evaluation gives the figures that a plain calculation gives, whatever the batch."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch

from minimind.data.conversation import parse_conversation
from minimind.data.masking import encode_conversation, encode_prompt
from minimind.evaluate.evaluation import Evaluation, evaluate
from minimind.evaluate.figures import Record, compare, figures, paired_bootstrap
from minimind.evaluate.questions import Question
from minimind.model.transformer import Transformer
from minimind.sampler import SampleConfig, generate
from minimind.tokenizer import Tokenizer
from minimind.training.scoring import score
from tests.support.tiny import CONFIG

SAMPLED = SampleConfig(seed=3, max_new_tokens=12)
WORDS = ["하나", "둘", "셋", "apple", "bread", "cat", "42", "말", "dog", "house", "물", "산"]


@pytest.fixture(scope="module")
def model() -> Transformer:
    return Transformer(CONFIG).initialize(1)


def questions(count: int) -> list[Question]:
    """Rows of many lengths; every third only asks."""
    generator = random.Random(0)
    rows = []
    for number in range(count):
        text = " ".join(generator.choices(WORDS, k=generator.randint(1, 30)))
        row = {"prompt": text} | ({} if number % 3 == 2 else {"completion": text[:20] or "."})
        path = f"{number % 2}.jsonl"
        rows.append(Question(parse_conversation(row, questions=True, path=path, line=number + 1)))
    return rows


def test_figures_are_those_of_scoring_and_answering_row_by_row(model, tokenizer) -> None:
    rows = questions(12)
    evaluation = Evaluation(sampling=SAMPLED, metrics=("exact", "contains"))
    records = list(evaluate(model, tokenizer, rows, evaluation))
    assert [record.line for record in records] == list(range(1, 13))
    for row, record in zip(rows, records, strict=True):
        prompt = encode_prompt(row.prompt, tokenizer)
        ids = list(generate(model, prompt, SAMPLED, stop_ids=tokenizer.stop_ids))
        assert record.answer == tokenizer.decode(ids, skip_control=True)
        assert record.sums["tokens"] == (len(ids), 1)
        assert record.sums["ended"] == (ids[-1] in tokenizer.stop_ids, 1)
        assert ("exact" in record.sums) == (row.expected is not None)
    answered = [row.conversation for row in rows if row.expected is not None]
    scores = score(model, [encode_conversation(row, tokenizer) for row in answered], tokenizer)
    found = figures(records)
    assert found["loss"] == pytest.approx(scores.loss, rel=1e-6)
    assert found["perplexity"] == pytest.approx(scores.perplexity, rel=1e-5)
    assert found["accuracy"] == pytest.approx(scores.accuracy)
    assert found["bits_per_byte"] == pytest.approx(scores.bits_per_byte, rel=1e-6)
    assert found["tokens"] == pytest.approx(np.mean([r.sums["tokens"][0] for r in records]))


def test_the_same_comes_out_whatever_the_batch(model, tokenizer, monkeypatch) -> None:
    rows = questions(20)
    whole = list(evaluate(model, tokenizer, rows, Evaluation(sampling=SAMPLED)))
    monkeypatch.setattr("minimind.evaluate.evaluation.BLOCK_ROWS", 7)
    small = Evaluation(sampling=SAMPLED, tokens_per_batch=64, rows_per_batch=3)
    other = list(evaluate(model, tokenizer, rows, small))
    assert [record.answer for record in other] == [record.answer for record in whole]
    for a, b in zip(whole, other, strict=True):
        assert a.sums.keys() == b.sums.keys()
        for name, sums in a.sums.items():
            assert sums == pytest.approx(b.sums[name], rel=1e-6)


def test_what_does_not_fit_the_context_is_not_asked(model, tokenizer) -> None:
    long = Question(parse_conversation({"prompt": "하나 apple " * 300}, questions=True))
    told: list[int] = []
    rows = [*questions(3), long]
    records = list(evaluate(model, tokenizer, rows, Evaluation(sampling=SAMPLED), told.append))
    assert records[-1].answer is None
    assert records[-1].sums == {}
    assert compare({"a": records})["models"][0]["answered"] == 3
    assert sum(told) == 4


def test_only_scoring_asks_nothing_and_only_asking_scores_nothing(model, tokenizer) -> None:
    rows = questions(4)
    scored = list(evaluate(model, tokenizer, rows, Evaluation(sampling=None)))
    assert {record.answer for record in scored} == {None}
    assert set(figures(scored)) == {"loss", "perplexity", "accuracy", "bits_per_byte"}
    asked = list(evaluate(model, tokenizer, rows, Evaluation(sampling=SAMPLED, scoring=False)))
    assert not {"loss", "perplexity", "accuracy", "bits_per_byte"} & set(figures(asked))
    assert None not in {record.answer for record in asked}


def test_models_are_compared_on_the_same_rows_and_by_file(model, tokenizer) -> None:
    rows = questions(9)
    other = Transformer(CONFIG).initialize(2)
    found = {
        name: list(evaluate(which, tokenizer, rows, Evaluation(sampling=None)))
        for name, which in (("a", model), ("b", other))
    }
    results = compare(found)
    (difference,) = results["differences"]
    a, b = (entry["figures"]["loss"] for entry in results["models"])
    mean, low, high = difference["figures"]["loss"]
    assert mean == pytest.approx(b - a)
    assert low <= mean <= high
    assert low < high
    by_file = results["models"][0]["sources"]
    assert set(by_file) == {"0.jsonl", "1.jsonl"}
    assert min(f["loss"] for f in by_file.values()) <= a <= max(f["loss"] for f in by_file.values())
    assert [len(row["answers"]) for row in results["rows"]] == [2] * 9


def test_models_of_other_tokens_are_compared_by_bytes_alone() -> None:
    def records(tokens: float) -> list[Record]:
        sums = {"loss": (9.0, tokens), "accuracy": (1.0, tokens), "bits_per_byte": (8.0, 3.0)}
        return [Record("a", line, "q", "a", sums=sums) for line in (1, 2)]

    (same,) = compare({"a": records(4), "b": records(4)})["differences"]
    assert set(same["figures"]) == {"loss", "accuracy", "bits_per_byte"}
    (other,) = compare({"a": records(4), "b": records(5)})["differences"]
    assert set(other["figures"]) == {"bits_per_byte"}


def test_a_bootstrap_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for trial in range(100):
        a, b = generator.normal(0.5, 1, 80), generator.normal(0, 1, 80)
        ones = np.ones(80)
        _, low, high = paired_bootstrap(np.stack([a, ones]), np.stack([b, ones]), seed=trial)
        held += low <= 0.5 <= high
    assert 88 <= held <= 100


def test_a_model_against_itself_differs_by_nothing() -> None:
    sums = np.array([[1.0, 2, 3], [2, 2, 2]])
    assert paired_bootstrap(sums, sums) == (0, 0, 0)


def test_a_figure_is_over_the_rows_that_have_it() -> None:
    records = [Record("a", line, "?", None) for line in (1, 2, 3)]
    records[0].sums = {"exact": (1.0, 1.0), "loss": (6.0, 2.0)}
    records[1].sums = {"loss": (1.0, 8.0)}
    found = figures(records)
    assert found == {"loss": 0.7, "perplexity": pytest.approx(math.exp(0.7)), "exact": 1}


def test_a_loss_beyond_floats_has_no_perplexity() -> None:
    record = Record("a", 1, "?", None, sums={"loss": (8000.0, 1.0), "accuracy": (0.0, 1.0)})
    assert figures([record]) == {"loss": 8000, "accuracy": 0}
    assert not any(map(math.isinf, figures([record]).values()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": ("bleu",)}, "metrics has bleu; use some of exact"),
        ({"rows_per_batch": 0}, "rows_per_batch is 0; use a positive number"),
        ({"tokens_per_batch": -1}, "tokens_per_batch is -1; use a positive number"),
    ],
)
def test_what_can_not_be_is_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        Evaluation(sampling=None, **options)


def test_gradients_are_not_kept(model: Transformer, tokenizer: Tokenizer) -> None:
    list(evaluate(model, tokenizer, questions(2), Evaluation(sampling=SAMPLED)))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()
