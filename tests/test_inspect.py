"""The command shows what trains, exactly; its page works in a real browser."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimind.data.build import DataOptions
from minimind.data.plan import make_steps
from minimind.data.selection import SplitOptions, select_rows
from minimind.inspect import __main__ as inspect
from minimind.sft import __main__ as sft
from minimind.tokenizer import Tokenizer
from tests.support.browser import ask
from tests.support.tiny import write_base

ROWS = [
    {"instruction": "안녕? <b>", "output": "안녕하세요! 👩‍👩‍👧"},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]},
    {"instruction": "What does <|im_end|> do?", "output": "It ends a turn."},
    {"instruction": "Story?", "output": "Once upon a time " * 400},
    {"messages": [{"role": "user", "content": "Only a question."}]},
    *({"instruction": f"{n} + {n} = ?", "output": str(2 * n)} for n in range(40)),
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


def main(*arguments: object) -> int:
    try:
        return inspect.main([str(argument) for argument in arguments])
    except SystemExit as error:  # how tyro ends
        return int(error.code or 0)


def facts(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main(*arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_the_terminal_shows_counts_and_tokens(data, capsys) -> None:
    assert main(data, "--rows", "2") == 0
    printed = capsys.readouterr().out
    assert "rows: 45 read (43 instruction/output, 2 messages)" in printed
    assert "truncated: 1 rows lose" in printed
    assert "looks like a control token: 1 <|im_end|>" in printed
    assert re.search(rf"^{re.escape(str(data))}:2 \(.*\bchosen\b.*\)$", printed, re.MULTILINE)
    assert "│0│ +│ │0│ =│ ?│<|im_end|>│⏎\n" in printed
    assert "│⟦0│<|im_end|>│⟧⏎\n" in printed


@pytest.mark.parametrize("options", [(), ("--val-fraction", "0.3"), ("--limit", "5")])
def test_the_hash_shown_is_the_hash_that_sft_prints_and_trains(
    data, tmp_path, capsys, options
) -> None:
    shown = facts(capsys, data, *options)["hash"]
    base = write_base(tmp_path / "base")
    arguments = [str(data), "--model", str(base), "--out", str(tmp_path / "run"), "--epochs", "1"]
    assert sft.main([*arguments, *options]) == 0
    assert f"hash: {shown}\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    assert record["identity"]["data"] == shown


def test_the_hash_is_over_the_very_tokens_that_batches_hold(data, tokenizer, capsys) -> None:
    shown = facts(capsys, data, "--val-fraction", "0")["hash"]
    split = SplitOptions(val_fraction=0)
    training = select_rows([str(data)], tokenizer, DataOptions(max_length=1024), split).training
    steps = make_steps(training, tokens_per_step=200, epochs=1)
    consumed: dict[int, tuple[list[int], list[int]]] = {}
    for batch in (batch for step in steps for batch in step):
        ends = np.cumsum(batch.documents.lengths)
        for row, end, length in zip(batch.rows, ends, batch.documents.lengths, strict=True):
            span = slice(end - length, end)
            consumed[row] = batch.input_ids[span].tolist(), batch.labels[span].tolist()
    digest = hashlib.sha256()
    for row in range(len(training)):  # in the file's order, as one block
        ids, labels = consumed[row]
        example = training[row]
        assert ids == list(example.input_ids)[: len(ids)]
        told = [
            id if mark else -100
            for id, mark in zip(example.input_ids, example.loss_mask, strict=True)
        ][1 : len(ids) + 1]
        assert labels == told
        assert not any(example.loss_mask[len(ids) + 1 :])  # all that trains was consumed
    lengths = np.array([len(row) for row in training], "<u4")
    digest.update(lengths.tobytes())
    digest.update(np.concatenate([row.input_ids for row in training]).astype("<u4").tobytes())
    digest.update(np.concatenate([row.loss_mask for row in training]).tobytes())
    assert digest.hexdigest() == shown


def test_json_holds_counts_and_shown_tokens(data, capsys, tokenizer) -> None:
    found = facts(capsys, data, "--rows", f"{data}:2")
    assert found["rows"] == 45
    assert found["unsupervised"] == 1
    assert found["truncated"] == found["dropped_long"] == 1
    assert found["counts"]["role"] == {"user": 45, "assistant": 44}
    (row,) = [row for row in found["shown"] if row["place"] == f"{data}:2"]
    trained = [id for id, mark in zip(row["input_ids"], row["trained"], strict=True) if mark]
    assert tokenizer.decode(trained) == "Hello!<|im_end|>"


def test_lengths_are_drawn_and_told_to_machines(data, capsys) -> None:
    assert main(data) == 0
    printed = capsys.readouterr().out
    drawing = printed[printed.index("tokens per row, before truncation:") :].splitlines()
    assert drawing[1].endswith("█ 1 to 103: 44")
    assert drawing[11].endswith("- --max-length 1,024")
    assert re.search(r"█ +1,025 to [\d,]+: 1$", drawing[12])
    counts = facts(capsys, data)["rows_by_tokens"]
    assert [count for *_, count in counts] == [44, *[0] * 9, 1]


@pytest.mark.parametrize(("config", "length"), [("as it is", 256), ("none", 4096), ("{}", 4096)])
def test_the_length_is_the_bases_context(config: str, length: int, data, tmp_path, capsys) -> None:
    """Of a folder with a tokenizer alone, or with another kind of model, it isn't known."""
    base = write_base(tmp_path / "base")
    if config == "none":
        (base / "config.json").unlink()
    elif config == "{}":
        (base / "config.json").write_text("{}")
    found = facts(capsys, data, "--model", base)
    assert found["dropped_long"] == (length < 2000)
    assert max(high for _, high, rows in found["rows_by_tokens"][:10]) == min(length, 2016)


