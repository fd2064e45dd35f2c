"""Each line that a run shows is true of the step that it names."""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from minimind.training import progress as module
from minimind.training.loop import StepResult
from minimind.training.metrics import StepLogger
from minimind.training.progress import Progress
from tests.support.tiny import CONFIG
from tests.test_fit import examples, make_steps, run

LINE = re.compile(r"step (\d+)/(\d+): loss ([\d.]+), lr ([\d.e-]+), [\d,]+ supervised tokens/s")


def result(step: int, loss: float, supervised: int) -> StepResult:
    return StepResult(step, torch.tensor(loss), torch.tensor(1.0), 1e-3, 9, supervised, ())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(
    figures=st.lists(
        st.tuples(st.floats(0, 9), st.integers(1, 500), st.booleans()), min_size=1, max_size=30
    ),
    lag=st.integers(0, 1),
    begun=st.integers(0, 5),
)
def test_a_line_of_a_log_has_the_mean_loss_of_the_tokens_since_the_line_before(
    figures: list[tuple[float, int, bool]], lag: int, begun: int
) -> None:
    log = StepLogger(None, begun, "fp32", lag)
    total = begun + len(figures)
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        with Progress(total, log, show=True) as progress:
            for step, (loss, supervised, due) in enumerate(figures, begun + 1):
                log.add(result(step, loss, supervised), wait=step == total)
                if due:
                    progress.show()
        lines = sys.stderr.getvalue().splitlines()
    finally:
        sys.stderr = before
    shown = [LINE.match(line) for line in lines]
    assert all(shown)
    ends = [int(match[1]) for match in shown if match]
    assert ends == sorted(set(ends))
    assert ends[-1] == total
    for match, start in zip(shown, [begun, *ends], strict=False):
        assert match
        part = figures[start - begun : int(match[1]) - begun]
        mean = sum(loss * count for loss, count, _ in part) / sum(count for _, count, _ in part)
        assert float(match[3]) == pytest.approx(mean, abs=6e-4)


@pytest.mark.parametrize("lag", [0, 1])
def test_a_bar_stands_at_the_step_whose_figures_it_shows(lag: int, monkeypatch) -> None:
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    log = StepLogger(None, 0, "fp32", lag)
    with Progress(9, log, show=True) as progress:
        for step in range(1, 10):
            log.add(result(step, float(step), 7), wait=step in (3, 9))
            progress.update()
            progress.say(f"said after {step - lag if step not in (3, 9) else step}")
    drawn = re.findall(r"(\d+)/9 \[[^\]]*loss ([\d.]+),", shown.getvalue())
    assert {step for step, _ in drawn} >= {"1", "3", "9"}
    # Where two steps' figures came at once, their mean is shown.
    assert all(float(loss) in (int(step), int(step) - 0.5 * lag) for step, loss in drawn)


def test_in_a_log_no_line_shows_a_step_with_the_figures_of_another(
    tmp_path: Path, tokenizer: Tokenizer, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(module, "SECONDS", 0)
    model = Transformer(CONFIG).initialize(0)
    steps = make_steps(examples(12), tokens_per_step=60)
    run(model, tokenizer, steps, "fp32", tmp_path, lambda *_: {"validation_loss": 1.0}, 2)
    printed = capsys.readouterr().err
    assert "%|" not in printed
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    shown = [LINE.match(line) for line in printed.splitlines()]
    of_steps = [match for match in shown if match]
    assert [int(match[1]) for match in of_steps] == list(losses)
    for match in of_steps:
        assert float(match[3]) == pytest.approx(losses[int(match[1])], abs=6e-4)
        assert int(match[2]) == len(steps)
    validations = [
        line for line, match in zip(printed.splitlines(), shown, strict=True) if not match
    ]
    assert validations == [f"step {n}: validation loss 1.0000" for n in (0, len(steps))]


def test_other_processes_show_nothing(capsys) -> None:
    log = StepLogger(None, 0, "fp32")
    with Progress(3, log, show=False) as progress:
        log.add(result(1, 1.0, 1), wait=True)
        progress.update()
        progress.show()
        progress.say("not here")
    assert capsys.readouterr().err == ""
