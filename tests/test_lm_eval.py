"""lm-eval reads a saved model, and finds the log-likelihoods that we do."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import minimind
from minimind import Example
from minimind.training.scoring import score
from tests.support.tiny import write_base

ROWS = [
    {"question": "The color of grass is", "choices": ["green", "red"], "answer": 0},
    {"question": "한국의 수도는", "choices": ["부산", "서울"], "answer": 1},
    {"question": "Two plus three is", "choices": ["five", "nine", "seventy-one"], "answer": 0},
    {"question": "고양이는 동물", "choices": ["입니다", "이 아닙니다"], "answer": 0},
]
TASK = """
task: small_world
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.mark.slow
def test_lm_eval_gives_the_log_likelihoods_that_score_gives(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="pip install -e '.[harness]'")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "small_world.yaml").write_text(TASK.format(data=data), encoding="utf-8")
    options = {
        "--model": "hf",
        "--model_args": f"pretrained={model},dtype=float32",
        "--tasks": "small_world",
        "--include_path": str(tmp_path),
        "--output_path": str(tmp_path / "out"),
        "--device": "cpu",
    }
    words = [word for option in options.items() for word in option]
    done = subprocess.run(
        [sys.executable, "-m", "lm_eval", "run", *words, "--log_samples"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (samples,) = (tmp_path / "out").rglob("samples_small_world_*.jsonl")
    lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    assert [line["doc"]["question"] for line in lines] == [row["question"] for row in ROWS]
    for line in lines:
        theirs = [float(choice[0][0]) for choice in line["resps"]]
        ours = log_likelihoods(model, line["doc"]["question"], line["doc"]["choices"])
        assert theirs == pytest.approx(ours, abs=1e-4)


def log_likelihoods(folder: Path, question: str, choices: list[str]) -> list[float]:
    """log p of each choice after the question and a space, as lm-eval cuts them."""
    model, tokenizer = minimind.load(str(folder))
    asked = len(tokenizer.encode(question))
    examples = []
    for choice in choices:
        ids = tokenizer.encode(f"{question} {choice}")
        examples.append(Example(ids, [at >= asked for at in range(len(ids))]))
    found = (-score(model, examples).nats).tolist()
    assert all(math.isfinite(value) and value < 0 for value in found)
    return found
