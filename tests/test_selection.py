"""What is selected is what trains, and the same for whoever asks."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.data.build import DataOptions
from minimind.data.dataset import Dataset
from minimind.data.errors import DataError
from minimind.data.selection import SplitOptions, select_rows
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
