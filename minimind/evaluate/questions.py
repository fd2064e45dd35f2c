"""Read rows as prompts for a model, each with the expected answer if the row has one.

    {"messages": [user, assistant]}        user is the prompt, assistant is expected (any row shape)
    {"messages": [user, assistant, user]}  all of it is the prompt, nothing is expected
    {"instruction": ...}, {"prompt": ...}  the prompt, nothing is expected
    a line of a .txt file                  the prompt, nothing is expected; empty lines are skipped

A row may also have a "pattern": a regular expression that a right answer matches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from minimind.data.conversation import Conversation, Message, parse_conversation
from minimind.data.errors import DataError, excerpt
from minimind.data.formats import refuse_foreign
from minimind.data.reader import BOM, Row, decode_utf8, open_bytes, read_rows
from minimind.data.row_options import RowOptions
from minimind.evaluate.patterns import why_no_pattern


@dataclass(frozen=True, slots=True)
class Question:
    """A row, and the pattern that a right answer matches, if the row has one."""

    conversation: Conversation
    pattern: str | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages that a model answers."""
        messages = self.conversation.messages
        return messages[:-1] if messages[-1].role == "assistant" else messages

    @property
    def expected(self) -> str | None:
        """The row's own answer; None also where it is calls alone."""
        last = self.conversation.messages[-1]
        says = last.role == "assistant" and (last.content or not last.calls)
        return last.content if says else None


def read_questions(
    paths: Iterable[str],
    options: RowOptions | None = None,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Question]:
    """Read files of rows, or .txt files with a prompt per line, in order.

    Without `on_error` the first error is raised; `options.on_bad_row` isn't used here.
    """
    options = options or RowOptions()
    for path in paths:
        for row in _prompts(path) if path.endswith(".txt") else read_rows(path):
            try:
                if isinstance(row, DataError):
                    raise row
                conversation = parse_conversation(
                    row.value,
                    prompt_key=options.prompt_key,
                    answer_key=options.answer_key,
                    system=options.system,
                    questions=True,
                    ignore_keys=options.ignore_keys,
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
    with open_bytes(path) as stream:
        data = stream.read().removeprefix(BOM)
    refuse_foreign(data, path, "text")
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            if text := decode_utf8(line, number, path).strip():
                yield Row({"prompt": text}, path, number, text, line)
        except DataError as error:
            yield error


def _question(conversation: Conversation, row: Row) -> Question:
    pattern = row.value.get("pattern") if isinstance(row.value, dict) else None
    left = tuple(key for key in conversation.unread if key[:2] != ("pattern", False))
    question = Question(replace(conversation, unread=left), pattern)
    place = row.path, row.line, excerpt(row.text)
    if not question.prompt:
        fact = "no message is before the answer"
        raise DataError("no_question", fact, "begin with a user's message", *place)
    if question.pattern is not None and (why := why_no_pattern(question.pattern)):
        fact = f'"pattern" is no regular expression ({why})'
        raise DataError("bad_pattern", fact, "fix it, or leave it out", *place)
    return question
