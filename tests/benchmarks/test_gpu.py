"""The script for a machine with a GPU runs to its end wherever it is, whatever fails on the way."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, gpu_parts
from benchmarks.gpu import FAILED, LIVES, SKIPPED, Worker
from minimind.data.padding import shape_of_run
from minimind.training import graphs as module
from minimind.training import loop
from minimind.training.loop import train
from minimind.training.step import forward_backward

SMALL = ["--small", "--device", "cpu"]


def run(
    capsys: pytest.CaptureFixture[str], out: Path, arguments: list[str], code: int = 0
) -> tuple[str, dict[str, dict[str, object]]]:
    """What it prints, and each part's figures."""
    out.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OUT", str(out))
        assert gpu.main([*SMALL, *arguments]) == code
    printed = capsys.readouterr().out
    complete = json.loads((out / "gpu.json").read_text(encoding="utf-8"))["results"]
    last_line = json.loads(printed.splitlines()[-1])
    assert last_line["results"].keys() == complete.keys()
    return printed, complete


def test_some_parts_run_on_a_cpu(capsys, tmp_path) -> None:
    chosen = ["graphed step", "loss curves", "repeated", "ours: *"]
    printed, results = run(capsys, tmp_path / "out", ["--only", *chosen])
    assert list(results) == [*chosen[:3], "ours: tiny, 600"]
    step = results["graphed step"]
    assert step["micro_batches"] == 2
    assert step["loss_difference"] == pytest.approx(0, abs=1e-5)
    assert step["worst_gradient"][0] < step["bf16_worst_gradient"][0]
    assert results["repeated"]["twice"] is results["repeated"]["resumed"] is True
    curves = results["loss curves"]
    assert all(len(curves[name]["losses"]) == 3 for name in ("fp32", "bf16", "fp16"))
    assert results["ours: tiny, 600"]["eager"] == results["ours: tiny, 600"]["batches"] == 3
    assert "| ours | tiny | " in printed
    assert (tmp_path / "out" / "gpu.log").exists()


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs on a CPU: what would be captured is called."""

    def graphed(model, plan, config, state):
        state.shape, state.may_capture = shape_of_run(plan), True
        return train(model, plan, config, state=state)

    monkeypatch.setattr(module.StepGraphs.__init__, "__defaults__", (lambda function: function,))
    monkeypatch.setattr(loop, "why_not_captured", lambda config, state: None)
    monkeypatch.setattr(gpu_parts, "train", graphed)


def test_a_graphed_step_is_compared_with_an_eager_one(graphs) -> None:
    figures = gpu_parts.Same("tiny", torch.device("cpu"), 600).graphed_step()
    assert figures["graphs"]
    assert figures["micro_batches"] == 2
    assert abs(figures["loss_difference"]) < 1e-4
    assert figures["worst_gradient"][0] < 0.01


def test_a_graphed_step_with_wrong_gradients_is_seen(graphs, monkeypatch) -> None:
    def twice(batch, supervised, total, config, state):
        forward_backward(batch, supervised, torch.zeros(()), config, state)
        forward_backward(batch, supervised, total, config, state)

    monkeypatch.setattr(module, "forward_backward", twice)
    figures = gpu_parts.Same("tiny", torch.device("cpu"), 600).graphed_step()
    assert figures["graphs"]
    assert abs(figures["loss_difference"]) < 1e-4
    assert figures["worst_gradient"][0] == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize("same", [True, False])
def test_a_step_that_does_not_repeat_is_seen(graphs, monkeypatch, same) -> None:
    def noisy(*arguments):
        forward_backward(*arguments)
        arguments[2].add_(0.0 if same else 1e-4 * torch.rand(()))

    monkeypatch.setattr(module, "forward_backward", noisy)
    figures = gpu_parts.Same("tiny", torch.device("cpu"), 600).repeated()
    assert (figures["twice"], figures["resumed"]) == (same, same)


@pytest.mark.slow
def test_all_parts_run_on_a_cpu(capsys, tmp_path) -> None:
    if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("there is no C++ compiler here, and PyTorch compiles with it")
    _, results = run(capsys, tmp_path / "out", ["--seconds", "580"])
    assert list(results) == list(gpu_parts.parts(torch.device("cpu"), small=True))
    assert not [name for name, answer in results.items() if FAILED in answer or SKIPPED in answer]
    assert results["ours, compiled: tiny, 600"]["eager"] == 0
    parts = list(results["first command"].values())
    assert min(parts) >= 0


def test_what_fails_is_printed_and_the_rest_goes_on(capsys, tmp_path, monkeypatch) -> None:
    """The child knows its own parts alone: here the parent asks for one that it doesn't know."""
    known = gpu_parts.parts(torch.device("cpu"), small=True)
    some = {"unknown": known["repeated"], "repeated": known["repeated"]}
    monkeypatch.setattr(gpu, "parts", lambda device, small: some)
    printed, results = run(capsys, tmp_path / "out", [], code=1)
    assert results["unknown"][FAILED] == "KeyError: 'unknown'"
    assert results["repeated"]["twice"] is True
    assert "unknown: FAILED: KeyError: 'unknown'" in printed
    assert "Traceback" in (tmp_path / "out" / "gpu.log").read_text(encoding="utf-8")


def test_nothing_begins_when_no_time_is_left(capsys, tmp_path) -> None:
    printed, results = run(capsys, tmp_path / "out", ["--seconds", "0", "--only", "repeated"])
    assert results == {"repeated": {SKIPPED: True}}
    assert "skipped, no time was left: repeated" in printed


@pytest.mark.parametrize(
    ("program", "answer", "lives"),
    [
        (f"input(); print('noise'); print('{{\"a\": 1, \"{LIVES}\": true}}')", {"a": 1}, True),
        (f'input(); print(\'{{"a": 1, "{LIVES}": false}}\')', {"a": 1}, False),
        ("input(); raise SystemExit(7)", {FAILED: "its process ended with 7"}, False),
        ("input(); import time; time.sleep(60)", {FAILED: "it took longer than 2 s"}, False),
    ],
    ids=["answers", "is of no more use", "dies", "hangs"],
)
def test_a_process_may_answer_die_or_hang(tmp_path, program, answer, lives) -> None:
    with (tmp_path / "log").open("w") as log:
        worker = Worker(["-u", "-c", program], log, {})
        assert worker.do("part", 2.0) == answer
        assert worker.lives is lives
        worker.close()


def test_all_parts_are_for_a_gpu_and_have_names_of_their_own() -> None:
    names = list(gpu_parts.parts(torch.device("cuda"), small=False))
    assert names[:2] == ["peak", "graphed step"]
    assert sum(name.startswith("ours: ") for name in names) == 8
    assert sum(name.startswith("ours, compiled: ") for name in names) == len(gpu_parts.GRID)
    assert "MiniMind's loop, 16 padded to 768: 64M, 16 rows" in names


def test_the_list_of_parts(capsys) -> None:
    assert gpu.main([*SMALL, "--list", "--only", "repeated*"]) == 0
    assert capsys.readouterr().out.split("\n") == ["repeated", "repeated, deterministic", ""]
