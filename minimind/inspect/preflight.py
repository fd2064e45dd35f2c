"""Check data and tokenizer before training: what would go wrong without a word otherwise.

Rows are checked as they will train, the way round that training goes not: decoded ids are held
against the conversation's words. What can't be checked is said, and never passed.
"""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from minimind.data.build import DataOptions, DataReport
from minimind.data.chatml import END
from minimind.data.conversation import Conversation, Message
from minimind.data.dataset import Dataset, Example
from minimind.data.masking import encode_prompt, encode_rows, truncate
from minimind.inspect.survey import Survey
from minimind.model.pretrained import save_tokenizer
from minimind.tokenizer import Tokenizer

Outcome = Literal["passed", "failed", "not checked"]

SAMPLE_ROWS = 100_000  # at most; more rows are sampled
BLOCK_ROWS = 512
TABLE_ROWS = 2**20


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found.

    Attributes:
        name: what ought to hold.
        outcome: whether it does.
        fact: what was looked at, or the first place where it doesn't hold.
        consequence: what training would do to the model then, or "".
    """

    name: str
    outcome: Outcome
    fact: str
    consequence: str = ""


# Each says what is wrong with a row, or None.
RowCheck = Callable[[Conversation, Example, Tokenizer, DataOptions], "str | None"]


def check_data(
    conversations: Iterable[Conversation],
    rows: int,
    dataset: Dataset,
    report: DataReport,
    survey: Survey,
    tokenizer: Tokenizer,
    options: DataOptions,
) -> Iterator[Check]:
    """Check what a run would train on.

    Args:
        conversations: the files' rows.
        rows: how many these are; of more than SAMPLE_ROWS a seeded sample is checked.
        dataset: what was made of them.
        report: what it says became of the rows.
        survey: an independent count.
        tokenizer: the one that is saved with the model.
        options: how rows become Examples.

    Source: the acceptance tests 1, 2, 8, 6, 19 and 15 of this project, in this order.
    """
    yield from _check_rows(conversations, rows, tokenizer, options)
    yield _supervision(dataset, report)
    yield _truncation(report, survey)
    yield _stop_configuration(tokenizer)
    yield _template(survey, tokenizer)


def only_the_assistant_is_trained(
    conversation: Conversation, example: Example, tokenizer: Tokenizer, options: DataOptions
) -> str | None:
    """Whether the trained ids spell the assistant's words and end tokens, and nothing else."""
    ids = [id for id, trained in zip(example.input_ids, example.loss_mask, strict=True) if trained]
    expected = "".join(message.content + END for message in _trained(conversation, options))
    found = b"".join(map(tokenizer.token_bytes, ids)).decode("utf-8", "replace")
    if found == expected:
        return None
    return f"trained is {found[:80]!r} where the assistant says {expected[:80]!r}"


def each_answer_trains_its_end(
    conversation: Conversation, example: Example, tokenizer: Tokenizer, options: DataOptions
) -> str | None:
    """Whether each trained answer has exactly one trained end token."""
    pairs = zip(example.input_ids, example.loss_mask, strict=True)
    ends = sum(id == tokenizer.end_id for id, trained in pairs if trained)
    answers = len(_trained(conversation, options))
    return None if ends == answers else f"{answers} trained answers have {ends} trained end tokens"


def the_prompt_is_the_rows_beginning(
    conversation: Conversation, example: Example, tokenizer: Tokenizer, options: DataOptions
) -> str | None:
    """Whether a chat's prompt is, id for id, what training has before each answer."""
    ids = list(example.input_ids)
    if tokenizer.bos_id is not None and ids.count(tokenizer.bos_id) > 1:
        return f"the row has {ids.count(tokenizer.bos_id)} tokens that begin a text"
    for turn, message in enumerate(conversation.messages):
        if message.role == "assistant" and turn:
            prompt = encode_prompt(conversation.messages[:turn], tokenizer)
            if prompt != ids[: len(prompt)]:
                return f"the prompt before message {turn + 1} has other ids than the row"
    return None


def a_cut_row_is_a_rows_beginning(
    conversation: Conversation, example: Example, tokenizer: Tokenizer, options: DataOptions
) -> str | None:
    """Whether truncation only takes away: no end token is invented for what was cut."""
    cut = truncate(example, options.max_length, tokenizer, options.truncation)
    if len(cut) > options.max_length:
        return f"{len(cut)} tokens are left, more than --max-length {options.max_length}"
    same = list(cut.input_ids) == list(example.input_ids[: len(cut)])
    return None if same else "what is left of it isn't how it begins"


ROW_CHECKS: tuple[tuple[str, RowCheck, str], ...] = (
    (
        "only the assistant's words are trained",
        only_the_assistant_is_trained,
        "the model would learn to speak as the user, or not what the data says",
    ),
    (
        "each answer trains its end token, once",
        each_answer_trains_its_end,
        "the model would not stop after its answer",
    ),
    (
        "a chat's prompt is what training has before an answer",
        the_prompt_is_the_rows_beginning,
        "the model would be asked in other tokens than it was trained on, and answer worse",
    ),
    (
        "truncation only takes tokens away",
        a_cut_row_is_a_rows_beginning,
        "the model would learn to stop in the middle of a sentence",
    ),
)


