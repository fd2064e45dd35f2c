"""A run that is killed at random times ends as one that was never killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kill


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(tmp_path: Path) -> None:
    trial = kill.kill_runs(tmp_path, kills=1, seed=1)
    assert len(trial.kills) == 1
    assert trial.equal == trial.runs >= 2
    assert max(k.lost_steps for k in trial.kills) <= kill.OPTIONS["save-every"]


@pytest.mark.slow
def test_twenty_kills_at_random_times_change_not_a_bit_of_the_final_weights(tmp_path: Path) -> None:
    """In several epochs, between and within micro-batches, while saving: see benchmarks/kill.py."""
    trial = kill.kill_runs(tmp_path, kills=20, seed=1)
    assert len(trial.kills) == 20
    assert trial.equal == trial.runs > 1
    assert trial.steps > kill.OPTIONS["epochs"]
    moments = {k.moment for k in trial.kills}
    assert "training" in moments
    assert len(moments) > 1
    assert max(k.lost_steps for k in trial.kills) <= kill.OPTIONS["save-every"]


def test_a_run_that_ends_otherwise_is_told_apart(tmp_path: Path) -> None:
    names = (
        "model.safetensors",
        "last/model.safetensors",
        "checkpoints/step-01/tensors.safetensors",
    )
    for folder in ("whole", "same", *(f"other-{index}" for index in range(3))):
        for index, name in enumerate(names):
            file = tmp_path / folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"1" if folder == f"other-{index}" else b"0")
    assert kill._same(tmp_path / "same", tmp_path / "whole")
    for index in range(3):
        assert not kill._same(tmp_path / f"other-{index}", tmp_path / "whole")
