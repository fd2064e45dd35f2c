"""Unicode's forms are those of Python, in time that grows with the text alone."""

from __future__ import annotations

import time
import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minimind.clean.rules import check_conversation
from minimind.data.conversation import Conversation, Message
from minimind.data.errors import one_line
from minimind.data.normal_form import normalize
from minimind.data.prompts import prompt_keys_of
from minimind.evaluate.metrics import OPTIONAL_METRICS, Case
from minimind.text.near_duplicates import _plain

# Marks of several classes, marks that are two; letters that become marks, and other text.
MARKS = "\u0301\u0323\u0327\u0308\u0344\u0f73\u0f71\u0f74\u3099\u302e\u0345\u05b0\u094d"
OTHERS = "\uff9e\uff9f\uff76aé가\u1112\u1161\u11a8 \n\u200d👍\u034f\ufdfa①_漢"
TEXTS = st.lists(
    st.tuples(st.text(st.sampled_from(MARKS + OTHERS), max_size=4), st.integers(1, 90))
).map(lambda parts: "".join(text * times for text, times in parts))


@pytest.mark.parametrize("form", ["NFC", "NFKC"])
@given(text=TEXTS | st.text())
def test_the_form_is_the_one_of_python(form: Literal["NFC", "NFKC"], text: str) -> None:
    assert normalize(form, text) == unicodedata.normalize(form, text)


LENGTH = 120_000
HOSTILE = {
    "two classes of marks": "\u0301\u0323",
    "marks that are two": "\u0f73",
    "letters that become marks": "\uff9e\u0301",
    "spaces": " ",
    "line ends": " \n",
    "commas": "죄송하지만, ",
    "backticks": "`",
}


@pytest.mark.parametrize("unit", HOSTILE.values(), ids=HOSTILE)
def test_no_text_takes_time_that_grows_with_its_square(unit: str) -> None:
    """Ten times what it takes; the square takes minutes."""
    text = ("x" + unit * LENGTH)[:LENGTH]
    conversation = Conversation((Message("user", text), Message("assistant", text)))
    started = time.monotonic()
    check_conversation(conversation)
    prompt_keys_of(conversation)
    one_line(text)
    _plain(text)
    for name in ("exact", "contains", "numeric"):
        OPTIONAL_METRICS[name](Case(text, text, text, None))
    assert time.monotonic() - started < 20


@given(st.text(st.sampled_from("a \n\t\r\u3000"), max_size=30))
def test_lines_are_joined_with_the_space_around_their_ends(text: str) -> None:
    joined = one_line(text)
    assert "\n" not in joined
    assert joined.split() == text.split()
    if "\n" not in text:
        assert joined == text
