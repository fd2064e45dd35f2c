"""A system message that all training rows have goes with the model, and is used to answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from minimind.chat import __main__ as chat
from minimind.data.build import DataOptions, build_dataset
from minimind.data.masking import encode_prompt
from minimind.evaluate import __main__ as evaluate
from minimind.model.pretrained import load, load_system_message, save
from minimind.sft import __main__ as sft
from minimind.tokenizer import Tokenizer
from tests.support.tiny import write_base

MINI = 'You are "Mini".\n미니예요.'


def write_rows(path: Path, *systems: str | None) -> Path:
    rows = []
    for number, system in enumerate(systems):
        messages = [
            {"role": "user", "content": f"{number}?"},
            {"role": "assistant", "content": f"{number}."},
        ]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        rows.append({"messages": messages})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def _place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIMIND_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sft, "ANSWER_TOKENS", 4)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("rows", "option", "recorded"),
    [
        ([MINI] * 3, None, MINI),  # every row has it
        ([None] * 3, MINI, MINI),  # the option gives it to every row
        ([MINI] * 3, MINI, MINI),
        ([MINI, None, MINI], None, None),
        ([MINI, None, MINI], MINI, MINI),
        ([MINI, "another", MINI], None, None),
        ([None, "another", "a third"], MINI, MINI),  # rows without one get the option's
        (["another"] * 3, MINI, "another"),  # no row gets the option's
        (["another", "a third"], MINI, None),
        ([None] * 3, None, None),
        ([None] * 3, "", None),
        ([*map(str, range(600)), None], MINI, MINI),  # over more rows than are read at once
        ([*map(str, range(600)), "x"], MINI, None),
        ([*[MINI] * 600, "x"], None, None),
    ],
)
def test_what_the_option_or_every_row_says_is_the_message(
    rows, option, recorded, tmp_path, tokenizer
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    for _ in range(2):  # built, and from the cache
        _, report, _ = build_dataset([path], tokenizer, DataOptions(system=option))
        assert report.system == recorded


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """The folders of a run whose rows have a system message, and of one whose rows have none."""
    base = str(write_base(tmp_path / "base"))
    for name, system in (("mini", MINI), ("plain", None)):
        rows = write_rows(tmp_path / f"{name}.jsonl", *[system] * 9)
        options = ["--model", base, "--max-steps", "1", "--out", name]
        assert sft.main([str(rows), *options]) == 0
    return "mini", "plain"


def test_it_is_recorded_beside_the_weights_and_the_template_does_not_insert_it(
    runs, capsys
) -> None:
    mini, plain = runs
    for folder in (mini, f"{mini}/last"):
        assert load_system_message(folder) == MINI
    assert load_system_message(plain) is None
    assert load_system_message() is None
    for name in ("chat_template.jinja", "tokenizer_config.json", "config.json"):
        assert (Path(mini) / name).read_bytes() == (Path(plain) / name).read_bytes()
    card = Path(mini, "README.md").read_text(encoding="utf-8")
    assert "- system message of its training rows: " + json.dumps(MINI, ensure_ascii=False) in card
    assert "template doesn't insert it: send it as the first message" in card
    assert "system message" not in Path(plain, "README.md").read_text(encoding="utf-8")
    for name, said in (("mini", 1), ("plain", 0)):
        assert sft.main([f"{name}.jsonl", "--model", "base", "--dry-run"]) == 0
        line = 'system message: You are "Mini".\\n미니예요.; chat and evaluate will use it, too'
        assert capsys.readouterr().out.splitlines().count(line) == said


def test_a_model_saved_over_another_does_not_keep_its_message(runs) -> None:
    model, tokenizer = load(runs[1])
    save(runs[0], model, tokenizer)
    assert load_system_message(runs[0]) is None


@pytest.mark.parametrize(
    ("arguments", "system"),
    [([], MINI), (["--system", ""], None), (["--system", "Be brief."], "Be brief.")],
)
@pytest.mark.parametrize("piped", [False, True])
def test_chat_uses_it_and_says_so_once(
    arguments, system, piped, runs, monkeypatch, capsys, tokenizer
) -> None:
    prompts: list[list[int]] = []
    real = chat.stream_reply

    def asked(model, tokenizer, messages, config):
        prompts.append(encode_prompt(messages, tokenizer))
        return real(model, tokenizer, messages, config)

    monkeypatch.setattr(chat, "stream_reply", asked)
    arguments = ["--model", runs[0], "--max-new-tokens", "2", *arguments]
    if piped:
        Path("prompts").write_text("Hi\nHi\n")
        with Path("prompts").open() as file:
            monkeypatch.setattr(sys, "stdin", file)
            assert chat.main(arguments) == 0
    else:
        assert chat.main([*arguments, "--prompt", "Hi"]) == 0
    messages = [{"role": "user", "content": "Hi"}]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    assert prompts == [encode_prompt(messages, tokenizer)] * (2 if piped else 1)
    said = capsys.readouterr().err.count("system message, as in training: You are")
    assert said == (system == MINI)


@pytest.mark.parametrize(
    ("arguments", "systems"),
    [
        ([], [MINI, None]),
        (["--system", ""], [None, None]),
        (["--system", "Be brief."], ["Be brief."] * 2),
    ],
)
def test_evaluation_uses_each_models_own_and_says_so_once(
    arguments, systems, runs, tmp_path, capsys, monkeypatch
) -> None:
    rows = write_rows(tmp_path / "eval.jsonl", None, "its own")
    seen: list[list[str | None]] = []
    real = evaluate.evaluate

    def evaluated(model, tokenizer: Tokenizer, questions, *rest):
        questions = list(questions)
        firsts = [question.conversation.messages[0] for question in questions]
        seen.append([m.content if m.role == "system" else None for m in firsts])
        return real(model, tokenizer, questions, *rest)

    monkeypatch.setattr(evaluate, "evaluate", evaluated)
    models = [word for run in runs for word in ("--model", run)]
    more = ["--no-generate", "--out", "out", *arguments]
    assert evaluate.main([str(rows), *models, *more]) == 0
    assert seen == [[system, "its own"] for system in systems]
    assert capsys.readouterr().out.count("system message, as in training") == (MINI in systems)
    results = json.loads(Path("out/results.json").read_text(encoding="utf-8"))
    assert list(results["system_messages"].values()) == systems