def test_a_row_that_is_not_there_is_told(data, capsys) -> None:
    assert main(data, "--rows", "3", "99") == 0
    printed = capsys.readouterr().out
    assert f"no usable row at {data}:99\n" in printed
    assert f"no usable row at {data}:3\n" not in printed


def test_rows_left_out_for_the_validation_file_are_told_as_sft_does(data, tmp_path, capsys) -> None:
    held_back = tmp_path / "held_back.jsonl"
    held_back.write_text(json.dumps(ROWS[1]) + "\n", encoding="utf-8")
    assert main(data, "--val-data", held_back) == 0
    printed = capsys.readouterr().out
    assert f"1 rows left out of training: their prompts are in {held_back}" in printed


def test_a_pipe_that_is_closed_early_ends_without_a_word_and_with_the_page(data, tmp_path) -> None:
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "minimind.inspect", str(data), "--html", str(page)]
    reading, writing = os.pipe()
    os.close(reading)
    ran = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (ran.returncode, ran.stderr) == (1, b"")
    assert page.exists()


def test_checks_pass_on_sound_data_and_fail_loudly(data, capsys) -> None:
    assert main(data, "--check", "--max-length", "2048") == 0
    printed = capsys.readouterr().out
    assert "passed: trained ids decode to the assistant's words and end tokens (45 rows)" in printed
    assert main(data, "--check", "--max-length", "2") == 1
    printed = capsys.readouterr().out
    assert "failed: answers are left to train on (0 of 45 rows are trained; " in printed
    assert "    consequence: there is nothing to train" in printed


def test_answers_that_spell_the_base_s_tokens_are_told_by_sft_and_inspect(tmp_path, capsys) -> None:
    data = tmp_path / "think.jsonl"
    row = {"instruction": "Why <think>?", "output": "<think>hm</think> So <unk>."}
    rows = [row, *({"instruction": f"{n}?", "output": str(n)} for n in range(9))]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    told = (
        "1 of 10 answers spell the base's tokens (1 <think>, 1 </think>): they are trained as "
        "letters; the model learns to write those, not the base's tokens\n"
    )
    for _ in range(2):  # from the cache, too
        assert sft.main([str(data), "--dry-run"]) == 0
        assert told in capsys.readouterr().out
        assert main(data) == 0
        printed = capsys.readouterr().out
        assert told in printed
        assert "answers that spell a token of the base: 1 <think>, 1 </think>\n" in printed
    assert main(data, "--check") == 1
    assert "failed: at most 1% of answers spell the base's tokens (1 of 10" in (
        capsys.readouterr().out
    )


KEYS = [
    {"messages": [{"role": "developer", "content": "S"}, *ROWS[1]["messages"]], "id": "a"},
    {"messages": [{**message, "mood": "sad"} for message in ROWS[1]["messages"]], "id": "b"},
]


