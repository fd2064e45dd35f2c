"""What is asked and what is expected, from rows of every shape and from lines of text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from minimind.data.errors import DataError
from minimind.data.row_options import RowOptions
from minimind.evaluate.questions import Question, read_questions


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def asked(question: Question) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in question.prompt]


def test_the_last_answer_is_expected_and_all_before_it_asked(tmp_path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (question,) = read_questions([write(tmp_path / "a.jsonl", row)])
    assert asked(question) == turns[:3]
    assert question.expected == "d"


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "안녕?"}]},
        {"instruction": "안녕?"},
        {"prompt": "안녕?"},
        {"prompt": [{"role": "user", "content": "안녕?"}]},
        {"q": "안녕?"},
    ],
)
def test_rows_may_only_ask(tmp_path, row) -> None:
    path = write(tmp_path / "a.jsonl", row)
    (question,) = read_questions([path], RowOptions(prompt_key="q", answer_key="a"))
    assert asked(question) == [("user", "안녕?")]
    assert question.expected is None


def test_a_question_after_answers_is_asked_with_all_of_them(tmp_path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    (question,) = read_questions([write(tmp_path / "a.jsonl", row)])
    assert asked(question) == turns
    assert question.expected is None


def test_a_text_file_has_a_prompt_a_line(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff안녕?\r\n\r\n  What is {this}?\n".encode())
    questions = list(read_questions([str(path)], RowOptions(system="짧게.")))
    assert [asked(question)[1:] for question in questions] == [
        [("user", "안녕?")],
        [("user", "What is {this}?")],
    ]
    assert {asked(question)[0] for question in questions} == {("system", "짧게.")}
    assert [question.conversation.line for question in questions] == [1, 3]


def test_a_pattern_goes_with_its_row(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a", "pattern": "서울|Seoul"})
    assert next(read_questions([path])).pattern == "서울|Seoul"


@pytest.mark.parametrize("pattern", ["(", 3, ["a"]])
def test_a_pattern_that_is_none_is_refused_with_its_place(tmp_path, pattern) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a"}, {"prompt": "b", "pattern": pattern})
    with pytest.raises(DataError, match=r'a\.jsonl:2: "pattern" is no regular expression'):
        list(read_questions([path]))


def test_an_answer_to_nothing_is_refused(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", {"messages": [{"role": "assistant", "content": "Hi"}]})
    with pytest.raises(DataError, match=r"a\.jsonl:1: no message is before the answer"):
        list(read_questions([path]))


def test_a_text_file_that_is_missing_or_not_text_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"no\.txt: there is no such file"):
        list(read_questions([str(tmp_path / "no.txt")]))
    (tmp_path / "cp949.txt").write_bytes("가\n".encode() + "나".encode("cp949"))
    with pytest.raises(DataError, match=r"cp949\.txt:2: byte 0xb3 at column 1 is not"):
        list(read_questions([str(tmp_path / "cp949.txt")]))


def test_a_text_file_may_be_gzipped_and_utf16_is_named(tmp_path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes(gzip.compress("안녕?\n".encode()))
    (question,) = read_questions([str(path)])
    assert asked(question) == [("user", "안녕?")]
    path.write_bytes("안녕?\n".encode("utf-16"))
    with pytest.raises(DataError, match=r"prompts\.txt: is UTF-16 text; write it as text in UTF-8"):
        list(read_questions([str(path)]))


def test_bad_rows_can_be_passed_over(tmp_path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "a"}, {"other": 1}, {"prompt": "c"})
    errors: list[DataError] = []
    questions = list(read_questions([path], on_error=errors.append))
    assert [question.prompt[0].content for question in questions] == ["a", "c"]
    assert [error.line for error in errors] == [2]