def _check_rows(
    conversations: Iterable[Conversation], rows: int, tokenizer: Tokenizer, options: DataOptions
) -> Iterator[Check]:
    failures: dict[str, str] = {}
    checked = 0
    source = _sample(conversations, rows)
    while block := list(islice(source, BLOCK_ROWS)):
        checked += len(block)
        examples = encode_rows(block, tokenizer, train_on=options.train_on)
        for conversation, example in zip(block, examples, strict=True):
            for name, check, _ in ROW_CHECKS:
                if name not in failures and (
                    fact := check(conversation, example, tokenizer, options)
                ):
                    failures[name] = f"{conversation.path}:{conversation.line}: {fact}"
    looked = f"{checked:,} rows" + (f", drawn from {rows:,}" if checked < rows else "")
    for name, _, consequence in ROW_CHECKS:
        if name in failures:
            yield Check(name, "failed", failures[name], consequence)
        else:
            yield Check(name, "passed" if checked else "not checked", looked)


def _sample(conversations: Iterable[Conversation], rows: int) -> Iterator[Conversation]:
    if rows <= SAMPLE_ROWS:
        return iter(conversations)
    chosen = set(random.Random(0).sample(range(rows), SAMPLE_ROWS))
    return (row for index, row in enumerate(conversations) if index in chosen)


def _trained(conversation: Conversation, options: DataOptions) -> list[Message]:
    """The assistant's messages that are trained."""
    answers = [message for message in conversation.messages if message.role == "assistant"]
    if options.train_on == "last":
        answers = answers[-1:]
    return [message for message in answers if message.weight]


def _supervision(dataset: Dataset, report: DataReport) -> Check:
    name = "every row has something to train on"
    consequence = "such rows would train nothing, or turn the loss into NaN"
    if not len(dataset):
        fact = f"none of {report.rows:,} rows has an answer that fits --max-length"
        return Check(name, "failed", fact, "there is nothing to train")
    blocks = (slice(first, first + TABLE_ROWS) for first in range(0, len(dataset), TABLE_ROWS))
    empty = sum(int((dataset.table.take("supervised", block) == 0).sum()) for block in blocks)
    if empty:
        return Check(name, "failed", f"{empty:,} rows have nothing to train on", consequence)
    dropped = report.unsupervised + report.dropped_long
    return Check(name, "passed", f"{len(dataset):,} rows; {dropped:,} without were left out")


def _truncation(report: DataReport, survey: Survey) -> Check:
    name = "truncation is reported in full"
    both = [
        (counts.truncated, counts.dropped_long, counts.tokens_lost, counts.unsupervised)
        for counts in (report, survey)
    ]
    if both[0] != both[1]:
        fact = "rows cut, dropped, tokens lost, rows without an answer: "
        fact += f"{both[0]} reported, {both[1]} counted again"
        return Check(name, "failed", fact, "data would be lost without a word")
    return Check(
        name,
        "passed",
        f"{report.truncated:,} rows lose {report.tokens_lost:,} supervised tokens, "
        f"{report.dropped_long:,} of them all",
    )


def _stop_configuration(tokenizer: Tokenizer) -> Check:
    name = "the saved model stops where answers end"
    consequence = "other tools would let the model talk on after its answer"
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(folder, tokenizer)
        text = (Path(folder) / "generation_config.json").read_text(encoding="utf-8")
    settings = json.loads(text)
    eos = settings.get("eos_token_id")
    stops = eos if isinstance(eos, list) else [eos]
    if tokenizer.end_id not in stops:
        fact = f"{END} has id {tokenizer.end_id}, and eos_token_id is {eos}"
        return Check(name, "failed", fact, consequence)
    if settings.get("pad_token_id") in stops:
        fact = f"pad_token_id {settings['pad_token_id']} is among the stop tokens {stops}"
        return Check(name, "failed", fact, "other tools would mask the end token when they train")
    return Check(name, "passed", f"eos_token_id {eos}, pad_token_id {settings.get('pad_token_id')}")


def _template(survey: Survey, tokenizer: Tokenizer) -> Check:
    name = "the saved chat template gives the ids of training"
    consequence = "other tools would ask the model in other tokens than it was trained on"
    # What spells a control token becomes one in transformers, and never here; and white space at
    # the beginning may join the template's newline there. Both are on purpose.
    spelled = [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in tokenizer.control_ids]
    plain = [
        row
        for row in survey.drawn
        if not any(
            message.content[:1].isspace() or any(text in message.content for text in spelled)
            for message in row.messages
        )
    ]
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(folder, tokenizer)
        render = _transformers_template(folder)
        if isinstance(render, str):
            return Check(name, "not checked", render)
        for conversation in plain:
            (example,) = encode_rows([conversation], tokenizer)
            try:
                theirs = render(conversation)
            except ImportError as error:
                return Check(name, "not checked", f"transformers lacks a package: {error}")
            if theirs != list(example.input_ids):
                fact = f"{conversation.path}:{conversation.line}: transformers gives other ids"
                return Check(name, "failed", fact, consequence)
    if not plain:
        return Check(name, "not checked", "no row is free of what transformers reads otherwise")
    return Check(name, "passed", f"{len(plain)} rows, by transformers")


def _transformers_template(folder: str) -> Callable[[Conversation], list[int]] | str:
    """What renders a conversation as transformers does, or why nothing can."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return "transformers isn't installed"
    try:
        theirs = AutoTokenizer.from_pretrained(folder)
    except Exception as error:
        return f"transformers can't open the tokenizer: {error}".splitlines()[0]
    return partial(_render, theirs)


def _render(theirs: Any, conversation: Conversation) -> list[int]:
    messages = [{"role": m.role, "content": m.content} for m in conversation.messages]
    ids: list[int] = theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    return ids