def test_keys_that_are_not_read_are_told_everywhere_and_fail_the_check(
    tmp_path, capsys, monkeypatch
) -> None:
    path, page = tmp_path / "data.jsonl", tmp_path / "page.html"
    path.write_text("".join(json.dumps(row) + "\n" for row in KEYS), encoding="utf-8")
    lines = ["not read: id (2 rows), mood (2 messages)", "read: developer as system (1 row)"]
    assert main(path, "--val-fraction", "0", "--html", page) == 0
    assert "\n".join(lines) in capsys.readouterr().out
    assert "<br>".join(lines) in page.read_text(encoding="utf-8")
    found = facts(capsys, path, "--val-fraction", "0")
    assert set(lines) <= set(found["sentences"])
    assert found["unread_of_rows"] == {"id": 2}
    assert found["unread_of_messages"] == found["unread_texts"] == {"mood": 2}
    assert found["read_as"] == {"developer as system": 1}
    for start in range(2):  # the second time from the cache
        assert main(path, "--val-fraction", "0", "--check") == 1
        printed = capsys.readouterr().out
        assert lines[0] in printed, start
        assert "failed: what messages say is read (not read, with text or booleans" in printed
    assert main(path, "--val-fraction", "0", "--check", "--ignore-keys", "mood", "id") == 0
    assert "not read" not in capsys.readouterr().out
    with path.open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main("-", "--val-fraction", "0", "--ignore-keys", "mood") == 0
    assert "not read: id (2 rows)\n" in capsys.readouterr().out


def test_bad_rows_that_are_skipped_fail_the_check(data, capsys) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"prompt": 1}\n')
    options = ("--on-bad-row", "skip", "--max-length", "2048")
    assert main(data, *options) == 0
    assert main(data, *options, "--check") == 1
    assert "failed: every row can be used (bad rows: 1 unknown_shape)" in capsys.readouterr().out


def test_rows_come_from_standard_input_too(data, capsys, monkeypatch) -> None:
    with data.open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main("-") == 0
    assert "-:3 (content spells <|im_end|>" in capsys.readouterr().out


def test_a_bad_row_of_standard_input_is_named_and_skipped_under_one_key(
    data, capsys, monkeypatch
) -> None:
    with data.open("a", encoding="utf-8") as file:
        file.write('{"prompt": 1}\n')

    def feed(*arguments: str) -> tuple[int, str, str]:
        with data.open(encoding="utf-8") as file:
            monkeypatch.setattr("sys.stdin", file)
            return main("-", *arguments), *capsys.readouterr()

    code, _, error = feed()
    assert code == 3
    assert "<stdin>:46: " in error
    listed = {re.search(r"listed in (\S+)", feed("--on-bad-row", "skip")[1])[1] for _ in range(2)}
    assert len(listed) == 1
    assert json.loads(Path(listed.pop()).read_text(encoding="utf-8"))["path"] == "-"


def test_the_split_decides_the_hash_and_numbers_of_rows_alone_as_the_help_says(
    data, capsys
) -> None:
    found = facts(capsys, data, "--limit", "9", "--val-fraction", "0", "--rows", "40")
    assert any(sentence.startswith("training: 9 rows, ") for sentence in found["sentences"])
    assert found["rows"] == len(ROWS)
    assert any(row["place"].endswith(":40") for row in found["shown"])
    assert main("--help") == 0
    told = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "are of all usable rows of the files, trained or not" in told


def test_ctrl_c_ends_with_its_own_exit_code(data, monkeypatch, capsys) -> None:
    monkeypatch.setattr(inspect, "survey", lambda *_: signal.raise_signal(signal.SIGINT))
    assert main(data) == 130
    assert capsys.readouterr().err == "error: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "no data file; name one"),
        (("data.jsonl", "--limit", "0"), 2, "--limit is 0; use a positive number"),
        (("data.jsonl", "--val-fraction", "1"), 2, "--val-fraction is 1.0; use 0 to less than 1"),
        (("data.jsonl", "--prompt-key", "q"), 2, "one of --prompt-key and --answer-key is missing"),
        (("data.jsonl", "--rows", "x"), 2, "--rows has x; use LINE or FILE:LINE"),
        (("data.jsonl", "--rows", "²"), 2, "--rows has ²; use LINE or FILE:LINE"),
        (("data.jsonl", "--rows", "a.jsonl:1"), 2, "its file is none of data.jsonl"),
        (("data.jsonl", "--html", "."), 2, "--html .: is no file; name one"),
        (("data.jsonl", "--html", "data.jsonl/b.html"), 2, "data.jsonl is no folder; name another"),
        (("data.jsonl", "--html", "./data.jsonl"), 2, "--html data.jsonl: is the data itself"),
        (("absent.jsonl",), 3, "absent.jsonl: there is no such file"),
        (("data.jsonl", "--model", "/no/such"), 2, "/no/such: no such directory"),
    ],
)
def test_what_can_not_be_is_refused(data, capsys, monkeypatch, arguments, code, message) -> None:
    monkeypatch.chdir(data.parent)
    assert main(*arguments) == code
    assert message in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.fixture
