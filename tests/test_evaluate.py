"""The command: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minimind.evaluate import __main__ as evaluate
from minimind.model.pretrained import BASE, save
from minimind.model.transformer import Transformer
from minimind.tokenizer import Tokenizer
from tests.support.browser import ask
from tests.support.tiny import CONFIG, write_base


def main(arguments: list[str]) -> int:
    try:
        return evaluate.main(arguments)
    except SystemExit as error:  # how tyro ends
        return int(error.code or 0)


FAST = ["--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"instruction": "1 + 1 = ?", "output": "2", "pattern": "2|둘"},
        {"messages": [{"role": "user", "content": "이름이 <b>뭐</b>예요?"}]},
        {"prompt": "Hello!", "completion": "Hi there!"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def test_one_model_is_judged_and_the_results_are_written(base, rows, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = [str(rows), "--model", str(base), "--out", str(out), "--metrics", "exact", "regex"]
    assert main([*arguments, *FAST]) == 0
    printed = capsys.readouterr().out
    assert "question: 이름이 <b>뭐</b>예요?\nanswer: " in printed
    assert f"{base}: 3 rows, 3 answered, 2 scored" in printed
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    (model,) = results["models"]
    assert {"loss", "perplexity", "bits_per_byte", "ended", "exact", "regex"} <= set(
        model["figures"]
    )
    assert [row["line"] for row in results["rows"]] == [1, 2, 3]
    assert results["options"]["sampling"]["temperature"] == 0.7
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "이름이 &lt;b&gt;뭐&lt;/b&gt;예요?" in page
    assert "<b>" not in page


def test_two_models_stand_side_by_side(base, rows, tmp_path, capsys) -> None:
    other = write_base(tmp_path / "other")
    out = tmp_path / "out"
    models = ["--model", str(base), "--model", str(other)]
    assert main([*models, str(rows), "--out", str(out), *FAST]) == 0
    printed = capsys.readouterr().out
    assert f"answer ({other}): " in printed
    assert f"{other} minus {base}, 95% interval:\nloss" in printed
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["differences"][0]["figures"]["loss"] == [0, 0, 0]  # the same weights
    assert results["rows"][0]["answers"][0] == results["rows"][0]["answers"][1]


def test_the_page_works_in_a_browser(base, rows, tmp_path) -> None:
    models = ["--model", str(base), "--model", str(write_base(tmp_path / "other"))]
    out = tmp_path / "out"
    assert main([*models, str(rows), "--out", str(out), "--metrics", "regex", *FAST]) == 0
    question = (
        "(() => { const shown = () => [...document.querySelectorAll('.row:not([hidden])')]"
        ".map(row => row.querySelector('.question').innerText);"
        "const all = shown(), words = document.getElementById('words');"
        "words.value = '이름이'; words.dispatchEvent(new Event('input')); const some = shown();"
        "words.value = ''; const which = document.getElementById('tag'); which.value = 'wrong';"
        "which.dispatchEvent(new Event('change'));"
        "const beside = document.querySelector('.answers').children.length;"
        "const style = getComputedStyle(document.body);"
        "return [all, some, shown(), beside, style.color, style.backgroundColor]; })()"
    )
    light, dark = (ask(out / "report.html", question, dark=dark) for dark in (False, True))
    everything = ["1 + 1 = ?", "이름이 <b>뭐</b>예요?", "Hello!"]
    assert light[:4] == [everything, everything[1:2], everything[:1], 3]  # expected, two answers
    assert dark[:4] == light[:4]
    assert dark[4:] != light[4:]


def test_prompts_come_from_a_text_file_and_the_same_seed_answers_the_same(
    base, tmp_path, capsys
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("안녕?\nWho are you?\n", encoding="utf-8")
    seen = []
    for number in range(2):
        out = tmp_path / f"out-{number}"
        assert main([str(path), "--model", str(base), "--out", str(out), *FAST]) == 0
        seen.append(json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"])
    assert seen[0] == seen[1]
    assert "question: Who are you?" in capsys.readouterr().out


def test_documents_are_scored_byte_by_byte(base, tmp_path, capsys) -> None:
    text = tmp_path / "text.txt"
    text.write_text("옛날 옛적에 a cat lived.\n" * 40, encoding="utf-8")
    out = tmp_path / "out"
    assert main([str(text), "--documents", "--model", str(base), "--out", str(out)]) == 0
    assert "bits_per_byte" in capsys.readouterr().out
    (row,) = json.loads((out / "results.json").read_text(encoding="utf-8"))["rows"]
    assert row["answers"][0]["sums"]["bits_per_byte"][1] == len(text.read_bytes())


def test_rows_come_from_standard_input_under_its_own_name(
    base, rows, tmp_path, monkeypatch
) -> None:
    out = tmp_path / "out"
    with rows.open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["-", "--model", str(base), "--out", str(out), "--no-generate"]) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {row["path"] for row in results["rows"]} == {"-"}
    assert results["models"][0]["answered"] == 0


def test_a_bad_row_stops_or_is_skipped_and_told(base, rows, tmp_path, capsys) -> None:
    with rows.open("a", encoding="utf-8") as file:
        file.write('{"other": 1}\n')
    common = [str(rows), "--model", str(base), "--no-generate", "--out", str(tmp_path / "out")]
    assert main(common) == 3
    assert "rows.jsonl:4: the row's shape is unknown" in capsys.readouterr().err
    rows.write_text(rows.read_text() + '{"other": 1}\n' * 20)
    assert main(common) == 3
    told = capsys.readouterr().err
    assert told.count("the row's shape is unknown") == 10
    assert "\n21 of 24 rows can't be used (the first 10 are above); --on-bad-row skip" in told
    assert main([*common, "--on-bad-row", "skip"]) == 0
    assert "21 rows skipped; the first: " in capsys.readouterr().err
    rows.write_bytes(gzip.compress(rows.read_bytes())[:-9])
    assert main([*common, "--on-bad-row", "skip", "--overwrite"]) == 3
    told = capsys.readouterr().err  # the fault alone: the rows before it were to be skipped
    assert "the gzip data is damaged or breaks off" in told
    assert "--on-bad-row" not in told


def test_keys_that_are_not_read_are_told_once_for_all_models(
    base, rows, tmp_path, capsys, monkeypatch
) -> None:
    row = {"prompt": "a", "completion": "b", "pattern": "b", "topic": "x", "system_prompt": "S"}
    with rows.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n" + json.dumps([{"role": "user", "content": "안녕?"}]))
    other, out = write_base(tmp_path / "other"), tmp_path / "out"
    options = ["--model", str(base), "--model", str(other), "--no-generate", "--out", str(out)]
    assert main([str(rows), *options]) == 0
    lines = ["not read: topic (1 row)", "read: system_prompt as system (1 row)"]
    printed = capsys.readouterr().out
    assert printed.startswith("\n".join(lines) + "\n")
    assert printed.count("not read") == 1
    keys = json.loads((out / "results.json").read_text(encoding="utf-8"))["keys"]
    assert keys["unread_of_rows"] == {"topic": 1}
    assert keys["read_as"] == {"system_prompt as system": 1}
    assert "<br>".join(lines) in (out / "report.html").read_text(encoding="utf-8")
    assert main([str(rows), *options, "--overwrite", "--ignore-keys", "topic"]) == 0
    assert "not read" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--no-generate", "--no-score"], 2, "leave nothing to do"),
        (["--metrics", "bleu"], 2, "metrics has bleu; use some of exact"),
        (["--prompt-key", "q"], 2, "one of --prompt-key and --answer-key is missing"),
        (["--limit", "0"], 2, "--limit is 0; use a positive number"),
        (["--show", "-1"], 2, "--show is -1; use 0 or more"),
        (["--model", "a", "--model", "a"], 2, "--model names a model twice; name each once"),
        *(
            (["--documents", *ignored], 2, "--documents scores whole texts; leave out")
            for ignored in (
                ["--metrics", "exact"],
                ["--prompt-key", "q", "--answer-key", "a"],
                ["--on-bad-row", "skip"],
                ["--compile"],
            )
        ),
        (["--temperature", "-1"], 2, "temperature is -1.0"),
        (["--model", "no/such/folder/here"], 2, "no/such/folder/here"),
    ],
)
def test_what_can_not_be_is_refused(rows, capsys, arguments, code, message) -> None:
    assert main([str(rows), *arguments]) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())  # tyro's box


@pytest.mark.parametrize("arguments", [[], ["--no-generate"], ["--documents"]])
def test_weights_that_are_not_numbers_are_an_error(rows, tmp_path, capsys, arguments) -> None:
    model = Transformer(CONFIG).initialize(1)
    torch.nn.init.constant_(model.model.norm.weight, math.nan)
    save(tmp_path / "broken", model, Tokenizer.load(BASE))
    common = [str(rows), "--model", str(tmp_path / "broken"), "--out", str(tmp_path / "out")]
    if arguments == ["--documents"]:
        common[0] = str(tmp_path / "text.txt")
        (tmp_path / "text.txt").write_text("some words")
    assert main([*common, *arguments]) == 1
    assert "finite; its weights are broken" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_results_can_not_stand_is_told_before_the_work(base, rows, tmp_path, capsys) -> None:
    common = [str(rows), "--model", str(base), "--no-generate", "--out"]
    for place in (rows, rows / "below"):
        assert main([*common, str(place)]) == 2
        printed = capsys.readouterr()
        assert f"--out {place}: {rows} is not a writable folder; name another" in printed.err
        assert not printed.out
    out = str(tmp_path / "out")
    assert main([*common, out]) == 0
    assert main([*common, out]) == 2
    assert f"{out}/results.json: exists; --overwrite replaces it" in capsys.readouterr().err
    assert main([*common, out, "--overwrite"]) == 0


def test_a_missing_package_is_told_before_the_work(base, rows, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    monkeypatch.setattr(evaluate, "load", None)  # nothing is loaded
    assert main([str(rows), "--model", str(base), "--metrics", "chrf"]) == 2
    assert "chrf: sacrebleu isn't installed" in capsys.readouterr().err


def test_results_are_there_even_if_nobody_reads_what_is_printed(base, rows, tmp_path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "minimind.evaluate", str(rows), "--no-generate"]
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(
        [*command, "--model", str(base), "--out", str(out)], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, b"")
    assert (out / "report.html").exists()


def test_what_lies_beyond_a_models_context_is_said_and_not_compared(base, tmp_path, capsys) -> None:
    model = Transformer(replace(CONFIG, max_position_embeddings=24)).initialize(1)
    save(tmp_path / "short", model, Tokenizer.load(BASE))
    path = tmp_path / "rows.jsonl"
    lines = [{"instruction": "Hi", "output": text} for text in ("Yes.", "one two three four " * 9)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    models = ["--model", str(base), "--model", str(tmp_path / "short")]
    out = tmp_path / "out"
    assert main([str(path), *models, "--no-generate", "--out", str(out)]) == 0
    told = "short: 2 rows, 0 answered, 1 scored; in 1 of them, what exceeds the context isn"
    assert told in capsys.readouterr().out
    assert told in (out / "report.html").read_text(encoding="utf-8")
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["differences"][0]["figures"]["loss"] == [0, 0, 0]  # of the first row alone


def test_ctrl_c_ends_with_its_own_exit_code(base, rows, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: signal.raise_signal(signal.SIGINT))
    out = tmp_path / "out"
    assert main([str(rows), "--model", str(base), "--out", str(out)]) == 130
    assert "interrupted; nothing is written" in capsys.readouterr().err
    assert not out.exists()


def test_a_model_named_by_nothing_is_not_the_embedded_base(rows, capsys) -> None:
    assert main([str(rows), "--model", ""]) == 2  # as of an empty shell variable
    assert "no config.json" in capsys.readouterr().err


def test_a_second_model_that_is_not_there_is_noticed_before_the_first_is_asked(
    base, rows, monkeypatch, capsys
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: asked.append(_) or iter(()))
    assert main([str(rows), "--model", str(base), "--model", "no/such/model"]) == 2
    assert "no/such/model: no such directory" in capsys.readouterr().err
    assert not asked


def test_running_out_of_memory_names_the_options_that_help(base, rows, monkeypatch, capsys) -> None:
    def evaluation(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(evaluate, "evaluate", evaluation)
    assert main([str(rows), "--model", str(base)]) == 1
    assert re.search(
        r"--tokens-per-batch \d+ and --rows-per-batch \d+; halve", capsys.readouterr().err
    )


def test_a_terminal_is_not_disturbed_by_what_a_row_says(base, tmp_path, capsys) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("\x1b[2Jhello\n")
    assert main([str(path), "--model", str(base), "--out", str(tmp_path / "out"), *FAST]) == 0
    assert "question: \\x1b[2Jhello\n" in capsys.readouterr().out


def test_no_file_and_no_rows_are_told(base, tmp_path, capsys) -> None:
    assert main([]) == 2
    assert "no file; name one" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n\n")
    assert main([str(tmp_path / "empty.txt"), "--model", str(base)]) == 3
    assert "has no rows to answer or to score" in capsys.readouterr().err
    (tmp_path / "nothing.txt").touch()
    assert main([str(tmp_path / "nothing.txt"), "--documents", "--model", str(base)]) == 3
    assert "has no text; check that it was written" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.txt"), "--documents", "--model", str(base)]) == 3
    assert "absent.txt: there is no such file" in capsys.readouterr().err
