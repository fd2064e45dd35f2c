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

from minimind.data.build import DataReport
from minimind.data.conversation import Conversation, Message
from minimind.data.masking import encode_prompt, encode_rows
from minimind.inspect.survey import Survey
from minimind.model.pretrained import save_tokenizer
from minimind.tokenizer import Tokenizer
from minimind.tokenizer.vocabulary import END

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


def check_data(found: Survey, report: DataReport, tokenizer: Tokenizer) -> Iterator[Check]:
    """Check what a run would train on, and what it would save.

    Args:
        found: the files' rows, looked over.
        report: what became of them.
        tokenizer: the one that is saved with the model.
    """
    yield _decoding(found)
    if found.not_stored is not None:
        yield _stored(found)
    yield _supervision(report)
    with tempfile.TemporaryDirectory() as folder:
        save_tokenizer(folder, tokenizer)
        yield _stop_tokens(Path(folder), tokenizer)
        yield _template(folder, found.sample, tokenizer)


def _decoding(found: Survey) -> Check:
    name = "trained ids decode to the assistant's words and end tokens"
    rows = len(found.lengths)
    if found.mismatches:
        fact = f"{found.mismatches:,} of {rows:,} rows don't; {found.first_mismatch}"
        return Check(name, "failed", fact, "the model would learn other text than the data has")
    return Check(name, "passed" if rows else "not checked", f"{rows:,} rows")


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
    name = "the saved chat template gives the ids of training"
    # Two differences are on purpose: in transformers, text that spells a control token becomes
    # that token, and white space at the beginning may join the template's newline.
    spelled = [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in tokenizer.control_ids]
    plain = [
        row
        for row in sample
        if not any(
            message.content[:1].isspace() or any(text in message.content for text in spelled)
            for message in row.messages
        )
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
        _transformers_ids(theirs, plain[0].messages)  # fails where transformers lacks a package
    except Exception as error:  # whatever transformers raises for a tokenizer
        fact = f"transformers can't use the tokenizer: {error}".splitlines()[0]
        return Check(name, "not checked", fact)
    for row, example in zip(plain, encode_rows(plain, tokenizer), strict=True):
        ids = list(example.input_ids)
        same = _transformers_ids(theirs, row.messages) == ids
        for turn in _some_answers(row.messages):
            before = row.messages[:turn]
            prompt = _transformers_ids(theirs, before, add_generation_prompt=True)
            same &= prompt == encode_prompt(before, tokenizer) == ids[: len(prompt)]
        if not same:
            fact = f"{row.path}:{row.line}: transformers gives other ids"
            consequence = "other tools would ask the model in other tokens than it was trained on"
            return Check(name, "failed", fact, consequence)
    return Check(name, "passed", f"{len(plain)} rows and their prompts, by transformers")


def _some_answers(messages: Sequence[Message]) -> list[int]:
    """Where the first answers stand, then each that stands twice as far, and the last.

    Together what is before them is a few times the row; before all of them it is its square.
    """
    turns = [turn for turn, m in enumerate(messages) if m.role == "assistant" and turn]
    chosen = turns[:ANSWERS_CHECKED]
    for turn in turns[ANSWERS_CHECKED:]:
        if turn >= 2 * chosen[-1] or turn == turns[-1]:
            chosen.append(turn)
    return chosen


def _transformers_ids(theirs: Any, messages: Sequence[Message], **options: bool) -> list[int]:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    ids: list[int] = theirs.apply_chat_template(turns, return_dict=True, **options)["input_ids"]
    return ids
