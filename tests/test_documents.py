"""Every token of a text is trained exactly once, and bad files say where they are bad."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.errors import DataError
from minimind.data.plain_text import Document, encode_documents, read_documents
from minimind.data.plan import make_steps
from minimind.tokenizer import Tokenizer
from tests.support.strategies import texts
from tests.support.tokenizers_of_bases import write_llama3


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


def test_where_there_is_no_endoftext_the_tokenizers_own_ends_a_document(tmp_path: Path) -> None:
    llama = Tokenizer.load(write_llama3(tmp_path))
    (window,) = encode_documents(["fox"], llama, 100)
    assert llama.decode(window.input_ids) == "<|end_of_text|>fox<|end_of_text|>"


def test_an_empty_document_is_left_out(tokenizer: Tokenizer) -> None:
    assert len(list(encode_documents(["", "a", ""], tokenizer, 10))) == 1


def test_a_step_reads_max_length_tokens_of_each_window(tokenizer: Tokenizer) -> None:
    steps = make_steps(encode_documents(["나무 " * 50], tokenizer, 16), tokens_per_step=16)
    sizes = [length for step in steps for batch in step for length in batch.documents.lengths]
    assert sum(sizes) == len(tokenizer.encode("나무 " * 50)) + 1
    assert sorted(sizes)[1:] == [16] * (len(sizes) - 1)


def test_a_window_of_no_length_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="max_length is 0; use a positive number"):
        list(encode_documents(["a"], tokenizer, 0))


def texts_of(path: Path) -> list[str]:
    return [document.text for document in read_documents(path)]


@pytest.mark.parametrize("zipped", [False, True])
def test_a_text_file_is_one_document(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    data = "첫째 줄\n\n둘째 줄\r\n".encode()
    path.write_bytes(gzip.compress(data) if zipped else data)
    (document,) = read_documents(path)
    assert document == Document("첫째 줄\n\n둘째 줄\n", str(path), 0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_each_row_of_a_jsonl_file_is_one_document(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    data = '{"text": "안녕\\n"}\n\n  \n{"id": 1, "text": "bye"}'.encode()
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert [(d.text, d.line) for d in read_documents(path)] == [("안녕\n", 1), ("bye", 4)]


def test_the_name_given_tells_rows_from_text_and_stands_in_errors(tmp_path: Path) -> None:
    path = tmp_path / "copy"
    path.write_text('{"text": "hi"}\n{}\n')
    documents = read_documents(path, "rows.jsonl")
    assert next(documents) == Document("hi", "rows.jsonl", 1)
    with pytest.raises(DataError, match=r"^rows\.jsonl:2: no .text. string"):
        next(documents)
    assert [d.text for d in read_documents(path, "-")] == ['{"text": "hi"}\n{}\n']


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_byte_order_mark_is_no_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\xef\xbb\xbf" + (b'{"text": "hi"}' if name == "a.jsonl" else b"hi"))
    assert texts_of(path) == ["hi"]


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        ('{"text": 1}', 'no "text" string in the row; use {"text": "..."}'),
        ('{"content": "x"}', 'no "text" string in the row; use {"text": "..."}'),
        ('["x"]', 'no "text" string in the row; use {"text": "..."}'),
        ("{'text': 'x'}", "this is Python, not JSON"),
        ('{"text": "x"} {"text": "y"}', "more text follows the row"),
        ('{"text": "a\\ud800"}', "half a character (a lone surrogate) is at index 1 of the text"),
        ('{"text": "x", "text": "y"}', 'the key "text" appears twice'),
        ("[" * 200_000, "the JSON is nested too deeply"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(line: str, fact: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"text": "fine"}}\n{line}\n', encoding="utf-8")
    documents = read_documents(path)
    assert next(documents).text == "fine"
    with pytest.raises(DataError, match=r"bad\.jsonl:2: ") as caught:
        next(documents)
    assert fact in str(caught.value)
    assert len(caught.value.excerpt) <= 80


@pytest.mark.parametrize("name", ["euc.txt", "euc.jsonl"])
def test_text_that_is_not_utf8_is_refused_by_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"text": "fine"}\n' + '{"text": "안녕하세요"}'.encode("euc-kr"))
    with pytest.raises(DataError, match=rf"{name}:2: byte 0xbe at column 11 is not UTF-8"):
        list(read_documents(path))


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[bytes, str]] = [
        (b" \n\n", "has no text; check that it was written"),
        ("한국어".encode("utf-16"), "is UTF-16 text; write it as text in UTF-8"),
        (gzip.compress(b"text" * 100)[:-9], "the gzip data is damaged"),
    ]
    path = tmp_path / "a.txt"
    for data, fact in cases:
        path.write_bytes(data)
        with pytest.raises(DataError, match=rf"a\.txt: {fact}"):
            list(read_documents(path))
    with pytest.raises(DataError, match=r"b\.txt: there is no such file"):
        list(read_documents(tmp_path / "b.txt"))
    with pytest.raises(DataError, match="is a directory"):
        list(read_documents(tmp_path))
