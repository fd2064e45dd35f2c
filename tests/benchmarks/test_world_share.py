"""The small world gets the share that is asked for, and every share a row."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import tuning, world_share
from benchmarks.held_out import GROUPS
from minimind.pretrain.corpus import build_corpus
from minimind.tokenizer import Tokenizer


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    texts = {
        "world.ko.jsonl": [f"고양이 {n}마리가 생선을 {n * n}마리 먹어요." for n in range(60)],
        "world.en.jsonl": [f"{n} cats eat {n * n} fish." for n in range(60)],
        "books.en.jsonl": [f"Chapter {n}: the sea was {n * n} miles wide." for n in range(90)],
    }
    for name, lines in texts.items():
        rows = "".join(json.dumps({"text": text}) + "\n" for text in lines)
        (tmp_path / name).write_text(rows)
    return [str(tmp_path / name) for name in texts]


def test_the_world_has_its_share_and_files_keep_their_sizes_within(
    files: list[str], tokenizer: Tokenizer
) -> None:
    windows, _ = build_corpus(files, tokenizer, 64)
    found = world_share.weights(windows, files, 0.7)
    assert found[0] + found[1] == pytest.approx(0.7, abs=1e-5)
    assert found[2] == pytest.approx(0.3, abs=1e-5)
    inputs, of = windows.column("input_length"), windows.column("file")
    assert found[0] / found[1] == pytest.approx(
        np.sum(inputs[of == 0]) / np.sum(inputs[of == 1]), rel=1e-4
    )
    for wrong in (0, 1):
        with pytest.raises(ValueError, match="shares between 0 and 1"):
            world_share.weights(windows, files, wrong)
    with pytest.raises(ValueError, match=r"files called world\.\* and others"):
        world_share.weights(windows, [*files[:2], "world.books"], 0.5)


@pytest.mark.slow
def test_every_share_is_pretrained_tuned_scored_and_not_done_twice(
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = tuning.SAMPLE[0].read_text(encoding="utf-8").splitlines(True)
    few = tmp_path / "few.jsonl"
    few.write_text("".join(rows[:40]), encoding="utf-8")
    shape = tmp_path / "shape.json"
    base = Path(world_share.minimind.model.pretrained.BASE) / "config.json"
    config = json.loads(base.read_text()) | {"hidden_size": 32, "intermediate_size": 64}
    shape.write_text(json.dumps(config | {"num_hidden_layers": 1}))
    made_up = dict.fromkeys(GROUPS, 0.25)
    monkeypatch.setattr(tuning, "SAMPLE", (few,))
    monkeypatch.setattr(world_share, "ask", lambda *_: made_up)
    arguments = [*files, "--out", str(tmp_path / "shares"), "--shares", "0.4", "0.8"]
    arguments += ["--config", str(shape), "--tokens", "1500", "--tokens-per-step", "300"]
    arguments += ["--max-length", "64", "--val-fraction", "0.3", "--at-once", "2"]
    world_share.main(arguments)
    told = capsys.readouterr().out
    *_, line = told.rstrip().split("\n")
    found = json.loads(line)["shares"]
    assert list(found) == ["0.4", "0.8"]
    for share, result in found.items():
        options = json.loads((tmp_path / "shares" / share / "run.json").read_text())["options"]
        assert sum(options["mix"][:2]) == pytest.approx(float(share), abs=1e-5)
        assert set(result["bits_per_byte"]) == {"world hangul", "world latin", "rest latin"}
        assert all(0 < bits < 10 for bits in result["bits_per_byte"].values())
    assert "| 40% | 1,500 |" in told
    before = (tmp_path / "shares/0.4/metrics.jsonl").stat().st_mtime_ns
    world_share.main(arguments)
    assert capsys.readouterr().out == told
    assert (tmp_path / "shares/0.4/metrics.jsonl").stat().st_mtime_ns == before