def page(data, tmp_path, capsys) -> Path:
    path = tmp_path / "page.html"
    assert main(data, "--check", "--html", path) == 1  # the story is too long
    return path


def test_the_page_shows_every_token_and_what_it_is(page, tokenizer: Tokenizer) -> None:
    rows = ask(
        page,
        "[...document.querySelectorAll('.row')].map(row => [row.querySelector('.faint').innerText,"
        "[...row.querySelectorAll('.tokens span')].map(t => [t.dataset.id, t.className])])",
    )
    (tokens,) = [tokens for place, tokens in rows if ":1 ·" in place]
    ids = [int(id) for id, _ in tokens]
    trained = [int(id) for id, kind in tokens if "trained" in kind]
    assert "안녕? <b>" in tokenizer.decode(ids)
    assert tokenizer.decode(trained) == "안녕하세요! 👩‍👩‍👧<|im_end|>"
    (lost,) = [tokens for place, tokens in rows if ":4 ·" in place]
    assert all("lost" in kind for _, kind in lost)


def test_the_page_draws_lengths_as_the_terminal_does(page) -> None:
    drawing = ask(page, "document.querySelector('pre').textContent").splitlines()
    assert drawing[1].endswith("█ 1 to 103: 44")
    assert drawing[11].endswith("- --max-length 1,024")


def test_pointing_at_a_token_tells_its_id_and_bytes(page) -> None:
    told = ask(
        page,
        "(() => { const token = document.querySelector('.tokens .trained');"
        "token.dispatchEvent(new MouseEvent('mouseover', {bubbles: true}));"
        "return [token.dataset.id, token.dataset.bytes,"
        "document.getElementById('token').innerText]; })()",
    )
    assert told[2] == f"id {told[0]} · bytes {told[1]} · trained"


def test_rows_can_be_filtered_by_words_and_reasons(page) -> None:
    shown = ask(
        page,
        "(() => { const count = () => document.querySelectorAll('.row:not([hidden])').length;"
        "const all = count(), words = document.getElementById('words');"
        "words.value = '안녕하세요'; words.dispatchEvent(new Event('input')); const some = count();"
        "words.value = ''; words.dispatchEvent(new Event('input'));"
        "const reason = document.getElementById('tag'); reason.value = 'too long, dropped';"
        "reason.dispatchEvent(new Event('change'));"
        "return [all, some, count(), document.getElementById('shown').innerText]; })()",
    )
    spelling = ask(
        page,
        "(() => { const reason = document.getElementById('tag');"
        "reason.value = 'content spells <|im_end|>'; reason.dispatchEvent(new Event('change'));"
        "return document.querySelectorAll('.row:not([hidden])').length; })()",
    )
    assert spelling == 1
    total = shown[0]
    assert shown == [total, 1, 1, f"1 of {total} rows shown"]
    assert total > 5


def test_light_and_dark_are_told_apart_and_can_be_read(page) -> None:
    question = (
        "(() => { const style = getComputedStyle(document.body),"
        "trained = getComputedStyle(document.querySelector('.tokens .trained'));"
        "return [style.color, style.backgroundColor, trained.backgroundColor]; })()"
    )
    light, dark = ask(page, question), ask(page, question, dark=True)
    for ink, *papers in (light, dark):
        assert min(contrast(ink, paper) for paper in papers) > 4.5  # WCAG 2.1, AA
    assert light[1] != dark[1]


def contrast(first: str, second: str) -> float:
    """Of two CSS colours, by WCAG 2.1."""
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").rstrip(")").split(",")]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
