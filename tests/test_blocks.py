"""Blocks lose nothing, and none grows with the size of the items or with their number."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.blocks import BLOCK_CHARACTERS, blocks, characters
from minimind.data.build import DataOptions, build_dataset
from minimind.data.conversation import Conversation, Message
from minimind.data.masking import encode_rows
from minimind.evaluate.evaluation import Evaluation, evaluate
from minimind.evaluate.questions import Question
from minimind.inspect.survey import survey
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from tests.support.tiny import CONFIG

SIZES = st.lists(st.integers(0, 30), max_size=40)


@given(SIZES, st.integers(1, 40), st.integers(1, 8))
def test_blocks_neither_lose_nor_grow(sizes: list[int], most: int, count: int) -> None:
    found = list(blocks(sizes, lambda size: size, most, count))
    assert [size for block in found for size in block] == sizes
    for block in found:
        assert 0 < len(block) <= count
        assert sum(block[:-1]) < most  # only the item that fills a block may exceed it
    for block in found[:-1]:
        assert sum(block) >= most or len(block) == count


@given(SIZES)
def test_a_block_is_yielded_before_the_next_item_is_read(sizes: list[int]) -> None:
    read = []
    source = (read.append(size) or size for size in sizes)
    done = 0
    for block in blocks(source, lambda size: size, 20, 5):
        done += len(block)
        assert len(read) == done


def chat(text: str) -> Conversation:
    return Conversation((Message("user", "?"), Message("assistant", text)))


@pytest.fixture
def most(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Characters of each block that is encoded."""
    seen: list[int] = []
    encode_batch = Tokenizer.encode_batch

    def counted(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
        seen.append(sum(map(len, texts)))
        return encode_batch(tokenizer, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    return seen


LONG = "가나 다라 마바 " * 30_000  # 270,000 characters: four fill a block


@pytest.mark.parametrize("who", ["build", "survey", "evaluate"])
def test_long_rows_are_tokenized_few_at_a_time(
    who: str, most: list[int], tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [chat(f"{n} {LONG}") for n in range(9)]
    if who == "build":
        path = tmp_path / "rows.jsonl"
        lines = [json.dumps({"prompt": "?", "completion": f"{n} {LONG}"}) for n in range(9)]
        path.write_text("\n".join(lines), encoding="utf-8")
        build_dataset([path], tokenizer, DataOptions())
    elif who == "survey":
        survey(rows, tokenizer, DataOptions())
    else:
        evaluation = Evaluation(sampling=None)
        model = Transformer(CONFIG).initialize(0)
        list(evaluate(model, tokenizer, map(Question, rows), evaluation))
    assert sum(most) >= 9 * len(LONG)
    assert max(most) < BLOCK_CHARACTERS + len(LONG) + 100


def test_an_empty_message_counts_too(tokenizer: Tokenizer) -> None:
    rows = [chat("") for _ in range(3)]
    assert sum(map(characters, rows)) > 0
    assert len(encode_rows(rows, tokenizer)) == 3
