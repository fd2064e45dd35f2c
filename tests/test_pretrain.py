"""Pretraining uses the same loop: text in, a Hugging Face folder out, and it can go on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minimind import pretrain
from minimind.model.pretrained import load
from tests.tiny import CONFIG

TEXT = "Once upon a time there was a cat.\n옛날 옛적에 고양이 한 마리가 살았습니다.\n" * 60


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    shape, text = tmp_path / "shape.json", tmp_path / "text.txt"
    shape.write_text(json.dumps(CONFIG.to_hf()))
    text.write_text(TEXT, encoding="utf-8")
    return shape, text


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["pretrain", *(str(argument) for argument in arguments)])
    return pretrain.main()


def test_text_becomes_a_model_that_loads(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, text = files
    out = tmp_path / "run"
    options = ("--config", shape, "--out", out, "--max-length", 32, "--hold-back", 10)
    assert run(monkeypatch, text, *options, "--tokens-per-step", 512, "--epochs", 3) == 0
    model, tokenizer = load(out)
    assert model.config.hidden_size == 32
    assert tokenizer.vocab_size == 8192
    outcome = json.loads((out / "run.json").read_text(encoding="utf-8"))["outcome"]
    assert outcome["finished"] is True
    assert outcome["best_loss"] < outcome["first_loss"]


def test_a_time_limit_leaves_a_checkpoint_that_the_next_call_goes_on_from(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shape, text = files
    out = tmp_path / "run"
    options = ("--config", shape, "--out", out, "--max-length", 32, "--tokens-per-step", 512)
    assert run(monkeypatch, text, *options, "--max-minutes", 0) == 0
    outcome = json.loads((out / "run.json").read_text(encoding="utf-8"))["outcome"]
    assert (outcome["steps"], outcome["finished"]) == (1, False)
    assert run(monkeypatch, text, *options) == 0
    assert "going on from step 1" in capsys.readouterr().out
    outcome = json.loads((out / "run.json").read_text(encoding="utf-8"))["outcome"]
    assert outcome["finished"] is True


def test_a_row_without_text_is_named(
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine"}\n{"body": "no"}\n')
    assert run(monkeypatch, rows, "--out", tmp_path / "run") == 1
    assert 'rows.jsonl:2: no "text" string in the row' in capsys.readouterr().err
