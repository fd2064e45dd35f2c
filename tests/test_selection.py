"""What is selected is what trains, and the same for whoever asks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind.data.conversation import DataError
from minimind.data.dataset import DataOptions
from minimind.data.selection import select_rows


def write(path: Path, prompts: range) -> str:
    rows = [{"instruction": f"question {n}", "output": f"answer {n}"} for n in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_training_and_validation_part_the_rows(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", range(60))
    whole = select_rows([path], tokenizer, DataOptions())
    parted = select_rows([path], tokenizer, DataOptions(), val_fraction=0.3)
    assert (len(whole.training), len(whole.validation)) == (60, 0)
    assert len(parted.training) + len(parted.validation) == 60
    assert 5 < len(parted.validation) < 35
    assert parted.training.hash() != whole.training.hash()


def test_rows_whose_prompts_are_validated_on_are_left_out(tmp_path, tokenizer) -> None:
    path, held = write(tmp_path / "a.jsonl", range(20)), write(tmp_path / "b.jsonl", range(15, 25))
    selection = select_rows([path], tokenizer, DataOptions(), val_data=held)
    assert (len(selection.training), len(selection.validation), selection.removed) == (15, 10, 5)
    assert [source.report.rows for source in selection.sources] == [20, 10]


def test_a_limit_takes_the_first_rows(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", range(20))
    selection = select_rows([path], tokenizer, DataOptions(), limit=7)
    assert selection.training.table["line"].tolist() == list(range(1, 8))


def test_a_validation_file_with_nothing_to_score_is_refused(tmp_path, tokenizer) -> None:
    path = write(tmp_path / "a.jsonl", range(2))
    (tmp_path / "b.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: no row has an answer that can be scored"):
        select_rows([path], tokenizer, DataOptions(), val_data=str(tmp_path / "b.jsonl"))
