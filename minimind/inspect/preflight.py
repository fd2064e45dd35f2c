"""Check what a base's tokenizer and the data can break before training.

What can't be checked is reported as "not checked", never as passed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minimind.cli.summary import SPELLED, describe_spelled
from minimind.data.build import DataReport
from minimind.data.calls import dumps
from minimind.data.conversation import Conversation, Message
from minimind.data.errors import printable
from minimind.data.masking import encode_prompt, encode_rows
from minimind.data.rounds import has_reasoning
from minimind.inspect.survey import Survey
from minimind.model.pretrained import save_tokenizer
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.vocabulary import END

MAX_SPELLING = 0.01  # share of answers that spell control tokens: some prose is about them
MOST_UNREAD = 0.01  # share of the messages in which keys with text or booleans may be left
ANSWERS_CHECKED = 8  # of a row, the first ones; of a longer row some more


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found.

    Attributes:
        name: the property checked.
        outcome: its result.
        fact: the evidence, or the first row that breaks it.
        consequence: what training would do to the model then, or "".
    """

    name: str
    outcome: Literal["passed", "failed", "not checked"]
    fact: str
    consequence: str = ""


def check_data(
    found: Survey, report: DataReport, tokenizer: Tokenizer, model_type: str | None = None
) -> Iterator[Check]:
    """Check what a run would train on, and what it would save.

    Args:
        found: the files' rows, looked over.
        report: what became of them.
        tokenizer: the one that is saved with the model.
        model_type: the model's, as it is saved.
    """
    yield _decoding(found)
    if found.not_stored is not None:
        yield _stored(found)
    yield _usable(report)
    yield _keys(report)
    yield _supervision(report)
    yield _spelled(report)
    yield _lengths(report)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(folder, tokenizer)
        yield _stop_tokens(Path(folder), tokenizer)
        if model_type:  # by which transformers chooses how to read a tokenizer
            (Path(folder) / "config.json").write_text(json.dumps({"model_type": model_type}))
        yield _template(folder, found.sample, tokenizer)


def _decoding(found: Survey) -> Check:
    name = "trained ids decode to the assistant's words and end tokens"
    rows = len(found.lengths)
    if found.mismatches:
        fact = f"{found.mismatches:,} of {rows:,} rows don't; {found.first_mismatch}"
        return Check(name, "failed", fact, "the model would learn other text than the data has")
    return Check(name, "passed" if rows else "not checked", f"{rows:,} rows")


def _usable(report: DataReport) -> Check:
    name = "every row can be used"
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.bad.most_common())
    if report.bad:
        return Check(name, "failed", f"bad rows: {kinds}", "what they say is not trained")
    return Check(name, "passed", f"{report.rows:,} rows")


def _keys(report: DataReport) -> Check:
    """Keys of rows are only told: many are numbers, sources and dates."""
    name = "what messages say is read"
    found, unread = report.messages_with_unread_texts, report.unread_texts
    if found > MOST_UNREAD * report.messages:
        keys = [f"{printable(key[:40])} ({count:,})" for key, count in unread.most_common(8)]
        if len(unread) > len(keys):
            keys.append(f"{len(unread) - len(keys):,} more")
        fact = f"not read, with text or booleans in them: {', '.join(keys)}; "
        fact += f"in {found:,} of {report.messages:,} messages"
        consequence = "what they say is not trained; --ignore-keys says that this is meant"
        return Check(name, "failed", fact, consequence)
    return Check(name, "passed", f"{report.messages:,} messages")


def _lengths(report: DataReport) -> Check:
    name = "few rows are too long"
    tokens = report.supervised + report.tokens_lost
    rows_lost, tokens_lost = report.truncated, report.tokens_lost
    fact = f"{rows_lost:,} of {report.rows:,} rows lose {tokens_lost:,} of {tokens:,} supervised "
    fact += "tokens to --max-length"
    if report.loses_much:
        return Check(name, "failed", fact, "the model would not learn what is there")
    return Check(name, "passed", fact)


def _stored(found: Survey) -> Check:
    name = "the arrays that training reads hold these ids and masks"
    if found.not_stored:
        fact = f"{found.not_stored:,} rows are others; delete the cache ($MINIMIND_CACHE)"
        return Check(name, "failed", fact, "training would read other tokens than are shown here")
    return Check(name, "passed", "each file's sum, and each row")


def _supervision(report: DataReport) -> Check:
    name = "answers are left to train on"
    fact = (
        f"{report.kept:,} of {report.rows:,} rows are trained; {report.unsupervised:,} have no "
        f"answer, {report.dropped_long:,} are too long; truncation takes {report.tokens_lost:,} "
        f"supervised tokens from {report.truncated:,} rows"
    )
    if not report.kept:
        return Check(name, "failed", fact, "there is nothing to train")
    return Check(name, "passed", fact)


def _spelled(report: DataReport) -> Check:
    name = f"at most {MAX_SPELLING:.0%} of answers spell the base's tokens"
    if report.spelling > MAX_SPELLING * report.answers:
        return Check(name, "failed", describe_spelled(report), SPELLED)
    fact = describe_spelled(report) if report.spelling else f"none of {report.answers:,}"
    return Check(name, "passed" if report.answers else "not checked", fact)


