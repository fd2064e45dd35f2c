"""Measure one answer, mostly by comparing it with the expected one.

Each metric takes a Case and returns a number, or None where it doesn't apply.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from minimind.data.errors import excerpt
from minimind.data.normal_form import normalize
from minimind.evaluate.patterns import SECONDS, found_in
from minimind.text.ngrams import repeated_share
from minimind.text.scripts import main_script

REPEATED_WORDS = 4  # n of the n-grams that `repetition` counts
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


@dataclass(frozen=True, slots=True)
class Case:
    """A question, its answer, the expected answer, and a pattern that right answers match."""

    question: str
    answer: str
    expected: str | None = None
    pattern: str | None = None


def exact(case: Case) -> float | None:
    """Whether both answers are the same after normalizing white space and Unicode (NFC)."""
    if case.expected is None:
        return None
    return float(_plain(case.answer) == _plain(case.expected))


def contains(case: Case) -> float | None:
    """Whether the answer contains the expected one, ignoring case."""
    if case.expected is None:
        return None
    return float(_plain(case.expected).casefold() in _plain(case.answer).casefold())


def regex(case: Case) -> float | None:
    """Whether the row's "pattern" is found in the answer, ignoring case; 0 after SECONDS."""
    if case.pattern is None:
        return None
    try:
        return float(found_in(case.answer, case.pattern))
    except TimeoutError:
        fact = f'the pattern "{excerpt(case.pattern)}" took more than {SECONDS:g} s on an answer'
        warnings.warn(f"{fact}, which counts as no match; simplify it", stacklevel=2)
        return 0.0


def numeric(case: Case) -> float | None:
    """Whether the answer's last number equals the expected answer's last one (after "####").

    Source: GSM8K (Cobbe et al. 2021, arXiv:2110.14168) for "####" and for taking the last number.
    """
    if case.expected is None:
        return None
    expected = last_number(case.expected.rpartition("####")[2])
    return None if expected is None else float(last_number(case.answer) == expected)


def chrf(case: Case) -> float | None:
    """chrF2 by sacrebleu, from 0 to 1. Source: Popović 2015, W15-3049."""
    if case.expected is None:
        return None
    try:
        from sacrebleu import sentence_chrf
    except ImportError:
        raise ValueError(
            "chrf: sacrebleu isn't installed; pip install 'minimind-sft[evaluate]'"
        ) from None
    return float(sentence_chrf(case.answer, [case.expected]).score) / 100


def repetition(case: Case) -> float:
    """Share of the answer's runs of four words that occurred in it before."""
    return repeated_share(case.answer.split(), REPEATED_WORDS)


def language(case: Case) -> float | None:
    """Whether question and answer are mostly in the same script; None if one has no letters."""
    scripts = main_script(case.question), main_script(case.answer)
    return None if None in scripts else float(scripts[0] == scripts[1])


Metrics = dict[str, Callable[[Case], "float | None"]]
DEFAULT_METRICS: Metrics = {"repetition": repetition, "language": language}
OPTIONAL_METRICS: Metrics = {
    metric.__name__: metric for metric in (exact, contains, regex, numeric, chrf)
}


def last_number(text: str) -> Decimal | None:
    """The last number in a text; commas group digits."""
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


def _plain(text: str) -> str:
    return " ".join(normalize("NFC", text).split())
