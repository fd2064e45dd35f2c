"""The card's figures: each model in its own tokens, on the same held-back bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from benchmarks import base_card
from minimind.pretrain.corpus import documents_of
from minimind.tokenizer import Tokenizer
from tests.support.tiny import write_base

SAMPLE = Path(__file__).parents[1] / "data" / "conversations.jsonl"
SAID = [
    message["content"]
    for line in SAMPLE.read_text(encoding="utf-8").splitlines()
    for message in json.loads(line)["messages"]
    if len(message["content"]) > 15
]
TEXTS = list({" ".join(text.casefold().split()): text for text in SAID}.values())


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    rows = [json.dumps({"text": text}) + "\n" for text in TEXTS]
    path.write_text("".join(rows), encoding="utf-8")
    return path


def test_a_card_has_every_model_by_script_and_ten_continuations_each(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("knlm")
    base = str(write_base(tmp_path / "base"))
    others = ["--earlier", base, "--smollm2", base, "--val-fraction", "0.2", "--max-length", "64"]
    base_card.main([base, str(corpus), *others])
    *_, line = told = capsys.readouterr().out.rstrip().split("\n")
    bits = json.loads(line)["bits_per_byte"]
    assert bits["base"] == bits["earlier base"]
    assert bits["SmolLM2-135M"] == {"rest latin": bits["base"]["rest latin"]}
    assert set(bits["5-gram"]) == {"rest hangul", "rest latin"}
    assert bits["5-gram"]["rest latin"] < 3.5 < bits["base"]["rest latin"]  # the base is random
    shown = " | ".join(f"{found:.4f}" for found in bits["base"].values())
    assert f"| base | {shown} |" in told
    assert sum(row.endswith(("∎ |", "… |")) for row in told) == 20


def test_a_5_gram_model_gives_probabilities_that_sum_to_one(tokenizer: Tokenizer) -> None:
    pytest.importorskip("knlm")
    training = tokenizer.encode_batch(TEXTS)
    ngrams = base_card.NGrams(iter(training), tokenizer)
    ids = [str(id) for id in range(tokenizer.vocab_size)]
    for before in ([], training[3][:2], training[7][:6]):
        context = [str(id) for id in before]
        log_p = [ngrams._model.evaluate([*context, id]) for id in ids]
        assert 0.8 < sum(map(math.exp, log_p)) < 1.0001  # the rest is for the document's end


def test_too_little_text_for_the_5_grams_is_said(tokenizer: Tokenizer) -> None:
    pytest.importorskip("knlm")
    few = [tokenizer.encode(f"{n} cats ate {n * n} fish.") for n in range(120)]
    ngrams = base_card.NGrams(iter(few), tokenizer)
    with pytest.raises(ValueError, match="too little text to find the 5-gram model's discounts"):
        ngrams.bits_per_byte(["fish ate 500 dogs"])


def test_documents_come_back_from_their_windows(corpus: Path, tokenizer: Tokenizer) -> None:
    windows, report = base_card.build_corpus([corpus], tokenizer, 5)
    texts = [tokenizer.decode(ids) for _, ids in documents_of(windows)]
    assert len(texts) == report.kept
    assert [text for text in TEXTS if text in set(texts)] == texts
    by_kind = base_card.held_back_texts(windows, tokenizer, ["a/world.ko.jsonl"])
    assert set(by_kind) == {"world hangul", "world latin"}
    told = [text for some in by_kind.values() for text in some]
    assert set(told) <= set(texts)
    assert len(told) == len(set(told)) > 0.9 * len(texts)  # the rest have no script


def test_without_anything_held_back_there_is_no_card(corpus: Path, tmp_path: Path) -> None:
    base = str(write_base(tmp_path / "base"))
    with pytest.raises(SystemExit, match="nothing is held back; raise --val-fraction"):
        base_card.main([base, str(corpus), "--val-fraction", "0", "--no-ngrams"])
