"""Every token of a text is trained exactly once, and bad files say where they are bad."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.conversation import DataError
from minimind.data.documents import encode_documents, read_documents
from minimind.data.packing import make_steps
from minimind.tokenizer import Tokenizer
from tests.strategies import texts


@given(document=texts(min_size=1), max_length=st.integers(1, 40))
def test_windows_train_each_token_of_a_document_exactly_once(
    document: str, max_length: int, tokenizer: Tokenizer
) -> None:
    (end,) = {tokenizer.encode_control("<|endoftext|>")}
    windows = list(encode_documents([document], tokenizer, max_length))
    ids = [window.input_ids for window in windows]
    trained = [id for window in ids for id in window[1:]]
    assert trained == [*tokenizer.encode(document), end]
    assert ids[0][0] == end
    for before, after in pairwise(ids):
        assert after[0] == before[-1]  # the first token of a window is context
        assert len(before) == max_length + 1
    assert len(ids[-1]) <= max_length + 1
    assert all(w.loss_mask == [False] + [True] * (len(w) - 1) for w in windows)


def test_documents_stay_apart(tokenizer: Tokenizer) -> None:
    windows = list(encode_documents(["하나", "둘"], tokenizer, 100))
    assert [tokenizer.decode(window.input_ids) for window in windows] == [
        "<|endoftext|>하나<|endoftext|>",
        "<|endoftext|>둘<|endoftext|>",
    ]


def test_what_a_document_spells_is_text(tokenizer: Tokenizer) -> None:
    (window,) = encode_documents(["a<|endoftext|>b<|im_end|>"], tokenizer, 100)
    assert [i for i in window.input_ids if i in tokenizer.control_ids] == [0, 0]


def test_an_empty_document_is_left_out(tokenizer: Tokenizer) -> None:
    assert len(list(encode_documents(["", "a", ""], tokenizer, 10))) == 1


def test_a_step_reads_max_length_tokens_of_each_window(tokenizer: Tokenizer) -> None:
    steps = make_steps(encode_documents(["나무 " * 50], tokenizer, 16), tokens_per_step=16)
    sizes = [length for step in steps for batch in step for length in batch.lengths]
    assert sum(sizes) == len(tokenizer.encode("나무 " * 50)) + 1
    assert sorted(sizes)[1:] == [16] * (len(sizes) - 1)


def test_a_window_of_no_length_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_length is 0; use a positive number"):
        list(encode_documents(["a"], tokenizer, 0))


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_text("첫째 줄\n\n둘째 줄\n", encoding="utf-8")
    assert list(read_documents(path)) == ["첫째 줄\n\n둘째 줄\n"]


def test_each_row_of_a_jsonl_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "안녕\\n"}\n\n  \n{"id": 1, "text": "bye"}', encoding="utf-8")
    assert list(read_documents(path)) == ["안녕\n", "bye"]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + (b'{"text": "hi"}' if name == "a.jsonl" else b"hi"))
    assert list(read_documents(path)) == ["hi"]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ('{"text": 1}', 'no "text" string in the row; use {"text": "..."}'),
        ('{"content": "x"}', 'no "text" string in the row; use {"text": "..."}'),
        ('["x"]', 'no "text" string in the row; use {"text": "..."}'),
        ("{'text': 'x'}", "can't be read (Expecting property name"),
        ('{"text": "x"} {"text": "y"}', "can't be read (Extra data"),
        ('{"text": "\\ud800"}', "can't be read ('utf-8' codec can't encode"),
        ("[" * 200_000, "can't be read ("),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(line: str, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n', encoding="utf-8")
    documents = read_documents(path)
    assert next(documents) == "fine"
    with pytest.raises(DataError, match=r"bad\.jsonl:2: ") as caught:
        next(documents)
    assert fact in str(caught.value)
    assert len(caught.value.excerpt) <= 80


@pytest.mark.parametrize("name", ["euc.txt", "euc.jsonl"])
def test_text_that_is_not_utf8_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes("안녕하세요".encode("euc-kr"))
    with pytest.raises(DataError, match=rf"{name}: not UTF-8 text .*; convert it to UTF-8"):
        list(read_documents(path))
