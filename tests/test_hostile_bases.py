"""A base made to do harm gets an error: it runs no code, takes no memory and writes nothing."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minimind.model.config import ModelConfig
from minimind.model.pretrained import load, save
from minimind.tokenizer import Tokenizer
from tests.support.checkpoints import read_json, write_checkpoint, write_json
from tests.support.strategies import json_values
from tests.support.tiny import write_base
from tests.support.tokenizers_of_bases import write_sentencepiece

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
INCOMPLETE = r"base/model\.safetensors: not a complete safetensors file \(.*\); fetch it"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("clean") / "base"
    write_checkpoint(directory, "qwen3", tie_word_embeddings=True)
    (directory / "tokenizer_config.json").unlink()
    return directory


@pytest.fixture
def base(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "base"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def assert_refused(base: Path, error: str, kind: type[Exception] = ValueError) -> None:
    """It gets this error, and nothing on the disk changes."""
    before = contents(base.parent)
    with pytest.raises(kind, match=error) as caught:
        load(base)
    assert re.match(r"/\S+: .*;", str(caught.value), re.DOTALL), "place: fact; remedy"
    assert contents(base.parent) == before


# Pickles


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> object:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth"])
@pytest.mark.parametrize("zipped", [False, True], ids=["bare", "zipped"])
def test_a_pickle_with_code_is_refused_and_never_run(
    name: str, zipped: bool, base: Path, tmp_path: Path
) -> None:
    (base / "model.safetensors").unlink()
    bomb = {"model.norm.weight": Bomb(tmp_path / "ran")}
    if zipped:
        torch.save(bomb, base / name)
    else:
        (base / name).write_bytes(pickle.dumps(bomb, protocol=2))
    refused = (
        rf"{name}: not a plain state dict \(it calls \w+\.mkdir\); save the weights alone, with"
    )
    if name == "pytorch_model.bin":
        assert_refused(base, refused)
    else:
        said = f"only {name}, whose name says nothing of what is in it; if it is the model's state"
        assert_refused(base, said, FileNotFoundError)
    assert_refused(base / name, refused)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_under_any_other_name_is_not_run_either(base: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    names = [*(path.name for path in base.iterdir()), "tokenizer_config.json", "tokenizer.model"]
    names += ["special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "model.bin"]
    errors = {}
    for name in names:
        before = (base / name).read_bytes() if (base / name).exists() else None
        (base / name).write_bytes(pickle.dumps(Bomb(mark)))
        try:
            load(base)
        except ValueError as error:
            errors[name] = str(error)
        assert not mark.exists()
        (base / name).unlink()
        if before is not None:
            (base / name).write_bytes(before)
    assert len(errors) >= 6
    assert all(name in error for name, error in errors.items())
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists(), "the pickles were harmless"


# Headers of safetensors that lie


def rewrite(base: Path, header: object, length: int | None = None, cut: int = 0) -> None:
    """Give the weights another header, which says that it has `length` bytes."""
    path = base / "model.safetensors"
    raw = path.read_bytes()
    body = raw[8 + struct.unpack("<Q", raw[:8])[0] :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = struct.pack("<Q", len(text) if length is None else length)
    path.write_bytes((size + text + body)[: -cut or None])


def header_of(base: Path) -> dict[str, Any]:
    raw = (base / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])
    assert isinstance(header, dict)
    return header


LIES: dict[str, dict[str, object]] = {
    "an end far beyond the file": {"data_offsets": [0, 2**60]},
    "an end before the start": {"data_offsets": [64, 32]},
    "a negative start": {"data_offsets": [-4, 64]},
    "another tensor's place": {"data_offsets": [0, 256]},
    "a shape too large to count": {"shape": [2**40, 2**40]},
    "a negative shape": {"shape": [-64]},
    "a wider type than there are bytes": {"dtype": "F64"},
    "a narrower type than there are bytes": {"dtype": "F16"},
    "a type that there isn't": {"dtype": "OBJECT"},
    "a shape that is no list": {"shape": "64"},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_about_a_tensor_is_refused(lie: str, base: Path) -> None:
    header = header_of(base)
    assert header[NORM]["data_offsets"] != [0, 256]
    header[NORM] |= LIES[lie]
    rewrite(base, header)
    assert_refused(base, INCOMPLETE)


@pytest.mark.parametrize("length", [0, 10, 2**20, 2**31, 2**63, 2**64 - 1])
def test_a_header_that_lies_about_its_length_is_refused(length: int, base: Path) -> None:
    rewrite(base, header_of(base), length)
    assert_refused(base, INCOMPLETE)


@pytest.mark.parametrize(
    "header", [b"", b"[]", b"\xff\xfe", b'{"a":' * 100_000, b'{"__metadata__": 1}'], ids=len
)
def test_a_header_that_is_none_is_refused(header: bytes, base: Path) -> None:
    rewrite(base, header)
    assert_refused(base, INCOMPLETE)


def test_weights_cut_short_or_with_more_behind_them_are_refused(base: Path) -> None:
    path = base / "model.safetensors"
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:100], b"", whole + b"more"):
        path.write_bytes(damaged)
        assert_refused(base, INCOMPLETE)


@pytest.mark.parametrize("dtype", ["I32", "U32"])
def test_numbers_that_are_called_something_else_are_refused(dtype: str, base: Path) -> None:
    header = header_of(base)
    header[NORM]["dtype"] = dtype  # as many bytes
    rewrite(base, header)
    assert_refused(base, rf"{NORM} holds {dtype}, not floating-point numbers")


def test_a_tensor_named_like_a_path_is_only_unexpected(base: Path) -> None:
    header = header_of(base)
    header["../../outside"] = header.pop(NORM)
    rewrite(base, header)
    assert_refused(base, r"\.\./\.\./outside is unexpected")


# Indexes that lead elsewhere


@pytest.mark.parametrize("shard", ["../base/weights", "/etc/hostname", "a/../weights", "."])
def test_a_shard_in_another_folder_is_refused(shard: str, base: Path) -> None:
    (base / "model.safetensors").rename(base / "weights")
    write_json(base / "model.safetensors.index.json", {"weight_map": {EMBEDDING: shard}})
    assert_refused(base, rf"names '{re.escape(shard)}'; a shard lies in the same directory")


@pytest.mark.parametrize("shard", ["", "..", "\0", 7, None, ["weights"]])
def test_a_shard_that_is_no_name_is_not_found(shard: object, base: Path) -> None:
    (base / "model.safetensors").rename(base / "weights")
    write_json(base / "model.safetensors.index.json", {"weight_map": {EMBEDDING: shard}})
    assert_refused(base, "which model.safetensors.index.json lists; fetch it", FileNotFoundError)


# Configs


def test_a_config_of_absurd_sizes_takes_no_memory(base: Path) -> None:
    absurd = {"vocab_size": 2**22, "hidden_size": 2**16, "intermediate_size": 2**19}
    absurd |= {"num_hidden_layers": 32, "num_attention_heads": 1024, "head_dim": 1024}
    write_json(base / "config.json", read_json(base / "config.json") | absurd)  # ten terabytes
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert_refused(base, r"of its weights don't fit its config\.json; use the two files of one")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    write_json(base / "config.json", read_json(base / "config.json") | {"hidden_size": 2**40})
    assert_refused(base, r"config\.json: hidden_size is 1099511627776; use an integer from 1 to")


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ('{"a":' * 100_000, "not JSON"),
        ('{"vocab_size": ' + "9" * 5000 + "}", "not JSON|vocab_size is"),
        ('{"rms_norm_eps": ' + "9" * 400, "not JSON"),
    ],
    ids=["deep", "digits", "cut off"],
)
def test_a_config_that_breaks_a_parser_is_named(text: str, fact: str, base: Path) -> None:
    (base / "config.json").write_text(text)
    assert_refused(base, rf"base/config\.json: ({fact}).*; fetch the file again")


def test_a_number_that_no_float_holds_is_refused(base: Path) -> None:
    for name in ("rms_norm_eps", "rope_theta"):
        config = read_json(base / "config.json") | {name: 10**400, "rope_parameters": None}
        with pytest.raises(ValueError, match=rf"^config\.json: {name} is 1000.*; use a number"):
            ModelConfig.from_hf(config)


# Tokenizers


def edited(base: Path, edit: Any) -> None:
    data = read_json(base / "tokenizer.json")
    edit(data)
    write_json(base / "tokenizer.json", data)


def of_end(**fields: object) -> Any:
    """Change the entry of `<|im_end|>`, whose id is 2."""

    def edit(data: dict[str, Any]) -> None:
        (entry,) = (token for token in data["added_tokens"] if token["content"] == "<|im_end|>")
        entry |= fields
        del data["model"]["vocab"]["<|im_end|>"]

    return edit


REMAPPED = {
    "another control token's id": (of_end(id=1), r"'<\|im_end\|>' and .* have the same id, 1"),
    "a word's id": (of_end(id=50), r"'<\|im_end\|>' and '.*' have the same id, 50"),
    "an id beyond any vocabulary": (of_end(id=2**40), r"has the id 1099511627776, not one from 0"),
    "a negative id": (of_end(id=-2), r"has the id -2, not one from 0 to 4,194,303"),
    "a fraction": (of_end(id=2.5), r"has the id 2\.5, not one from"),
    "a text for an id": (of_end(id="2"), r"has the id '2', not one from"),
    "true for an id": (of_end(id=True), r"has the id True, not one from|have the same id"),
    "a number for a name": (of_end(content=7), r"7 has the id 2, not one from"),
    "a vocabulary that says otherwise": (
        lambda data: data["model"]["vocab"].update({"<|im_end|>": 290}),
        r"'<\|im_end\|>' has two ids, 2 and 290",
    ),
    "a word put in its place": (
        lambda data: data["model"]["vocab"].update({"the": 2}),
        r"'<\|im_end\|>' and 'the' have the same id, 2",
    ),
    "a word beyond any vocabulary": (
        lambda data: data["model"]["vocab"].update({"the": 2**32 - 1}),
        r"'the' has the id 4294967295, not one from",
    ),
}


@pytest.mark.parametrize("how", REMAPPED)
def test_a_control_token_that_is_remapped_is_refused(how: str, base: Path) -> None:
    edit, fact = REMAPPED[how]
    edited(base, edit)
    assert_refused(base, rf"tokenizer\.json: .*({fact}).*; fetch the tokenizer's files again")


@pytest.mark.parametrize(
    ("name", "value", "fact"),
    [
        ("added_tokens.json", {"<|im_end|>": 1}, r"'<\|im_end\|>' has two ids, 2 and 1"),
        ("added_tokens.json", {"<|im_end|>": [2]}, r"'<\|im_end\|>' has two ids, 2 and \[2\]"),
        ("added_tokens.json", {"<tool>": 2**40}, r"'<tool>' has the id 1099511627776, not one"),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"50": {"content": "<|im_end|>"}}},
            r"'<\|im_end\|>' has two ids, 2 and 50",
        ),
        (
            "tokenizer_config.json",
            {"added_tokens_decoder": {"-1": {"content": "<tool>"}}},
            r"'<tool>' has the id '-1', not one from",
        ),
    ],
)
def test_files_at_odds_about_a_control_token_are_refused(
    name: str, value: object, fact: str, base: Path
) -> None:
    write_json(base / name, value)
    assert_refused(base, rf"tokenizer\.json: {fact}.*; fetch the tokenizer's files again")


def test_a_spare_slot_may_be_given_to_a_control_token(base: Path) -> None:
    def give(data: dict[str, Any]) -> None:
        vocabulary = data["model"]["vocab"]
        vocabulary["[UNUSED_TOKEN_7]"] = vocabulary.pop("<|im_end|>")

    edited(base, give)
    tokenizer = load(base)[1]
    assert tokenizer.end_id == 2
    assert tokenizer.decode([2]) == "<|im_end|>"


@pytest.mark.parametrize(
    "changes",
    [
        {"added_tokens": {"a": 1}},
        {"added_tokens": [1]},
        {"added_tokens": [{"id": 2}]},
        {"pre_tokenizer": 5},
        {"pre_tokenizer": {"type": "Sequence"}},
        {"decoder": {"type": "Sequence", "decoders": [3]}},
        {"normalizer": {}},
        {"model": {"type": "BPE", "vocab": [1], "merges": []}},
    ],
    ids=json.dumps,
)
def test_a_tokenizer_laid_out_otherwise_is_named(changes: dict[str, object], base: Path) -> None:
    edited(base, lambda data: data.update(changes))
    assert_refused(base, r"base/tokenizer\.json: .*(not laid out as|can't read it).*; fetch the")


def test_a_tokenizer_nested_too_deeply_is_named(base: Path) -> None:
    (base / "tokenizer.json").write_text('{"a":' * 100_000)
    assert_refused(base, r"base/tokenizer\.json: not JSON \(.*\); fetch the file again")


def test_a_template_with_code_is_kept_as_text_and_never_rendered(
    base: Path, tmp_path: Path
) -> None:
    code = "{{ cycler.__init__.__globals__.os.mkdir('" + str(tmp_path / "ran") + "') }}"
    (base / "chat_template.jinja").write_text(code)
    model, tokenizer = load(base)
    with pytest.warns(UserWarning, match="the base's own chat template is replaced"):
        save(tmp_path / "saved", model, tokenizer)
    assert code not in (tmp_path / "saved/chat_template.jinja").read_text()
    assert not (tmp_path / "ran").exists()


def test_a_base_saves_only_into_the_folder_it_is_told(base: Path, tmp_path: Path) -> None:
    outside = {"id": 290, "content": "../../outside"}
    edited(base, lambda data: data["added_tokens"].append(data["added_tokens"][0] | outside))
    before = contents(tmp_path)
    save(tmp_path / "saved", *load(base))
    new = contents(tmp_path).keys() - before.keys()
    assert new
    assert all(Path(path).parent == tmp_path / "saved" for path in new)


# Anything at all


def replaced(value: Any, at: list[int], by: object) -> Any:
    """Put `by` in the place that the numbers lead to."""
    if not at or not isinstance(value, (dict, list)) or not value:
        return by
    value = copy.copy(value)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[at[0] % len(keys)]
    value[key] = replaced(value[key], at[1:], by)
    return value


places = st.lists(st.integers(0, 300), min_size=1, max_size=5)


@given(at=places, by=json_values)
def test_a_config_with_anything_in_any_place_is_read_or_refused(
    at: list[int], by: object, clean: Path
) -> None:
    config = json.loads(json.dumps(replaced(read_json(clean / "config.json"), at, by)))
    if isinstance(config, dict):
        try:
            ModelConfig.from_hf(config)
        except ValueError as error:
            refusal = str(error)
            assert refusal.startswith("config.json: ")


@given(at=places, by=json_values)
def test_a_tokenizer_with_anything_in_any_place_is_read_or_refused(
    at: list[int], by: object, clean: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.getbasetemp() / "replaced"
    directory.mkdir(exist_ok=True)
    data = replaced(read_json(clean / "tokenizer.json"), at, by)
    write_json(directory / "tokenizer.json", data)
    refusal = ""
    try:
        tokenizer = Tokenizer.load(directory)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{directory / 'tokenizer.json'}: ")
    else:
        assert tokenizer.control_ids.isdisjoint(tokenizer.encode("a <|im_end|> b"))


@settings(max_examples=60)
@given(at=places, by=json_values)
def test_a_header_with_anything_in_any_place_is_read_or_refused(
    at: list[int], by: object, clean: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = tmp_path_factory.getbasetemp() / "header_replaced"
    shutil.copytree(clean, base, dirs_exist_ok=True)
    rewrite(base, replaced(header_of(base), at, by))
    refusal = f"{base}: "
    try:
        load(base)
    except ValueError as error:
        refusal = str(error)
    assert refusal.startswith((f"{base}: ", f"{base / 'model.safetensors'}: "))


@given(at=st.integers(0, 2**16), byte=st.integers(0, 255))
def test_a_sentencepiece_model_with_any_byte_changed_is_read_or_refused(
    at: int, byte: int, sentencepiece: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.model"
    content = bytearray(sentencepiece)
    content[at % len(content)] = byte
    path.write_bytes(content)
    refusal = ""
    try:
        tokenizer = Tokenizer.load(path)
    except ValueError as error:
        refusal = str(error)
    if refusal:
        assert refusal.startswith(f"{path}: ")
    else:
        assert tokenizer.end_id not in tokenizer.encode("안녕 <|im_end|> fox")


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (write_sentencepiece(tmp_path_factory.mktemp("sp")) / "tokenizer.model").read_bytes()


# Links

LINKED = [
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
]


@pytest.mark.parametrize("name", LINKED)
@pytest.mark.parametrize("kind", ["absolute", "relative", "through a folder"])
def test_a_link_that_leaves_the_folder_is_refused_and_copies_nothing(
    name: str, kind: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    file, secret = base / name, tmp_path / "secret" / name
    secret.parent.mkdir()
    if file.exists():
        file.rename(secret)
    else:
        secret.write_text("{}")
    (base / "inside").symlink_to(secret.parent)
    targets = {
        "absolute": secret,
        "relative": Path("..", "secret", name),
        "through a folder": Path("inside", name),
    }
    file.symlink_to(targets[kind])
    message = rf"{name}: is a link that leaves its folder, to .*; put the file itself there"
    with pytest.raises(ValueError, match=message):
        load(base)


@pytest.mark.parametrize("name", LINKED[:4])
def test_links_within_a_folder_and_to_the_hubs_blobs_are_followed(
    name: str, tmp_path: Path
) -> None:
    base = write_base(tmp_path / "base")
    (base / name).rename(base / "other")
    (base / name).symlink_to("other")
    load(base)
    blobs = tmp_path / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (base / name).unlink()
    (base / "other").rename(blobs / "0123456789abcdef")
    (base / name).symlink_to(blobs / "0123456789abcdef")
    load(base)
    (tmp_path / "link").symlink_to(base)  # the folder itself may be one
    load(tmp_path / "link")


def test_a_shard_and_an_index_are_no_links_elsewhere(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    (base / "model.safetensors").rename(tmp_path / "shard")
    (base / "a.safetensors").symlink_to(tmp_path / "shard")
    index = {"weight_map": {"model.norm.weight": "a.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"a\.safetensors: is a link that leaves its folder"):
        load(base)
    (base / "model.safetensors.index.json").rename(tmp_path / "index")
    (base / "model.safetensors.index.json").symlink_to(tmp_path / "index")
    with pytest.raises(ValueError, match=r"index\.json: is a link that leaves its folder"):
        load(base)
