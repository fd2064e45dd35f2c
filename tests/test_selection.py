"""What is selected is what trains, and the same for whoever asks."""

from __future__ import annotations

import json
import random
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.cli.summary import describe_selection
from minimind.data.build import DataOptions
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.masking import encode_conversation
from minimind.data.selection import Selection, SplitOptions, select_rows
from minimind.data.storage import hash_of


def write(path: Path, prompts: range) -> str:
    rows = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_training_and_validation_part_the_rows(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", range(60))
    whole = select_rows([path], tokenizer, DataOptions(), SplitOptions(val_fraction=0))
    parted = select_rows([path], tokenizer, DataOptions(), SplitOptions(val_fraction=0.3))
    assert (len(whole.training), len(whole.validation)) == (60, 0)
    assert len(parted.training) + len(parted.validation) == 60
    assert 5 < len(parted.validation) < 35
    assert hash_of(parted.training) != hash_of(whole.training)


def test_rows_whose_prompts_are_validated_on_are_left_out(tmp_path, tokenizer) -> None:
    path, held = write(tmp_path / "a.jsonl", range(20)), write(tmp_path / "b.jsonl", range(15, 25))
    selection = select_rows([path], tokenizer, DataOptions(), SplitOptions(val_data=held))
    assert (len(selection.training), len(selection.validation), selection.removed) == (15, 10, 5)
    assert [report.rows for report in selection.reports] == [20, 10]


def test_a_limit_takes_the_first_rows(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", range(20))
    selection = select_rows([path], tokenizer, DataOptions(), SplitOptions(limit=7))
    assert selection.training.column("line").tolist() == list(range(1, 8))


def test_a_validation_file_with_nothing_to_score_is_refused(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", range(2))
    (tmp_path / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: no row has an answer that can be scored"):
        select_rows(
            [path], tokenizer, DataOptions(), SplitOptions(val_data=str(tmp_path / "b.jsonl"))
        )


# No evaluation prompt is trained, however it is written; and what is held back stays the same.


def normalized(prompt: str) -> str:
    """Written once more, plainly: what a prompt says, without how it is written."""
    text = unicodedata.normalize("NFKC", prompt).casefold()
    return "".join(character for character in text if character.isalnum())


def variants_of(number: int) -> list[str]:
    """One question as several people write it."""
    full_width = str(number).translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789"})
    return [
        f"Is {number} a prime number, 소수인가요?",
        f"is {number} a prime number 소수인가요",
        f"  IS {number} A PRIME NUMBER:  소수인가요!! ",
        f"Is {full_width} a prime number, 소수인가요?",
        unicodedata.normalize("NFD", f"Is {number} a prime number, 소수인가요?"),
    ]


def write_prompts(path: Path, prompts: list[str]) -> str:
    rows = [{"prompt": prompt, "completion": f"{n} times"} for n, prompt in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def prompts_of(dataset: Dataset, file: list[str]) -> set[str]:
    return {file[line - 1] for line in dataset.column("line").tolist()}


@pytest.mark.parametrize("held", ["a share", "a file of its own"])
def test_no_evaluation_prompt_is_trained_exact_or_normalized(held, tmp_path, tokenizer) -> None:
    prompts = [prompt for number in range(100, 220) for prompt in variants_of(number)]
    random.Random(0).shuffle(prompts)
    asked = [variants_of(number)[number % 5] for number in range(200, 240)]
    path = write_prompts(tmp_path / "a.jsonl", prompts)
    if held == "a share":
        selection = select_rows([path], tokenizer, DataOptions(), SplitOptions(val_fraction=0.2))
        evaluated = prompts_of(selection.validation, prompts)
    else:
        val_data = write_prompts(tmp_path / "b.jsonl", asked)
        selection = select_rows([path], tokenizer, DataOptions(), SplitOptions(val_data=val_data))
        evaluated = prompts_of(selection.validation, asked)
        assert selection.removed == 5 * 20  # of questions 200 to 219 each variant
    trained = prompts_of(selection.training, prompts)
    assert len(evaluated) >= 40
    assert len(trained) >= 300
    assert not trained & evaluated
    assert not set(map(normalized, trained)) & set(map(normalized, evaluated))


@given(order=st.permutations(range(60)), more=st.integers(0, 30))
@settings(max_examples=20)
def test_the_split_stays_when_rows_are_shuffled_or_appended(
    order, more, tmp_path_factory, tokenizer
) -> None:
    folder = tmp_path_factory.getbasetemp()
    prompts = [f"{number}번 질문" for number in range(60)]

    def held_back(rows: list[str]) -> set[str]:
        path = write_prompts(folder / "split.jsonl", rows)
        selection = select_rows([path], tokenizer, DataOptions(), SplitOptions(val_fraction=0.3))
        held = prompts_of(selection.validation, rows)
        assert held.isdisjoint(prompts_of(selection.training, rows))
        return held

    before = held_back(prompts)
    assert before
    after = held_back([*(prompts[i] for i in order), *(f"new {number}" for number in range(more))])
    assert after & set(prompts) == before


# Several turns: nothing that a validation row asks in all is answered in training.

Turns = tuple[tuple[str, ...], tuple[float, ...]]  # what is asked, and the weight of each answer


@st.composite
def chats(draw: st.DrawFn) -> Turns:
    """A row that may begin or end like many others."""
    asked = draw(st.lists(st.sampled_from(["a", "b", "1 + 2", "1 - 2"]), min_size=1, max_size=3))
    weights = st.sampled_from([1.0, 1.0, 1.0, 0.0])
    return tuple(asked), tuple(draw(weights) for _ in asked)


def write_chats(path: Path, rows: list[Turns]) -> str:
    lines = []
    for asked, weights in rows:
        messages: list[dict[str, Any]] = []
        for text, weight in zip(asked, weights, strict=True):
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": "word " * 9, "weight": weight})
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines))
    return str(path)


def prompts_trained(row: Turns, options: DataOptions, turn: int) -> list[tuple[str, ...]]:
    """Recounted: what each answer that is left and trained is asked; a turn has `turn` tokens."""
    asked, weights = row
    ends = range(1, len(asked) + 1)
    left = [end for end in ends if end * turn <= options.limit]
    if options.train_on == "last":
        left = [end for end in left if end == len(asked)]
    return [asked[:end] for end in left if weights[end - 1]]


OPTIONS = [
    DataOptions(),
    DataOptions(train_on="last"),
    DataOptions(max_length=30),  # one turn or two of these
    DataOptions(max_length=60),
]


def check_sides(
    selection: Selection, rows: list[Turns], evaluated: list[Turns], options: DataOptions, turn: int
) -> None:
    trained = {
        prompt
        for line in selection.training.column("line").tolist()
        for prompt in prompts_trained(rows[line - 1], options, turn)
    }
    for line in selection.validation.column("line").tolist():
        assert prompts_trained(evaluated[line - 1], options, turn)[-1] not in trained


@pytest.fixture(scope="session")
def turn(tokenizer) -> int:
    """Tokens of one of these turns; the letters and sums differ a little, the limits don't."""
    chat = [{"role": "user", "content": "1 + 2"}, {"role": "assistant", "content": "word " * 9}]
    return len(encode_conversation(chat, tokenizer))


@pytest.mark.parametrize("options", OPTIONS)
@given(rows=st.lists(chats(), min_size=5, max_size=60), fraction=st.floats(0.1, 0.9))
@settings(max_examples=25)
def test_no_validation_rows_whole_prompt_is_answered_in_training(
    options, rows, fraction, tmp_path_factory, tokenizer, turn
) -> None:
    path = write_chats(tmp_path_factory.getbasetemp() / "chats.jsonl", rows)
    selection = select_rows([path], tokenizer, options, SplitOptions(val_fraction=fraction))
    check_sides(selection, rows, rows, options, turn)
    kept = [row for row in rows if prompts_trained(row, options, turn)]
    assert len(selection.training) + len(selection.validation) + selection.left_out == len(kept)


@pytest.mark.parametrize("options", OPTIONS)
@given(
    rows=st.lists(chats(), min_size=1, max_size=40),
    held=st.lists(chats(), min_size=1, max_size=4),
    limit=st.none() | st.integers(1, 20),
)
@settings(max_examples=25)
def test_a_training_row_goes_if_it_answers_a_validation_rows_whole_prompt(
    options, rows, held, limit, tmp_path_factory, tokenizer, turn
) -> None:
    folder = tmp_path_factory.getbasetemp()
    path, val_data = write_chats(folder / "a.jsonl", rows), write_chats(folder / "b.jsonl", held)
    whole = {prompts[-1] for row in held if (prompts := prompts_trained(row, options, turn))}
    split = SplitOptions(val_data=val_data, limit=limit)
    if not whole:
        with pytest.raises(DataError, match="no row has an answer that can be scored"):
            select_rows([path], tokenizer, options, split)
        return
    selection = select_rows([path], tokenizer, options, split)
    check_sides(selection, rows, held, options, turn)
    kept = [row for row in rows if prompts_trained(row, options, turn)][:limit]
    stay = [row for row in kept if whole.isdisjoint(prompts_trained(row, options, turn))]
    assert selection.removed == len(kept) - len(selection.training)
    # A row that is cut goes, too, if what is cut is what the validation row asks.
    assert len(selection.training) <= len(stay)
    if options == OPTIONS[0] and all(all(weights) for _, weights in rows):
        assert len(selection.training) == len(stay)


def test_rows_left_out_of_validation_are_told(tmp_path, tokenizer) -> None:
    rows: list[Turns] = [((str(n),), (1.0,)) for n in range(200)]
    rows += [((str(n), "why?"), (1.0, 1.0)) for n in range(200)]
    path = write_chats(tmp_path / "a.jsonl", rows)
    split = SplitOptions(val_fraction=0.3)
    selection = select_rows([path], tokenizer, DataOptions(), split)
    assert 20 < selection.left_out < 70
    told = describe_selection(selection, split, [path], 1024)
    assert (
        f"{selection.left_out} rows left out of validation: training rows answer their prompts"
        in told
    )
    lines = set(
        selection.training.column("line").tolist() + selection.validation.column("line").tolist()
    )
    assert len(lines) == 400 - selection.left_out


# The share


def shares_of(
    tmp_path: Path, tokenizer, rows: list[tuple[str, ...]], fraction: float
) -> tuple[Selection, list[str]]:
    path = write_chats(tmp_path / "share.jsonl", [(row, (1.0,) * len(row)) for row in rows])
    split = SplitOptions(val_fraction=fraction)
    selection = select_rows([path], tokenizer, DataOptions(), split)
    return selection, describe_selection(selection, split, ["share.jsonl"], None)


@pytest.mark.parametrize("fraction", [0.01, 0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("openers", [1, 2, 7, 100])
@pytest.mark.parametrize("later", ["other", "none", "same"])
def test_the_share_holds_or_is_told_with_the_group_that_is_in_the_way(
    fraction, openers, later, tmp_path, tokenizer
) -> None:
    """Whoever opens alike and then asks otherwise is a group of his own; others are told."""
    opened = [f"안녕 {n % openers}" for n in range(600)]
    follow = {"other": lambda n: (f"{n}번은?",), "none": lambda n: (), "same": lambda n: ("왜?",)}
    rows = [(text, *follow[later](n)) for n, text in enumerate(opened)]
    selection, told = shares_of(tmp_path, tokenizer, rows, fraction)
    share = len(selection.validation) / 600
    warnings = [line for line in told if line.startswith("warning:")]
    if later == "other":
        assert fraction / 2 < share < 2 * fraction or fraction * 600 < 30
    if 0 < share < 1 and fraction / 2 <= share <= 2 * fraction:
        assert warnings == []
        return
    (warning,) = warnings
    side = selection.validation if share > fraction else selection.training
    largest = max(Counter(rows[line - 1] for line in side.column("line").tolist()).values())
    assert f"{len(selection.validation)} of 600 rows ({share:.1%}) validate" in warning
    if largest == 1:
        assert "among so few it is chance; --val-data names rows to validate on" in warning
        return
    assert f"--val-fraction is {fraction:g}: rows that ask alike stay together" in warning
    assert f"the largest such group has {largest:,} (from share.jsonl:" in warning


def test_a_small_files_chance_is_told(tmp_path, tokenizer) -> None:
    told = []
    for start in range(40):
        rows = [(f"{start * 100 + n}",) for n in range(40)]
        selection, lines = shares_of(tmp_path, tokenizer, rows, 0.05)
        off = not 1 <= len(selection.validation) <= 4
        assert off == any("among so few it is chance" in line for line in lines)
        told.append(off)
    assert set(told) == {True, False}


def test_a_best_by_one_row_or_by_none_is_told(tmp_path, tokenizer) -> None:
    one = 'one row validates: it alone decides which weights are "best"'
    none = "no row validates: the last weights are kept, whether or not they are the best"
    seen = set()
    for start in range(12):
        rows = [(f"{start * 100 + n}",) for n in range(20)]
        selection, lines = shares_of(tmp_path, tokenizer, rows, 0.05)
        count = len(selection.validation)
        assert (one in lines, none in lines) == (count == 1, count == 0)
        seen.add(min(count, 2))
    assert seen == {0, 1, 2}
    _, lines = shares_of(tmp_path, tokenizer, rows, 0)
    assert none in lines
    assert not any(line.startswith("warning") for line in lines)


def test_a_best_by_one_prompt_is_told(tmp_path, tokenizer) -> None:
    rows = [(text,) for text in ["Hi!", "hi", "HI?"] * 2]
    told = []
    for held in (rows, [*rows, ("bye",)]):
        val_data = write_chats(tmp_path / "held.jsonl", [(row, (1.0,)) for row in held])
        path = write_chats(tmp_path / "a.jsonl", [((str(n),), (1.0,)) for n in range(20)])
        split = SplitOptions(val_data=val_data)
        selection = select_rows([path], tokenizer, DataOptions(), split)
        told.append("\n".join(describe_selection(selection, split, [path], None)))
    assert 'the 6 rows that validate ask alike: one prompt decides which are "best"' in told[0]
    assert "best" not in told[1]
