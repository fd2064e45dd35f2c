"""How our tokenizer is trained, and that the committed one is what the script makes."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from minimind.tokenizer import Tokenizer
from tests.support.strategies import texts

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "minimind" / "base" / "tokenizer.json"


def _module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tokenizer" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


train = _module("train")
measure = _module("measure")


def _sentences(count: int) -> list[str]:
    """Made-up words that occur again and again, every other line Korean."""
    draw = random.Random(0)
    syllables = ["바 나 오 늘 날 씨 좋 네 요 책 을 ㅋㅋ", "fo ra bin le chy sta ing dor um e"]
    made = []
    for language in syllables:
        parts = language.split()
        words = ["".join(draw.choices(parts, k=3)) for _ in range(60)]
        made.append([*words, "2024", "12,", "1", "<br>", "  yes!"])
    return [" ".join(draw.choices(made[n % 2], k=9)) + f" {n}" for n in range(count)]


SENTENCES = _sentences(300)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.txt").write_text("\n".join(SENTENCES[:200]), "utf-8")
    rows = [json.dumps({"text": line, "story": "x"}) for line in SENTENCES[200:]]
    (folder / "b.jsonl").write_text("\n".join(rows), "utf-8")
    return [folder / "a.txt", folder / "b.jsonl"]


@pytest.fixture(scope="module", params=["tokenizers", "sentencepiece"])
def trained(
    request: pytest.FixtureRequest, corpus: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Trained twice by the command, in processes with other hash seeds; the first of two files."""
    folder = tmp_path_factory.mktemp(request.param)
    suffix = "json" if request.param == "tokenizers" else "model"
    files = [folder / f"{n}.{suffix}" for n in (1, 2)]
    for seed, file, order in ((1, files[0], corpus), (2, files[1], corpus[::-1])):
        subprocess.run(
            [
                *(sys.executable, ROOT / "tokenizer" / "train.py", *order, "--out", file),
                *("--vocab-size", "420", "--backend", request.param),
            ],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        )
    return files[0]


def test_the_same_text_makes_the_same_bytes(trained: Path) -> None:
    assert trained.read_bytes() == trained.with_stem("2").read_bytes()


def test_control_tokens_have_their_ids_in_either_backend(trained: Path) -> None:
    tokenizer = Tokenizer.load(trained)
    assert tokenizer.vocab_size == 420
    assert tokenizer.notice is None
    for id, token in enumerate(train.ADDED[:-1]):
        assert tokenizer.encode_control(token) == id
    assert sorted(tokenizer.control_ids) == list(range(32))
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id) == (1, 2, 3)
    assert tokenizer.stop_ids == (2, 0)
    assert tokenizer.bos_id is None


def test_newlines_and_digits_stand_alone_in_either_backend(trained: Path) -> None:
    tokenizer = Tokenizer.load(trained)
    for id in set(range(tokenizer.vocab_size)) - tokenizer.control_ids:
        token = tokenizer.decode([id])
        assert len(token) == 1 or not set(token) & set("\r\n0123456789"), token
    ids = tokenizer.encode("2024\n\n12")
    assert [tokenizer.decode([id]) for id in ids] == [*"2024\n\n12"]


def test_either_backend_gives_back_every_text(trained: Path) -> None:
    tokenizer = Tokenizer.load(trained)

    @given(texts())
    def check(text: str) -> None:
        text = text.replace("▁", " ")  # sentencepiece's own space
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.control_ids.isdisjoint(ids)

    check()


def test_sentencepiece_alone_reads_the_model_and_finds_no_control_token_in_text(
    corpus: list[Path],
) -> None:
    model = sentencepiece.SentencePieceProcessor(
        model_proto=train.train_sentencepiece(SENTENCES, vocab_size=420)
    )
    ids = model.encode(f"hello {''.join(train.ADDED)}<unk>\n안녕")
    assert min(ids) >= 32
    assert model.decode(model.encode(" hello  안녕\n")) == " hello  안녕\n"


def test_the_committed_tokenizer_is_made_by_this_script() -> None:
    data = json.loads(COMMITTED.read_text("utf-8"))
    split = data["pre_tokenizer"]["pretokenizers"][0]
    assert split["pattern"] == {"Regex": train.PIECES}
    assert [token["content"] for token in data["added_tokens"]] == list(train.ADDED)
    assert [token["special"] for token in data["added_tokens"]] == [
        token not in train.TAGS for token in train.ADDED
    ]
    small = json.loads(train.train_bpe(SENTENCES, vocab_size=420).to_str())
    for part in data.keys() - {"model"}:
        assert data[part] == small[part], part
    vocab = data["model"]["vocab"]
    assert sorted(vocab.values()) == list(range(train.VOCAB_SIZE))
    assert list(small["model"]["vocab"].items())[:288] == list(vocab.items())[:288]
    assert {k: v for k, v in data["model"].items() if k not in ("vocab", "merges")} == {
        k: v for k, v in small["model"].items() if k not in ("vocab", "merges")
    }


