"""Read what a model is to be asked, and what is expected of it. Knows no model and no metrics.

    {"messages": [user, assistant]}        user is asked, assistant is expected; so of all shapes
    {"messages": [user, assistant, user]}  all of it is asked, nothing is expected
    {"instruction": ...}, {"prompt": ...}  asked, nothing is expected
    a line of a .txt file                  asked, nothing is expected; empty lines are left out

A row may have a "pattern" beside these: a regular expression that a right answer matches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from minimind.data.conversation import Conversation, Message, parse_conversation
from minimind.data.errors import DataError, excerpt
from minimind.data.reader import Row, read_rows

PATTERN_FLAGS = re.IGNORECASE | re.DOTALL


@dataclass(frozen=True, slots=True)
class Question:
    """A row: what it says, and what a right answer matches, if the row says so."""

    conversation: Conversation
    pattern: str | None = None

    @property
    def asked(self) -> tuple[Message, ...]:
        """What the model is given."""
        messages = self.conversation.messages
        return messages[:-1] if messages[-1].role == "assistant" else messages

    @property
    def expected(self) -> str | None:
        """The answer that the row has."""
        last = self.conversation.messages[-1]
        return last.content if last.role == "assistant" else None


def read_questions(
    paths: Iterable[str],
    *,
    prompt_key: str | None = None,
    answer_key: str | None = None,
    system: str | None = None,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Question]:
    """Read files of rows, or of prompts line by line, in order.

    Args:
        paths: as for `read_conversations`; what ends in .txt has a prompt a line.
        prompt_key: with `answer_key`, two keys that hold the question and the answer.
        answer_key: see `prompt_key`; rows may lack it.
        system: becomes the first message of every row that has no system message.
        on_error: called with each error in a file's content; without it the first is raised.

    Raises:
        DataError: a file, or without `on_error` a row, can't be used.
    """
    for path in paths:
        for row in _prompts(path) if path.endswith(".txt") else read_rows(path):
            try:
                if isinstance(row, DataError):
                    raise row
                conversation = parse_conversation(
                    row.value,
                    prompt_key=prompt_key,
                    answer_key=answer_key,
                    system=system,
                    questions=True,
                    path=path,
                    line=row.line,
                    text=row.text,
                )
                yield _question(conversation, row)
            except DataError as error:
                if on_error is None:
                    raise
                on_error(error)


def _prompts(path: str) -> Iterator[Row | DataError]:
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(
            "unreadable", f"can't be read ({error.strerror})", "check its name", path
        ) from None
    for number, line in enumerate(lines, start=1):
        try:
            if text := line.decode().strip():
                yield Row({"prompt": text}, path, number, text, line)
        except UnicodeDecodeError as error:
            fact = f"byte 0x{line[error.start]:02x} is not UTF-8"
            yield DataError("bad_utf8", fact, "save the file as UTF-8", path, number)


def _question(conversation: Conversation, row: Row) -> Question:
    assert isinstance(row.value, dict)
    question = Question(conversation, row.value.get("pattern"))
    if not question.asked:
        raise DataError(
            "no_question",
            "nothing stands before the answer",
            "begin with what a user says",
            row.path,
            row.line,
            excerpt(row.text),
        )
    if question.pattern is not None:
        try:
            re.compile(question.pattern, PATTERN_FLAGS)
        except (re.error, TypeError) as error:
            raise DataError(
                "bad_pattern",
                f'"pattern" is no regular expression ({error})',
                "mend it, or leave it out",
                row.path,
                row.line,
                excerpt(row.text),
            ) from None
    return question