def _stop_tokens(folder: Path, tokenizer: Tokenizer) -> Check:
    name = "the saved model stops where answers end"
    settings = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    stops, pad = settings["eos_token_id"], settings["pad_token_id"]
    if tokenizer.end_id not in stops:
        fact = f"{END} has id {tokenizer.end_id}, and eos_token_id is {stops}"
        return Check(name, "failed", fact, "other tools would not stop the model after its answer")
    if pad in stops:
        fact = f"pad_token_id {pad} is among the stop tokens {stops}"
        return Check(name, "failed", fact, "other tools would mask the end token when they train")
    return Check(name, "passed", f"eos_token_id {stops}, pad_token_id {pad}")


def _template(folder: str, sample: Sequence[Conversation], tokenizer: Tokenizer) -> Check:
    """Compare a sample's rows and prompts with what transformers makes of them."""
    name = "the saved tokenizer and chat template give the ids and the mask of training"
    # Two differences are on purpose: in transformers, text that spells a control token becomes
    # that token, and white space at the beginning may join the template's newline.
    plain = [
        row
        for row in sample
        if not any(
            text[:1].isspace() or tokenizer.control_tokens_in(text)
            for message in row.messages
            for text in (message.reasoning, message.content, *(c.text for c in message.calls))
        )
        and not tokenizer.control_tokens_in(" ".join(map(dumps, row.tools)))
    ]
    if not plain:
        fact = "each row begins with white space or spells a control token, or there is none"
        return Check(name, "not checked", fact)
    try:
        from transformers import AutoTokenizer
    except ImportError:
        return Check(name, "not checked", "transformers isn't installed")
    try:
        theirs = AutoTokenizer.from_pretrained(folder)
        _through_transformers(
            theirs, plain[0], plain[0].messages
        )  # fails where a package is missing
    except Exception as error:  # whatever transformers raises for a tokenizer
        fact = f"transformers can't use the tokenizer: {error}".splitlines()[0]
        return Check(name, "not checked", fact)
    consequence = "other tools would ask the model in other tokens than it was trained on"
    roles = (tokenizer.bos_id, tokenizer.end_id, tokenizer.pad_id)
    if (other := (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)) != roles:
        fact = f"transformers has the BOS, end and padding {other}, and training {roles}"
        return Check(name, "failed", fact, consequence)
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for row, example in zip(plain, encode_rows(plain, tokenizer), strict=True):
        ids = list(example.input_ids)
        encoded = _through_transformers(
            theirs, row, row.messages, return_assistant_tokens_mask=True
        )
        same = encoded["input_ids"] == ids
        for message in row.messages:
            content = first + tokenizer.encode(message.content)
            same &= theirs(message.content)["input_ids"] == content
        for turn in _some_answers(row.messages):
            before, thinking = row.messages[:turn], has_reasoning(row.messages[turn : turn + 1])
            options = {"enable_thinking": thinking} if tokenizer.framed else {}
            prompt = _through_transformers(
                theirs, row, before, add_generation_prompt=True, **options
            )
            asked = thinking if tokenizer.framed else None
            ours = encode_prompt(before, tokenizer, tools=row.tools, thinking=asked)
            same &= prompt["input_ids"] == ours
            same &= prompt["input_ids"] == ids[: len(prompt["input_ids"])]
        if not same:
            fact = f"{row.path}:{row.line}: transformers gives other ids"
            return Check(name, "failed", fact, consequence)
        if encoded["assistant_masks"] != list(map(int, example.loss_mask)):
            fact = f"{row.path}:{row.line}: transformers gives another mask"
            consequence = "other trainers would learn other tokens of the same rows"
            return Check(name, "failed", fact, consequence)
    return Check(name, "passed", f"{len(plain)} rows and their prompts, by transformers")


def _some_answers(messages: Sequence[Message]) -> list[int]:
    """Where the first answers stand, then each that stands twice as far, and the last.

    Together what is before them is a few times the row; before all of them it is its square.
    """
    turns = [t for t, m in enumerate(messages) if m.role == "assistant" and t and m.weight]
    chosen = turns[:ANSWERS_CHECKED]
    for turn in turns[ANSWERS_CHECKED:]:
        if turn >= 2 * chosen[-1] or turn == turns[-1]:
            chosen.append(turn)
    return chosen


def _through_transformers(
    theirs: Any, row: Conversation, messages: Sequence[Message], **options: bool
) -> dict[str, list[int]]:
    turns = [_as_client(message) for message in messages]
    tools = list(row.tools) or None
    encoded: dict[str, list[int]] = theirs.apply_chat_template(
        turns, tools=tools, return_dict=True, **options
    )
    return encoded


def _as_client(message: Message) -> dict[str, Any]:
    """A message as clients send it, with its weight."""
    turn = {"role": message.role, "content": message.content, "weight": message.weight}
    if message.reasoning:
        turn["reasoning_content"] = message.reasoning
    if message.calls:
        turn["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.calls
        ]
    return turn
