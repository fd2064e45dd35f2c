"""Text to ids and back, for our tokenizer and for every kind that a base may bring."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.chatml import render
from minimind.data.conversation import Message
from minimind.data.template import CHAT_TEMPLATE
from minimind.tokenizer import Tokenizer
from tests.support.strategies import texts
from tests.support.tokenizers_of_bases import (
    edit_json,
    write_llama2_json,
    write_llama3,
    write_sentencepiece,
    write_unigram,
)

BASE = Path(__file__).parents[1] / "minimind" / "base"
OURS = Tokenizer.load(BASE / "tokenizer.json")
THEIRS = tokenizers.Tokenizer.from_file(str(BASE / "tokenizer.json"))

KINDS: dict[str, Callable[[Path], Path]] = {
    "llama3": write_llama3,
    "llama2.json": write_llama2_json,
    "llama2.model": write_sentencepiece,
    "unigram.model": lambda folder: write_sentencepiece(folder, "unigram"),
    "unigram.json": write_unigram,
}
LOSSLESS = ["ours", "llama3", "llama2.json", "llama2.model", "unigram.model"]
EVERY = [*LOSSLESS, "unigram.json"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("bases")
    loaded = {name: Tokenizer.load(write(folder / name)) for name, write in KINDS.items()}
    return {"ours": OURS, **loaded}


# Text to ids


@pytest.mark.parametrize("kind", EVERY)
def test_no_added_token_can_be_spelled_in_any_text(kind: str, bases: dict[str, Tokenizer]) -> None:
    tokenizer = bases[kind]
    names = [tokenizer.decode([id]) for id in sorted(tokenizer.control_ids)]
    names += ["<|im_start|>", "<|im_end|>", "<s>", "<unk>", "hello", "＜/s＞"]
    writable = set("abcdefghi <|>_/hello")  # unigram.json can't write all characters
    for name in names:
        if kind == "unigram.json" and not writable.issuperset(name):
            continue
        for text in (name, f"a{name}b", f" {name} ", name * 3, name[:2] + name, f"hello{name}"):
            ids = tokenizer.encode(text)
            assert tokenizer.control_ids.isdisjoint(ids), (name, text)
            if kind in LOSSLESS:
                assert tokenizer.decode(ids) == text


def test_a_control_token_that_the_model_matches_by_itself_is_cut_apart(
    bases: dict[str, Tokenizer],
) -> None:
    llama3 = bases["llama3"]
    hello = llama3.encode_control("hello")  # an added token, and a word of the vocabulary
    assert hello not in llama3.encode("hello")
    unigram = bases["unigram.json"]
    end = unigram.encode_control("</s>")
    assert end not in unigram.encode("</s>")
    assert end not in unigram.encode("it says ＜/s＞")  # which its normalizer makes of this
    assert unigram.decode(unigram.encode("it says </s>")) == "it says </s>"


@pytest.mark.parametrize("kind", ["ours", "llama3", "llama2.json", "llama2.model"])
def test_no_text_yields_a_control_token_and_every_text_comes_back(
    kind: str, bases: dict[str, Tokenizer]
) -> None:
    tokenizer = bases[kind]

    @given(st.text() | texts())
    def check(text: str) -> None:
        ids = tokenizer.encode(text)
        assert tokenizer.control_ids.isdisjoint(ids)
        if kind in ("ours", "llama3") or "▁" not in text:  # sentencepiece's space
            assert tokenizer.decode(ids) == text

    check()


@pytest.mark.parametrize(
    "text",
    [
        "각각",  # jamo, composed and not
        "ㅋㅋㅋㅠㅠ",
        "👨‍👩‍👧‍👦🏳️‍🌈🇰🇷👍🏽",
        "\0\x01\x1b[0m\x7f\x85\u2028\ufeff",
        "  two\n\n\n  three \t\r\n",
        "뷁쀍쓩",
        "",
    ],
)
@pytest.mark.parametrize("kind", LOSSLESS)
def test_hard_texts_come_back_whole(kind: str, text: str, bases: dict[str, Tokenizer]) -> None:
    assert bases[kind].decode(bases[kind].encode(text)) == text


@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_gives_the_same_ids_as_one_by_one(kind: str, bases: dict[str, Tokenizer]) -> None:
    tokenizer = bases[kind]

    @given(st.lists(texts() | st.sampled_from(["", "</s>hello", "hello hello"]), max_size=5))
    def check(batch: list[str]) -> None:
        assert tokenizer.encode_batch(batch) == [tokenizer.encode(text) for text in batch]

    check()


@given(texts(), texts())
def test_encoding_by_lines_and_as_a_whole_agree(first: str, second: str) -> None:
    newline = OURS.encode("\n")
    assert len(newline) == 1
    whole = OURS.encode(f"{first}\n{second}")
    assert whole == OURS.encode(first) + newline + OURS.encode(second)


@given(st.text(alphabet="0123456789٣½a 가.", max_size=20))
def test_every_digit_stands_alone(text: str) -> None:
    tokens = [OURS.decode([id]) for id in OURS.encode(text)]
    assert all(len(token) == 1 for token in tokens if set(token) & set("0123456789"))


@pytest.mark.parametrize("kind", ["llama2.json", "llama2.model", "unigram.model"])
def test_encode_puts_nothing_before_a_text(kind: str, bases: dict[str, Tokenizer]) -> None:
    tokenizer = bases[kind]
    assert tokenizer.encode("hello") != tokenizer.encode(" hello")
    assert tokenizer.encode("\nhello") == tokenizer.encode("\n") + tokenizer.encode("hello")


def test_a_base_that_cuts_long_texts_off_cuts_none_of_ours(tmp_path: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(write_llama3(tmp_path) / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.decode(loaded.encode("fox " * 50)) == "fox " * 50
    assert len(loaded.encode("a")) == 1


def test_a_base_that_was_trained_with_dropout_encodes_without(tmp_path: Path) -> None:
    expected = Tokenizer.load(write_llama2_json(tmp_path)).encode("the quick brown fox")
    model = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))["model"]
    edit_json(tmp_path / "tokenizer.json", model={**model, "dropout": 0.9})
    assert Tokenizer.load(tmp_path).encode("the quick brown fox") == expected


def test_sentencepiece_s_user_defined_pieces_are_control_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path))
    plain = Tokenizer.load(write_sentencepiece(tmp_path / "without", user_defined=[]))
    ids = tokenizer.encode("say <tool> twice")
    assert tokenizer.encode_control("<tool>") not in ids
    spelled = [tokenizer.token_bytes(id) for id in ids]
    assert spelled == [plain.token_bytes(id) for id in plain.encode("say <tool> twice")]


def test_a_character_that_cannot_be_written_becomes_the_base_s_unknown(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_sentencepiece(tmp_path, byte_fallback=False, vocab_size=200))
    unknown = tokenizer.encode_control("<unk>")
    assert tokenizer.encode("the뷁").count(unknown) == 1
    assert unknown not in tokenizer.encode("then")


def test_spelling_the_unknown_token_does_not_yield_it(bases: dict[str, Tokenizer]) -> None:
    tokenizer = bases["unigram.json"]
    spelled = [id for character in "<unk>" for id in tokenizer.encode(character)]
    unknown = tokenizer.encode_control("<unk>")
    assert unknown not in spelled
    assert tokenizer.encode("<unk>") == spelled
    assert tokenizer.encode("뷁") == [unknown]
    assert tokenizer.encode("<unk>뷁") == [*spelled, unknown]


def test_a_single_character_that_is_an_added_token_is_written_by_its_bytes(tmp_path: Path) -> None:
    write_llama3(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    letter = data["model"]["vocab"]["a"]
    data["added_tokens"].append({**data["added_tokens"][0], "id": letter, "content": "a"})
    edit_json(tmp_path / "tokenizer.json", added_tokens=data["added_tokens"])
    with pytest.raises(ValueError, match=r"'a': in this vocabulary only a control token writes it"):
        Tokenizer.load(tmp_path).encode("cab")
    write_llama2_json(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    letter = data["model"]["vocab"]["안"]
    data["added_tokens"].append({**data["added_tokens"][0], "id": letter, "content": "안"})
    edit_json(tmp_path / "tokenizer.json", added_tokens=data["added_tokens"])
    tokenizer = Tokenizer.load(tmp_path)
    assert len(tokenizer.encode("안")) == 3
    assert tokenizer.decode(tokenizer.encode("안녕")) == "안녕"


@pytest.mark.parametrize("kind", ["ours", "llama2.model"])
def test_a_lone_surrogate_is_named(kind: str, bases: dict[str, Tokenizer]) -> None:
    with pytest.raises(ValueError, match=r"lone surrogate\) at 2; repair the text"):
        bases[kind].encode("가a\ud83d")


def test_what_is_not_text_is_named() -> None:
    with pytest.raises(TypeError, match="text: is int; give a str"):
        OURS.encode_batch(["a", 3])  # type: ignore[list-item]


def test_an_unknown_control_token_is_named() -> None:
    assert OURS.encode_control("<think>") == 4
    with pytest.raises(ValueError, match=r"'<eot>': not a control token.*it has <\|endoftext"):
        OURS.encode_control("<eot>")


# Ids to text


@pytest.mark.parametrize("kind", EVERY)
def test_a_stream_of_any_ids_is_the_text_of_all(kind: str, bases: dict[str, Tokenizer]) -> None:
    tokenizer = bases[kind]

    @given(
        st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30),
        st.booleans(),
    )
    def check(ids: list[int], skip: bool) -> None:
        stream = tokenizer.stream_decoder(skip_control=skip)
        for _ in range(2):  # it can be used again
            text = "".join([*map(stream.push, ids), stream.finish()])
            assert text == tokenizer.decode(ids, skip_control=skip)

    check()


@pytest.mark.parametrize(("kind", "count"), [("ours", 10_000), ("llama2.model", 2_000)])
def test_ten_thousand_streamed_texts_are_exact_and_without_replacement_characters(
    kind: str, count: int, bases: dict[str, Tokenizer]
) -> None:
    """T29."""
    tokenizer = bases[kind]
    draw = random.Random(29)
    alphabet = [chr(c) for c in range(0xAC00, 0xD7A4, 7)] + [chr(c) for c in range(0x4E00, 0x9FFF)]
    clusters = ["👨‍👩‍👧‍👦", "🏳️‍🌈", "👍🏽", "ㅋㅋ", "\u1112\u1161\u11ab", "안녕", " ", "\n", "a"]
    alphabet += clusters * 300
    written = ["".join(draw.choices(alphabet, k=draw.randint(1, 12))) for _ in range(count)]
    for text, ids in zip(written, tokenizer.encode_batch(written), strict=True):
        stream = tokenizer.stream_decoder()
        parts = [stream.push(id) for id in ids]
        assert "".join(parts) == text == tokenizer.decode(ids)
        assert stream.finish() == ""
        assert not any("\ufffd" in part for part in parts)


def test_a_character_appears_with_its_last_byte() -> None:
    stream = OURS.stream_decoder()
    ids = OURS.encode("뷁")  # too rare for a token of its own
    assert len(ids) > 1
    assert [stream.push(id) for id in ids] == [""] * (len(ids) - 1) + ["뷁"]
    assert stream.push(ids[0]) == ""
    assert stream.finish() == "\ufffd"


@given(st.lists(st.integers(0, OURS.vocab_size - 1), max_size=30), st.booleans())
def test_decode_is_what_tokenizers_says(ids: list[int], skip: bool) -> None:
    tags = set(range(4, 10))  # not marked special, so that they keep them
    if not (skip and tags & set(ids)):
        assert OURS.decode(ids, skip_control=skip) == THEIRS.decode(ids, skip_special_tokens=skip)


def test_control_tokens_are_spelled_or_left_out() -> None:
    ids = [OURS.start_id, *OURS.encode("안녕"), OURS.encode_control("</think>"), OURS.end_id]
    assert OURS.decode(ids) == "<|im_start|>안녕</think><|im_end|>"
    assert OURS.decode(ids, skip_control=True) == "안녕"


def test_an_id_without_a_token_is_a_replacement_character_and_a_negative_one_an_error() -> None:
    assert OURS.decode([OURS.vocab_size + 5]) == "\ufffd"
    with pytest.raises(ValueError, match="-100: not a token id; leave out labels of -100"):
        OURS.decode([-100])


# The parts tokens play


def test_ours_has_the_tokens_that_chat_needs() -> None:
    assert (OURS.start_id, OURS.end_id, OURS.pad_id, OURS.stop_ids) == (1, 2, 3, (2, 0))
    assert OURS.bos_id is None
    assert OURS.vocab_size == 8192
    assert sorted(OURS.control_ids) == list(range(32))
    assert OURS.added_chatml == ()
    assert OURS.notice is None


@pytest.mark.parametrize("kind", EVERY)
def test_padding_is_never_where_an_answer_stops(kind: str, bases: dict[str, Tokenizer]) -> None:
    tokenizer = bases[kind]
    assert tokenizer.stop_ids[0] == tokenizer.end_id
    assert tokenizer.pad_id not in (*tokenizer.stop_ids, tokenizer.start_id)
    assert 0 <= tokenizer.pad_id < tokenizer.vocab_size


def test_a_base_s_own_padding_is_kept_unless_it_ends_answers(tmp_path: Path) -> None:
    config = write_llama3(tmp_path) / "tokenizer_config.json"
    assert "reserved" in _name(tmp_path, Tokenizer.load(tmp_path).pad_id)
    edit_json(config, pad_token={"content": "<|eot_id|>", "special": True})
    assert _name(tmp_path, Tokenizer.load(tmp_path).pad_id) == "<|eot_id|>"
    edit_json(config, pad_token="<|end_of_text|>")
    assert "reserved" in _name(tmp_path, Tokenizer.load(tmp_path).pad_id)


def _name(folder: Path, id: int) -> str:
    return Tokenizer.load(folder).decode([id])


def test_an_answer_stops_at_the_base_s_end_too(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_llama3(tmp_path))
    assert tokenizer.stop_ids == (
        tokenizer.end_id,
        tokenizer.encode_control("<|end_of_text|>"),
    )
    model = Tokenizer.load(write_sentencepiece(tmp_path / "model"))
    assert model.stop_ids == (model.end_id, model.encode_control("</s>"))


def test_tokens_that_only_the_config_lists_are_control_tokens(tmp_path: Path) -> None:
    write_llama3(tmp_path)
    new = {"content": "<late>", "special": True}
    edit_json(tmp_path / "tokenizer_config.json", added_tokens_decoder={"450": new})
    (tmp_path / "added_tokens.json").write_text('{"<older>": 451}')
    (tmp_path / "special_tokens_map.json").write_text('{"eos_token": {"content": "fox"}}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode_control("<late>") == 450
    assert tokenizer.encode_control("<older>") == 451
    assert tokenizer.vocab_size == 452
    assert tokenizer.decode([448, 450]) == "\ufffd<late>"
    # The config's word counts more than the older file's.
    assert tokenizer.stop_ids[1] == tokenizer.encode_control("<|end_of_text|>")


# ChatML in bases that have none


def test_chatml_takes_spare_slots_where_there_are_any(tmp_path: Path) -> None:
    before = tokenizers.Tokenizer.from_file(str(write_llama3(tmp_path) / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.added_chatml == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.vocab_size == before.get_vocab_size()
    assert tokenizer.start_id == before.token_to_id("<|reserved_special_token_0|>")
    assert tokenizer.end_id == before.token_to_id("<|reserved_special_token_1|>")
    assert tokenizer.notice is not None
    assert "added in place of <|reserved_special_token_0|> and" in tokenizer.notice


@pytest.mark.parametrize("kind", ["llama2.json", "llama2.model"])
def test_chatml_is_added_at_the_end_of_a_base_without_spare_slots(
    kind: str, bases: dict[str, Tokenizer]
) -> None:
    tokenizer = bases[kind]
    assert tokenizer.added_chatml == ("<|im_start|>", "<|im_end|>")
    assert (tokenizer.start_id, tokenizer.end_id) == (
        tokenizer.vocab_size - 2,
        tokenizer.vocab_size - 1,
    )
    assert tokenizer.notice is not None
    assert f"added as id {tokenizer.start_id} and id {tokenizer.end_id}" in tokenizer.notice


def test_only_what_is_missing_is_added(tmp_path: Path) -> None:
    write_llama2_json(tmp_path)
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    start = {**data["added_tokens"][0], "id": 462, "content": "<|im_start|>"}
    edit_json(tmp_path / "tokenizer.json", added_tokens=[*data["added_tokens"], start])
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.added_chatml == ("<|im_end|>",)
    assert (tokenizer.start_id, tokenizer.end_id) == (462, 463)
    model = data["model"] | {"vocab": data["model"]["vocab"] | {"<|im_start|>": 462}}
    edit_json(tmp_path / "tokenizer.json", added_tokens=data["added_tokens"], model=model)
    tokenizer = Tokenizer.load(tmp_path)  # a word of its vocabulary, but no control token
    assert (tokenizer.start_id, tokenizer.end_id, tokenizer.vocab_size) == (462, 463, 464)


# Saving


@pytest.mark.parametrize("kind", list(KINDS))
def test_what_is_saved_loads_as_what_was_used(kind: str, tmp_path: Path) -> None:
    first = Tokenizer.load(KINDS[kind](tmp_path / "base"))
    first.save(tmp_path / "saved")
    second = Tokenizer.load(tmp_path / "saved")
    for text in ("hello fox <|im_end|></s>", "안녕하세요 hello", "\n\n  x"):
        assert second.encode(text) == first.encode(text)
    for name in ("vocab_size", "bos_id", "start_id", "end_id", "pad_id", "stop_ids"):
        assert getattr(second, name) == getattr(first, name), name
    assert second.control_ids == first.control_ids
    assert second.fingerprint == first.fingerprint
    assert (second.added_chatml, second.notice) == ((), None)
    second.save(tmp_path / "again")
    for file in sorted((tmp_path / "saved").iterdir()):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_a_base_s_own_files_are_copied_byte_for_byte_where_they_say_what_is_trained(
    tmp_path: Path,
) -> None:
    OURS.save(tmp_path / "base")
    others = {
        "added_tokens.json": b'{ "<think>": 4 }\n\n',
        "vocab.json": b"{}",
        "merges.txt": b"#version: 0.2\n",
        "tokenizer.json": (BASE / "tokenizer.json").read_bytes(),
    }
    changed = {
        "special_tokens_map.json": b'{"eos_token":   "<|endoftext|>"}',
        "tokenizer_config.json": b'{"tokenizer_class": "Qwen2Tokenizer",\n\n "x": 1}',
        "generation_config.json": b'{"temperature": 0.6, "eos_token_id": 0}',
    }
    for name, content in (others | changed).items():
        (tmp_path / "base" / name).write_bytes(content)
    (tmp_path / "base" / "config.json").write_bytes(b"{}")
    Tokenizer.load(tmp_path / "base").save(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").iterdir()} == {*others, *changed}
    for name, content in others.items():
        assert (tmp_path / "saved" / name).read_bytes() == content
    saved = [json.loads((tmp_path / "saved" / name).read_text("utf-8")) for name in changed]
    assert saved[0]["eos_token"] == saved[1]["eos_token"] == "<|im_end|>"
    assert saved[1]["x"] == 1
    assert saved[2] == {"bos_token_id": None, "eos_token_id": [2, 0], "pad_token_id": OURS.pad_id}


def test_saving_over_the_place_it_came_from_loses_nothing(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").unlink()
    tokenizer.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("place", ["config", "list", "jinja"])
def test_a_base_s_chat_template_is_handed_over_and_not_saved(place: str, tmp_path: Path) -> None:
    OURS.save(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    if place == "config":
        edit_json(config, chat_template="{{ hidden }}")
    elif place == "list":
        named = {"name": "tool_use", "template": "no"}
        default = {"name": "default", "template": "{{ hidden }}"}
        edit_json(config, chat_template=[named, default])
    else:
        edit_json(config, chat_template="older")
        (tmp_path / "chat_template.jinja").write_text("{{ hidden }}")
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.base_chat_template == "{{ hidden }}"
    tokenizer.save(tmp_path / "saved")
    assert not any("{{ hidden }}" in f.read_text("utf-8") for f in (tmp_path / "saved").iterdir())
    assert "chat_template" not in (tmp_path / "saved" / "tokenizer_config.json").read_text()
    assert Tokenizer.load(tmp_path / "saved").base_chat_template is None


def test_added_chatml_stands_in_every_file_that_lists_tokens(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path)
    listed = {"2": {"content": "</s>", "special": True}}
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"add_bos_token": True, "legacy": True, "added_tokens_decoder": listed})
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_id == 1
    tokenizer.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    start, end = tokenizer.start_id, tokenizer.end_id
    assert config["added_tokens_decoder"][str(end)]["content"] == "<|im_end|>"
    assert config["legacy"] is False
    added = json.loads((tmp_path / "saved" / "added_tokens.json").read_text())
    assert added == {"<|im_start|>": start, "<|im_end|>": end}


def test_the_fingerprint_follows_whatever_decides_ids(tmp_path: Path) -> None:
    OURS.save(tmp_path)
    assert Tokenizer.load(tmp_path).fingerprint == OURS.fingerprint
    edit_json(tmp_path / "tokenizer_config.json", padding_side="left")
    assert Tokenizer.load(tmp_path).fingerprint == OURS.fingerprint
    edit_json(
        tmp_path / "tokenizer_config.json", added_tokens_decoder={"9000": {"content": "<new>"}}
    )
    assert Tokenizer.load(tmp_path).fingerprint != OURS.fingerprint


# transformers as the judge


def _render_by_hand(tokenizer: Tokenizer, messages: list[Message]) -> list[int]:
    ids = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for segment in render(messages):
        ids += (
            [tokenizer.encode_control(segment.text)]
            if segment.control
            else tokenizer.encode(segment.text)
        )
    return ids


@pytest.mark.parametrize(
    ("kind", "model_type"),
    [
        ("ours", "qwen3"),
        ("ours", "llama"),
        ("llama3", "llama"),
        ("llama2.json", "llama"),
        ("llama2.json as a fast one", "llama"),
    ],
)
def test_transformers_makes_the_same_ids_of_what_is_saved(
    kind: str, model_type: str, tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    if kind == "ours":
        tokenizer = OURS
    elif kind == "llama3":
        tokenizer = Tokenizer.load(write_llama3(tmp_path))
    else:
        name = "PreTrainedTokenizerFast" if "fast" in kind else "LlamaTokenizer"
        tokenizer = Tokenizer.load(write_llama2_json(tmp_path, name))
    tokenizer.save(tmp_path / "saved")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"model_type": model_type}))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    theirs.save_pretrained(tmp_path / "theirs")
    (tmp_path / "theirs" / "config.json").write_text(json.dumps({"model_type": model_type}))
    messages = [
        Message("system", "You are 민수."),
        Message("user", "the fox\n\n  1 + 1 = 2?\t안녕 👍🏽 <br>"),
        Message("assistant", "fox, 네.\n"),
        Message("user", "ㅋㅋ 12345 the the"),
        Message("assistant", "what's   up"),
    ]
    expected = _render_by_hand(tokenizer, messages)
    bos = "" if tokenizer.bos_id is None else "{{ bos_token }}"
    for read in (theirs, AutoTokenizer.from_pretrained(tmp_path / "theirs")):
        assert len(read) == tokenizer.vocab_size
        assert set(read.added_tokens_decoder) == tokenizer.control_ids
        turns = [{"role": m.role, "content": m.content} for m in messages]
        ids = read.apply_chat_template(turns, chat_template=bos + CHAT_TEMPLATE, return_dict=False)
        assert ids == expected
        assert read.decode(tokenizer.encode("가 x , y ."), clean_up_tokenization_spaces=False) == (
            "가 x , y ."
        )
    if kind == "ours":
        assert (theirs.eos_token_id, theirs.pad_token_id) == (OURS.end_id, OURS.pad_id)
        text = "\t  1999년 <br>\n\n안녕!"
        assert theirs(text).input_ids == OURS.encode(text)


# Files that can't be read


def test_a_file_can_be_given_instead_of_its_directory(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path).joinpath("tokenizer.model").rename(tmp_path / "our.model")
    by_directory = Tokenizer.load(tmp_path)
    assert Tokenizer.load(tmp_path / "our.model").fingerprint == by_directory.fingerprint
    write_llama3(tmp_path)  # now there are two tokenizers, and a .model was asked for
    assert Tokenizer.load(tmp_path / "our.model").encode("fox") == by_directory.encode("fox")
    assert Tokenizer.load(tmp_path).encode("fox") != by_directory.encode("fox")


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere: no such directory; give a directory"):
        Tokenizer.load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json and no .model; give a"):
        Tokenizer.load(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"a.model, b.model; give a directory with"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "fact"),
    [
        (b'{"version": ', r"tokenizer.json: not JSON \(.*\); fetch the file again"),
        (b"\xff\xfe", r"tokenizer.json: not JSON"),
        (b"[]", r"tokenizer.json: holds no JSON object; fetch the file again"),
        (b"{}", r"tokenizer.json: has no model with a vocabulary; give a tokenizer.json"),
        (
            b'{"model": {"vocab": {"a": 0}, "type": "BPE"}}',
            r"tokenizers can't read it \(.*\); fetch",
        ),
    ],
)
def test_a_broken_tokenizer_json_is_named(content: bytes, fact: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(ValueError, match=fact):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"junk", b"IQ== 0\nIg== 1\n", b"\x0a\xff\xff"])
def test_what_is_no_sentencepiece_model_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.model: not a sentencepiece model; give one"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("decoder", "fact"),
    [
        ({"type": "WordPiece", "prefix": "##", "cleanup": True}, "its decoder is WordPiece; use"),
        ({"type": "BPEDecoder", "suffix": "</w>"}, "its decoder is BPEDecoder; use"),
        (None, "its decoder is missing; use a base with a byte-level or sentencepiece tokenizer"),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused_by_name(
    decoder: dict[str, object] | None, fact: str, tmp_path: Path
) -> None:
    write_llama2_json(tmp_path)
    edit_json(tmp_path / "tokenizer.json", decoder=decoder)
    with pytest.raises(ValueError, match=rf"tokenizer.json: .*{fact}"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("write", [write_llama3, write_llama2_json])
@pytest.mark.parametrize("is_inside", [False, True], ids=["alone", "in a sequence"])
def test_a_normalizer_that_strips_is_refused_as_no_newline_would_follow_a_role(
    is_inside: bool, write: Callable[[Path], Path], tmp_path: Path
) -> None:
    step: dict[str, object] = {"type": "Strip", "strip_left": False, "strip_right": True}
    if is_inside:
        inner = {"type": "Sequence", "normalizers": [step]}
        step = {"type": "Sequence", "normalizers": [{"type": "NFC"}, inner]}
    write(tmp_path)
    edit_json(tmp_path / "tokenizer.json", normalizer=step)
    error = r"tokenizer\.json: its normalizer strips white space, .* newline after each role; use a"
    with pytest.raises(ValueError, match=error):
        Tokenizer.load(tmp_path)


def test_a_model_that_sentencepiece_refuses_is_named(tmp_path: Path) -> None:
    # A lone piece, well-formed as a message, but a model without an unknown piece is none.
    (tmp_path / "tokenizer.model").write_bytes(b"\x0a\x03\x0a\x01a")
    with pytest.raises(ValueError, match=r"tokenizer.model: not a sentencepiece model; give one"):
        Tokenizer.load(tmp_path)


def test_a_tensor_of_ids_is_decoded_without_its_control_tokens(tokenizer: Tokenizer) -> None:
    ids = torch.tensor([tokenizer.start_id, *tokenizer.encode("안녕"), tokenizer.end_id])
    assert tokenizer.decode(ids, skip_control=True) == "안녕"
