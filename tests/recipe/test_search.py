"""Shapes are compared at equal compute."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.flops import model_flops
from minimind.base.recipe import search
from minimind.base.recipe.search import operations_per_token, shape_of


def main(*arguments: object) -> int:
    try:
        return search.main([str(argument) for argument in arguments])
    except SystemExit as error:  # how tyro ends
        return int(error.code or 0)


@pytest.mark.parametrize("name", ["6x256", "3x384", "12x192", "2x64"])
def test_the_operations_are_those_that_the_benchmarks_count(name: str) -> None:
    shape = shape_of(name, 8192)
    lengths = [3, 100, 512, 17]
    attended = sum(length * (length + 1) / 2 for length in lengths) / sum(lengths)
    found = operations_per_token(shape, attended) * sum(lengths)
    assert found == pytest.approx(model_flops(shape, lengths), rel=1e-12)


def test_a_shape_is_layers_by_width() -> None:
    shape = shape_of("6x256", 8192)
    assert (shape.num_hidden_layers, shape.hidden_size) == (6, 256)
    assert (shape.num_attention_heads, shape.num_key_value_heads) == (4, 2)
    assert shape_of("9x320", 8192).num_key_value_heads == 1  # 5 heads
    for wrong in ("6", "6x250", "x256", "6x0", "small"):
        with pytest.raises(ValueError, match=f"--shapes has {wrong}; write LAYERSxWIDTH"):
            shape_of(wrong, 8192)


@pytest.mark.slow
def test_every_shape_and_rate_gets_a_row_and_nothing_is_done_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"{n} cats eat {n * n} fish." for n in range(150)]
    texts += [f"고양이 {n}마리가 생선을 {n * n}마리 먹어요." for n in range(150)]
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    arguments = [corpus, "--out", tmp_path / "runs", "--shapes", "2x64", "1x64"]
    arguments += ["--learning-rates", "0.01", "--tokens", "2000"]
    arguments += ["--tokens-per-step", "500", "--val-fraction", "0.1"]
    assert main(*arguments) == 0
    told = capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if line.startswith("| ")]
    header, two, one = rows
    assert header[0] == "shape"
    assert [row[0] for row in (two, one)] == ["2x64", "1x64"]
    tokens = [int(row[3].replace(",", "")) for row in (two, one)]
    assert tokens[0] == pytest.approx(2000, rel=0.15)
    expected = operations_per_token(shape_of("2x64", 8192), 8) / operations_per_token(
        shape_of("1x64", 8192), 8
    )
    assert tokens[1] / tokens[0] == pytest.approx(expected, rel=0.2)
    assert all(0 < float(cell) < 20 for row in (two, one) for cell in row[5:])
    before = (tmp_path / "runs" / "2x64-0.01" / "metrics.jsonl").read_bytes()
    assert main(*arguments) == 0
    assert capsys.readouterr().out == told
    assert (tmp_path / "runs" / "2x64-0.01" / "metrics.jsonl").read_bytes() == before
    assert main(*arguments, "--max-length", "100") == 1
    assert "made with other options (asked.json); name another --out" in capsys.readouterr().err


def test_a_run_that_fails_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("text")
    out = tmp_path / "runs"
    assert main(corpus, "--out", out, "--shapes", "1x64", "--max-length", "4096") == 1
    assert "pretraining ended with code 2; see log.txt" in capsys.readouterr().err
    assert "--max-length is 4096" in (out / "1x64-0.0005" / "log.txt").read_text()
    assert main(corpus, "--out", out, "--tokens", "0") == 2
    assert "--tokens is 0; use a positive number" in capsys.readouterr().err
    assert main("--out", out) == 2
    assert "files: none are given; name some" in capsys.readouterr().err