def test_the_committed_tokenizer_stands_in_one_place() -> None:
    link = ROOT / "tokenizer" / "tokenizer.json"
    assert link.is_symlink()
    assert not Path(os.readlink(link)).is_absolute()
    assert link.resolve() == COMMITTED.resolve()


def test_its_config_tells_transformers_what_ours_says(tmp_path: Path) -> None:
    Tokenizer.load(COMMITTED).save(tmp_path)
    config = json.loads((COMMITTED.parent / "tokenizer_config.json").read_text("utf-8"))
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (config["eos_token"], config["pad_token"]) == ("<|im_end|>", "<|pad|>")
    assert config["clean_up_tokenization_spaces"] is False
    assert (tmp_path / "tokenizer.json").read_bytes() == COMMITTED.read_bytes()


def test_the_plain_comparison_lets_newlines_and_digits_join() -> None:
    lines = train.join_lines([f"  {line}" for line in SENTENCES])
    tokenizer = train.train_bpe(lines, vocab_size=420, pieces=train.PLAIN_PIECES)
    tokens = [tokenizer.decode([id]) for id in range(32, 420)]
    assert "\n " in tokens
    assert any(len(token.strip()) > 1 for token in tokens if token.strip().isdigit())


# Reading


def test_held_back_passages_are_never_trained_on(corpus: list[Path]) -> None:
    kept, held = train.split_corpus(corpus)
    assert sorted(kept + held) == sorted(SENTENCES)
    assert held
    assert all(train.is_held_back(passage) for passage in held)
    assert not any(train.is_held_back(passage) for passage in kept)


def test_one_passage_in_fifty_is_held_back_the_same_ones_everywhere() -> None:
    held = [n for n in range(300) if train.is_held_back(f"passage {n}")]
    assert held == [4, 7, 23, 117, 123, 137, 140, 225, 247, 298]


def test_a_passage_that_occurs_twice_counts_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\none\n")
    (tmp_path / "b.txt").write_text("two\nthree")
    kept, held = train.split_corpus([tmp_path / "b.txt", tmp_path / "a.txt"])
    assert sorted(kept + held) == ["one", "three", "two"]


def test_a_share_takes_that_part_of_a_file_and_holds_back_the_same(corpus: list[Path]) -> None:
    kept, held = train.split_corpus(corpus)
    half, still_held = train.split_corpus(corpus, {"a.txt": 0.5})
    assert still_held == held
    assert set(half) < set(kept)
    assert 60 < len(half) - 100 + sum(p in held for p in SENTENCES[200:]) < 140
    assert train.split_corpus(corpus, {"a.txt": 0.0})[0] == [
        p for p in SENTENCES[200:] if p in kept
    ]


@given(st.text(alphabet="ab \t가", max_size=9000))
def test_long_lines_are_cut_at_spaces_and_lose_nothing(line: str) -> None:
    passages = list(train._cut(line))
    assert "".join(passages) == line
    assert all(passage.startswith(" ") for passage in passages[1:])


def test_a_row_without_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for row in ('{"body": "x"}', '{"text": 3}', "[1]", "{"):
        file.write_text(f'{{"text": "fine"}}\n{row}\n')
        with pytest.raises(ValueError, match=r'rows.jsonl:2: no string at "text"; each row must'):
            train.split_corpus([file])


def test_a_file_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("안녕".encode("cp949"))
    with pytest.raises(ValueError, match=r"a.txt: not UTF-8 \(.*\); convert it first"):
        train.split_corpus([tmp_path / "a.txt"])


@pytest.mark.parametrize("make", [train.train_bpe, train.train_sentencepiece])
def test_too_little_text_is_named(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=r"corpus: no 8192 tokens can be made of it \(.*\); give"):
        make(["a b c"] * 9)


def test_a_share_that_is_no_number_stops_the_command(
    corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.json")
    with pytest.raises(SystemExit):
        train.main([str(corpus[0]), "--out", out, "--share", "a.txt"])
    assert "--share: invalid name_and_part value: 'a.txt'" in capsys.readouterr().err
    assert not Path(out).exists()


# Measuring


def test_bytes_per_token_counts_bytes_and_tokens() -> None:
    tokenizer = Tokenizer.load(COMMITTED)
    texts = ["12\n", "안녕하세요"]
    tokens = 3 + len(tokenizer.encode("안녕하세요"))
    assert measure.bytes_per_token(tokenizer, texts) == pytest.approx((3 + 15) / tokens)


def test_measuring_prints_a_table_and_a_line_of_json(
    corpus: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    measure.main([*map(str, corpus), "--tokenizers", str(COMMITTED)])
    *table, last = capsys.readouterr().out.splitlines()
    (row,) = json.loads(last)
    assert row["tokens"] == 8192
    assert row["Korean"] > 1
    assert row["English"] > 1
    assert table[-1].startswith(f"| {COMMITTED} | 8192 |")
