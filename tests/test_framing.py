"""A run is framed or not, once, for all of its rows; conversations become the rows they need."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minimind.cli.summary import describe_rows
from minimind.data.build import DataOptions, build_dataset
from minimind.data.conversation import parse_conversation
from minimind.data.errors import DataError
from minimind.data.masking import encode_prompt, encode_rows
from minimind.data.rounds import split_rounds
from minimind.data.selection import SplitOptions, select_rows
from minimind.data.storage import read_prompts
from minimind.inspect.__main__ import main as inspect
from minimind.model.grow import grow
from minimind.model.pretrained import load, load_tokenizer, save, save_tokenizer
from minimind.model.transformer import Transformer
from minimind.sft.__main__ import main as sft
from minimind.tokenizer import Tokenizer
from tests.support.tiny import CONFIG, write_base
from tests.support.tokenizers_of_bases import write_llama2_json, write_llama3

Row = dict[str, Any]


def chat(*turns: str, thoughts: tuple[str, ...] = ()) -> Row:
    """A user and an assistant in turn; a thought for each answer."""
    messages = [
        {"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(turns)
    ]
    for at, thought in enumerate(thoughts):
        messages[2 * at + 1]["reasoning"] = thought
    return {"messages": messages}


PLAIN = chat("1+1?", "2.")
THOUGHT = chat("2+2?", "4.", thoughts=("Add.",))
TWICE = chat("3?", "3.", "4?", "4.", "5?", "5.", thoughts=("a", "", "c"))
CALL = {
    "messages": [
        {"role": "user", "content": "A?"},
        {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}]},
    ],
    "tools": [{"name": "f"}],
}


def write(path: Path, *rows: Row) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def built(path: str, tokenizer: Tokenizer, **options: Any) -> Any:
    return build_dataset([path], tokenizer, DataOptions(**options))


@pytest.mark.parametrize("thinking", ["auto", "on", "off"])
def test_rows_without_reasoning_are_framed_only_if_asked(
    thinking: Any, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    dataset, report, _ = built(write(tmp_path / "a", PLAIN), tokenizer, thinking=thinking)
    framed = thinking == "on"
    assert report.framed is framed
    (expected,) = encode_rows([parse_conversation(PLAIN)], tokenizer, framed=framed)
    assert dataset[0] == expected
    assert ("<think>" in tokenizer.decode(dataset[0].input_ids)) is framed


def test_one_row_with_reasoning_frames_all_of_them_wherever_it_stands(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    for rows in ([THOUGHT, *[PLAIN] * 600], [*[PLAIN] * 600, THOUGHT]):
        path = write(tmp_path / "a", *rows)
        dataset, report, folder = built(path, tokenizer)
        assert report.framed
        assert (report.finals, report.reasoned, report.thinking) == (601, 1, False)
        expected = encode_rows(map(parse_conversation, rows), tokenizer, framed=True)
        assert list(dataset) == list(expected)
        again, cached, same = built(path, tokenizer)
        assert (same, cached) == (folder, report)
        assert list(again) == list(dataset)
    assert describe_rows(report, tmp_path)[1].startswith(
        "framed: each answer has a <think> block; 1 of 601 last answers have reasoning, so prompts "
        "ask for none unless they say otherwise"
    )


def test_a_base_whose_template_holds_the_tag_frames_its_runs(tmp_path: Path) -> None:
    base = Tokenizer.load(write_base(tmp_path / "base"))
    assert not base.framed
    save_tokenizer(tmp_path / "base", base.with_framing(True, True))
    framed = Tokenizer.load(tmp_path / "base")
    assert (framed.framed, framed.thinking) == (True, True)
    path = write(tmp_path / "a", PLAIN)
    assert built(path, framed)[1].framed
    assert not built(path, framed, thinking="off")[1].framed
    chosen = select_rows([path], framed, DataOptions(), SplitOptions(val_fraction=0)).tokenizer
    assert (chosen.framed, chosen.thinking) == (True, False)  # as these rows were trained


def test_off_with_reasoning_in_the_rows_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write(tmp_path / "a", PLAIN, THOUGHT)
    match = r"a:2: the row has reasoning, and --thinking is off; use --thinking auto"
    with pytest.raises(DataError, match=match):
        built(path, tokenizer, thinking="off")
    _, report, _ = built(path, tokenizer, thinking="off", on_bad_row="skip")
    assert (report.rows, dict(report.bad), report.framed) == (1, {"not_framed": 1}, False)


def test_a_conversation_that_reasons_twice_becomes_rows_that_share_its_key(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    path = write(tmp_path / "a", PLAIN, TWICE)
    dataset, report, folder = built(path, tokenizer)
    parts = split_rounds(parse_conversation(TWICE))
    assert [len(part.messages) for part in parts] == [2, 6]
    expected = encode_rows([parse_conversation(PLAIN), *parts], tokenizer, framed=True)
    assert list(dataset) == list(expected)
    assert (report.rows, report.kept, report.split, report.parts) == (2, 3, 1, 2)
    assert (report.answers, report.messages) == (4, 8)
    lines = describe_rows(report, tmp_path)
    assert "split: 1 conversations with reasoning in several turns became 2 rows" in lines
    keys = dataset.column("key").tolist()
    assert keys[1] == keys[2] != keys[0]
    assert dataset.column("line").tolist() == [1, 2, 2]
    whole, _, _ = built(write(tmp_path / "b", chat("3?", "3.", "4?", "4.", "5?", "5.")), tokenizer)
    assert whole.column("key").tolist() == keys[2:]
    listed = read_prompts(folder)
    assert listed["row"].tolist() == [1, 2, 2]  # what each trained answer answers
    assert listed["key"].tolist()[-1] == keys[2]
    last, report, _ = built(path, tokenizer, train_on="last")
    assert (len(last), report.split) == (2, 0)
    assert last[1] == encode_rows(parts[1:], tokenizer, train_on="last", framed=True)[0]


def test_training_and_validation_have_one_frame_and_the_default_of_training(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    plain, thought = write(tmp_path / "a", PLAIN), write(tmp_path / "b", THOUGHT)
    for files, held, thinking in ((plain, thought, False), (thought, plain, True)):
        split = SplitOptions(val_data=held)
        found = select_rows([files], tokenizer, DataOptions(), split)
        assert (found.tokenizer.framed, found.tokenizer.thinking) == (True, thinking)
        for part in (found.training, found.validation):
            assert "<think>" in tokenizer.decode(part[0].input_ids)


def test_a_base_gets_the_tags_that_its_rows_use_and_serves_them(tmp_path: Path) -> None:
    base = Tokenizer.load(write_llama3(tmp_path / "base"))
    plain, call = write(tmp_path / "a", PLAIN), write(tmp_path / "b", CALL)
    split = SplitOptions(val_fraction=0)
    assert select_rows([plain], base, DataOptions(), split).tokenizer.added_chatml == (
        base.added_chatml
    )
    found = select_rows([call], base, DataOptions(), split)
    assert found.reports[0].tags == ["<tool_call>", "</tool_call>"]
    assert found.tokenizer.encode_control("<tool_call>") in found.training[0].input_ids
    assert "added to the base, since rows need them: <tool_call> </tool_call>" in describe_rows(
        found.reports[0], tmp_path
    )
    again = select_rows([call], base, DataOptions(), split)  # from the cache
    assert again.tokenizer.fingerprint == found.tokenizer.fingerprint
    assert again.folders == found.folders


def test_a_model_grows_with_the_tags_and_is_saved_with_them(tmp_path: Path) -> None:
    base = Tokenizer.load(write_llama2_json(tmp_path / "base"))
    grown = base.with_tags(["<tool_call>", "</tool_call>"])
    small = Transformer(replace(CONFIG, vocab_size=base.vocab_size)).initialize(1)
    model = grow(small, grown)
    assert model.config.vocab_size == grown.vocab_size == base.vocab_size + 2
    assert grow(model, grown) is model
    rows = model.state_dict()["model.embed_tokens.weight"]
    assert rows[-1].allclose(rows[:-2].mean(0))
    save(tmp_path / "saved", model, grown)
    loaded, tokenizer = load(tmp_path / "saved")
    assert tokenizer.fingerprint == grown.fingerprint
    assert loaded.config.vocab_size == tokenizer.vocab_size


def test_a_run_is_saved_in_its_frame_and_served_in_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = write_base(tmp_path / "base")
    rows = write(tmp_path / "a.jsonl", *[THOUGHT] * 3, PLAIN, TWICE)
    options = ["--model", str(base), "--max-steps", "1", "--val-fraction", "0"]
    out = tmp_path / "run"
    assert sft([rows, *options, "--out", str(out), "--device", "cpu"]) == 0
    assert "framed: each answer has a <think> block; 4 of 5 last answers" in capsys.readouterr().out
    served = load_tokenizer(out)
    assert (served.framed, served.thinking) == (True, True)
    prompt = encode_prompt([{"role": "user", "content": "2+2?"}], served)
    (row,) = encode_rows([parse_conversation(THOUGHT)], served)
    assert prompt == row.input_ids[: row.loss_mask.index(True)]
    assert inspect([rows, "--model", str(base), "--check"]) == 0
    assert sft([rows, *options, "--dry-run", "--thinking", "off"]) == 3
