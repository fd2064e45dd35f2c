"""metrics.jsonl survives what happens to runs."""

from __future__ import annotations

import json
from pathlib import Path

from minimind.training.metrics import StepLogger


def test_metrics_of_steps_that_will_be_done_again_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 2, "loss": 2}\n{"step": 3, "lo')
    with StepLogger(path, 1, "fp32") as log:
        log.write({"step": 2, "loss": 2.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 3}, {"step": 2, "loss": 2.5}]


def test_a_line_cut_short_by_a_crash_is_dropped_and_those_before_it_stay(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for cut_short in ('{"step": 2, "lo', "\0" * 20, "\0\0\0\0\n", '{"a": 1}\n', "[]\n"):
        path.write_text('{"step": 1, "loss": 3}\n' + cut_short)
        with StepLogger(path, 2, "fp32") as log:
            log.write({"step": 3, "loss": 2.5})
        steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
        assert steps == [1, 3]


def test_a_run_that_begins_anew_has_new_metrics(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0, "validation_loss": 3}\n')
    with StepLogger(path, 0, "fp32"):
        pass
    assert path.read_text() == ""


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with StepLogger(None, 3, "fp32") as log:
        log.write({"step": 4})
    assert list(tmp_path.iterdir()) == []


def test_what_a_stopped_run_measured_beside_its_schedule_is_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3}\n{"step": 1, "validation_loss": 2, "stopped": true}\n')
    with StepLogger(path, 1, "fp32"):
        pass
    assert path.read_text() == '{"step": 1, "loss": 3}\n'
