"""What `benchmarks.held_out` and `benchmarks.starts` count and draw, from answers made up here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import held_out, starts, tuning
from benchmarks.held_out import GREEDY, GROUPS, Asked, ask, describe, read_prompts
from minimind.data.conversation import parse_conversation
from minimind.evaluate.metrics import Case, language, regex
from minimind.evaluate.questions import Question
from minimind.sampler import SampleConfig
from minimind.tokenizer import Tokenizer
from tests.support.scripted import Scripted
from tests.support.tiny import write_base


def prompt(text: str, pattern: str, group: str, intent: str) -> Asked:
    conversation = parse_conversation({"messages": [{"role": "user", "content": text}]}, **ASKING)
    return Asked(Question(conversation, pattern), group, intent)


ASKING = {"questions": True}
PROMPTS = [
    prompt("Sky?", "blue", "en paraphrase", "sky"),
    prompt("Color of the sky?", "blue|azure", "en paraphrase", "sky"),
    prompt("Capital of Korea?", "Seoul", "en fact", "capital Korea"),
    prompt("하늘 색은?", "파란", "ko paraphrase", "sky"),
    prompt("한국의 수도는?", "서울", "ko fact", "capital Korea"),
]


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_out, "ROWS", 1)  # a scripted model answers one prompt


@pytest.mark.usefixtures("one_at_a_time")
def test_answers_are_counted_by_group_and_what_scores_are_worth(tokenizer: Tokenizer) -> None:
    said = {
        "Sky?": "The sky is blue.",
        "Color of the sky?": "The sky is blue.",
        "Capital of Korea?": "Seoul is blue.",
        "하늘 색은?": "The sky is blue.",
        "한국의 수도는?": "서울이에요.",
    }
    script = [said[p.question.prompt[-1].content] for p in by_length(tokenizer)]
    found = ask(Scripted(tokenizer, *script), tokenizer, PROMPTS, GREEDY)
    assert [found[group] for group in GROUPS] == [0, 1, 1, 1]
    assert found["ended"] == 1
    assert found["in_language"] == 4 / 5
    # "blue" twice on the capital's answer; "Seoul" on two of the sky's; the Korean ones not at all.
    assert found["others"] == 2 / 6
    assert found["commonest_answer"] == "The sky is blue."
    assert found["commonest"] == 2 / 5


def by_length(tokenizer: Tokenizer) -> list[Asked]:
    """In the order they are asked in: short prompts first."""
    from minimind.data.masking import encode_prompt

    return sorted(PROMPTS, key=lambda each: len(encode_prompt(each.question.prompt, tokenizer)))


@pytest.mark.usefixtures("one_at_a_time")
def test_an_answer_that_is_cut_off_has_not_ended(tokenizer: Tokenizer) -> None:
    endless = [tokenizer.encode("a")[0]] * 300
    model = Scripted(tokenizer, *[endless] * 4, "blue")
    assert ask(model, tokenizer, PROMPTS, GREEDY)["ended"] == 1 / 5


def test_every_held_out_prompt_is_asked_with_its_pattern() -> None:
    prompts = read_prompts()
    counts = {group: sum(each.group == group for each in prompts) for group in GROUPS}
    assert counts == {"ko paraphrase": 126, "en paraphrase": 126, "ko fact": 40, "en fact": 40}
    for each in prompts:
        assert each.question.expected is None
        assert regex(Case("", "", pattern=each.question.pattern)) == 0
        asked = each.question.prompt[-1].content
        assert language(Case(asked, "가" if each.group[:2] == "ko" else "a")) in (1, None)


def test_a_row_shows_the_mean_over_seeds_and_their_range() -> None:
    columns = (*GROUPS, "ended", "in_language", "others", "commonest")
    first = dict.fromkeys(columns, 0.5)
    second = {**first, "ended": 1.0}
    row = describe("run", "greedy", [first, second])
    assert row.startswith("| run | greedy | 50.0% | 50.0% | 50.0% | 50.0% | 75.0% (50.0%–100.0%) |")


@pytest.fixture
def starts_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`starts` on a tiny base with a few rows, its answers made up."""
    rows = (Path(__file__).parents[1] / "data" / "conversations.jsonl").read_text(encoding="utf-8")
    few = tmp_path / "few.jsonl"
    few.write_text("".join(rows.splitlines(True)[:40]), encoding="utf-8")
    base = write_base(tmp_path / "base")
    load = starts.minimind.load
    made_up = {**dict.fromkeys(GROUPS, 0.25), "ended": 1.0}

    def asked(*_: object) -> dict[str, Any]:
        return made_up

    monkeypatch.setattr(tuning, "SAMPLE", (few,))
    monkeypatch.setattr(starts, "ask", asked)
    monkeypatch.setattr(starts.minimind, "load", lambda name=base: load(name))


@pytest.mark.slow
@pytest.mark.usefixtures("starts_made_up")
def test_both_starts_are_tuned_alike_and_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, figure = tmp_path / "starts", tmp_path / "starts.png"
    starts.main(["--out", str(out), "--figure", str(figure)])
    *_, line = capsys.readouterr().out.rstrip().split("\n")
    found = json.loads(line)["starts"]
    assert list(found) == [starts.BASE, starts.RANDOM]
    runs = [json.loads((out / name / "run.json").read_text()) for name in found]
    assert runs[0]["options"]["training"] == runs[1]["options"]["training"]
    weights = [(out / f"{name} start" / "model.safetensors").read_bytes() for name in found]
    assert weights[0] != weights[1]
    for result in found.values():
        steps = [each["step"] for each in result["answers"]]
        assert steps[0] == 0
        assert steps == sorted(set(steps))
        assert steps[-1] == result["losses"][-1][0]
    assert figure.read_bytes().startswith(b"\x89PNG")
    write_base(tmp_path / "base", seed=2)
    with pytest.raises(ValueError, match=r"is another base's; name another --out"):
        starts.main(["--out", str(out)])


def test_a_model_is_asked_greedily_and_with_three_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[SampleConfig] = []
    columns = (*GROUPS, "ended", "in_language", "others", "commonest")

    def ask(_model: object, _tokenizer: object, _prompts: object, sampling: SampleConfig) -> Any:
        asked.append(sampling)
        return dict.fromkeys(columns, 0.5)

    monkeypatch.setattr(held_out, "ask", ask)
    run = str(write_base(tmp_path / "run"))
    held_out.main([run])
    assert [(each.temperature, each.seed) for each in asked] == [
        (0, None), (0.7, 0), (0.7, 1), (0.7, 2)
    ]  # fmt: skip
    *_, greedy, sampled, line = capsys.readouterr().out.rstrip().split("\n")
    assert greedy.startswith(f"| {run} | greedy | 50.0% |")
    assert sampled.startswith(f"| {run} | temperature 0.7 | 50.0% |")
    assert len(json.loads(line)["held_out"][run]["temperature 0.7"]) == 3
    held_out.main([run, "--greedy"])
    assert len(asked) == 5
