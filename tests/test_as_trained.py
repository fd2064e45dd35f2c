"""A saved folder serves what was trained: ids, mask, BOS, end and padding, by transformers."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from minimind.data.masking import encode_conversation, encode_prompt
from minimind.model.pretrained import BASE, save_tokenizer
from minimind.tokenizer import Tokenizer
from tests.support.strategies import texts
from tests.support.tokenizers_of_bases import (
    LINES,
    edit_json,
    write_llama2_json,
    write_llama3,
    write_sentencepiece,
    write_unigram,
)

BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": True,
    "trim_offsets": False,
    "use_regex": True,
}
KINDS: dict[str, tuple[Callable[[Path], Path], str]] = {  # and the token that may be its BOS
    "llama3": (write_llama3, "<|begin_of_text|>"),
    "llama2.json": (write_llama2_json, "<s>"),
    "llama2.model": (write_sentencepiece, "<s>"),
    "unigram.model": (lambda folder: write_sentencepiece(folder, "unigram"), "<s>"),
    "ours": (lambda folder: write_ours(folder), "<|endoftext|>"),
}
CHAT = [
    {"role": "system", "content": "You are 민수."},
    {"role": "user", "content": "the fox\n\n  1 + 1 = 2?\t안녕 👍🏽 <br>"},
    {"role": "assistant", "content": "fox, 네.\n"},
    {"role": "user", "content": "ㅋㅋ 12345 the the"},
    {"role": "assistant", "content": "what's   up"},
]
PLAIN = ["the fox 12345", "안녕하세요 오늘\n", "  two spaces", "fox"]


def write_ours(folder: Path) -> Path:
    Tokenizer.load(BASE).save(folder)
    return folder


def read(path: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads(path.read_text("utf-8"))
    return value


def puts(token: str, id: int, at_end: bool = False) -> dict[str, object]:
    """A post-processor that puts a token before a text, or after it."""
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, special] if at_end else [special, text],
        "pair": [special, text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
    }


def write_base(
    folder: Path, kind: str, template: str | None, flag: bool | None, processor: str | None
) -> Path:
    """A base that asks for its BOS in some of the places, or forbids it there."""
    write, bos = KINDS[kind]
    write(folder)
    config = folder / "tokenizer_config.json"
    if not config.exists():
        config.write_text("{}")
    edit_json(config, chat_template=template, add_bos_token=flag, bos_token=bos)
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(write(folder.with_name("again")))
        put = puts(bos, tokenizer.encode_control(bos))
        (eos,) = [tokenizer.decode([tokenizer.stop_ids[1]])]
        steps = {
            None: None,
            "bytes": BYTE_LEVEL,
            "bos": put,
            "both": {"type": "Sequence", "processors": [BYTE_LEVEL, put]},
            "eos": puts(eos, tokenizer.encode_control(eos), at_end=True),
        }
        edit_json(folder / "tokenizer.json", post_processor=steps[processor])
    return folder


def served(tokenizer: Tokenizer, folder: Path, model_type: str):
    """The saved folder, by transformers."""
    from transformers import AutoTokenizer

    save_tokenizer(folder, tokenizer)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return AutoTokenizer.from_pretrained(folder)


def assert_served_as_trained(tokenizer: Tokenizer, theirs, mask: bool = True) -> None:
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    example = encode_conversation(CHAT, tokenizer)
    encoded = theirs.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded["input_ids"] == list(example.input_ids)
    if mask:
        assert encoded["assistant_masks"] == list(map(int, example.loss_mask))
    prompt = theirs.apply_chat_template(CHAT[:4], add_generation_prompt=True, return_dict=False)
    assert prompt == encode_prompt(CHAT[:4], tokenizer)
    assert prompt.count(tokenizer.bos_id) == len(first)
    for text in PLAIN:
        assert theirs(text)["input_ids"] == first + tokenizer.encode(text)
    assert theirs.bos_token_id == tokenizer.bos_id
    assert theirs.eos_token_id == tokenizer.end_id
    assert theirs.pad_token_id == tokenizer.pad_id
    assert len(theirs) == tokenizer.vocab_size
    text = "가 x , y ."
    assert theirs.decode(tokenizer.encode(text)) == text


# Where a BOS may come from

TEMPLATES = {
    None: None,
    "silent": "{% for m in messages %}{{ m['content'] }}{% endfor %}",
    "named": "{% set x = 1 %}{{- bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", [*TEMPLATES, "spelled"])
@pytest.mark.parametrize("flag", [None, True, False])
def test_a_saved_folder_serves_the_ids_of_training_wherever_a_bos_comes_from(
    kind: str, template: str | None, flag: bool | None, tmp_path: Path
) -> None:
    bos = KINDS[kind][1]
    is_model = kind.endswith(".model")
    text = "{{ '" + bos + "' }}..." if template == "spelled" else TEMPLATES[template]
    for processor in [None] if is_model else ["bos", "both", "bytes", "eos", None]:
        base = write_base(tmp_path / f"{processor}", kind, text, flag, processor)
        says = [True] if template in ("named", "spelled") else []
        says += [] if flag is None else [flag]
        says += [] if is_model else [processor in ("bos", "both")]
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            tokenizer = Tokenizer.load(base)
        expected = says[0] if says else True  # sentencepiece's default
        assert tokenizer.bos_id == (tokenizer.encode_control(bos) if expected else None)
        assert len(told) == (len(set(says)) == 2)
        for model_type in ("llama", "qwen3"):
            theirs = served(tokenizer, base / model_type, model_type)
            assert_served_as_trained(tokenizer, theirs)
        config = read(base / "llama/tokenizer_config.json")
        assert config["add_bos_token"] is expected
        again = Tokenizer.load(base / "llama")  # tells nothing: a warning is an error
        assert (again.bos_id, again.fingerprint) == (tokenizer.bos_id, tokenizer.fingerprint)


TURN = "{{ m['role'] + ': ' + m['content'] }}"
BEGINS = {  # a template's text -> whether it begins with <s>
    "{{- bos_token }}{% for m in messages %}" + TURN + "{% endfor %}": True,
    "<s>{% for m in messages %}" + TURN + "</s>{% endfor %}": True,
    "{# a note #}\n{%- set x = '}}' -%}\n{{ '<s>' }}{% for m in messages %}...": True,
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}" + TURN: True,
    # Llama 2's, Llama 3's, Mistral's, DeepSeek's and Gemma's ways
    "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'tool' %}{{ raise_exception('No') }}{% endif %}"
    "{% set c = s + m['content'] %}{{ bos_token + '[INST] ' + c.strip() }}{% endfor %}": True,
    "{% set all = messages %}{% for m in all %}{% set c = '<h>' + m['role'] + m['content'] %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}": True,
    '{%- set s = messages[0]["content"] %}{{- bos_token }}{{ s }}': True,
    "{% set ns = namespace(text='') %}{% for m in messages %}{% set ns.text = m['content'] %}"
    "{% endfor %}{{bos_token}}{{ns.text}}": True,
    "{%- macro one(m) -%}{{ 'x' + m.content }}{%- endmacro -%}{{ bos_token }}...": True,
    # At the end of turns, in a comment, in a macro, in a text
    "{% for m in messages %}" + TURN + "<s>{% endfor %}": False,
    "{% for m in messages %}" + TURN + "{{ bos_token }}{% endfor %}": False,
    "{% for m in messages %}{{ m.content + '<s>' }}{% endfor %}": False,
    "{% for m in messages %}{% set c = m.content + bos_token %}{{ c }}{% endfor %}": False,
    "{% set end = bos_token %}{% for m in messages %}{{ m.content }}{{ end }}{% endfor %}": False,
    "{# no bos_token, no <s> #}{% for m in messages %}" + TURN + "{% endfor %}": False,
    "{% macro end() %}{{ bos_token }}{% endmacro %}{% for m in messages %}" + TURN + "...": False,
    "You are kind.<s>{% for m in messages %}" + TURN + "{% endfor %}": False,
    "{{ 'You are kind.' + bos_token }}{% for m in messages %}" + TURN + "{% endfor %}": False,
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}<s>{% endfor %}...": False,
    "{% if bos_token is defined %}{% endif %}{% for m in messages %}" + TURN + "...": False,
    "": False,
}


@pytest.mark.parametrize("template", BEGINS)
def test_only_a_bos_before_every_message_counts_as_the_template_s(
    template: str, tmp_path: Path
) -> None:
    """With one token for beginnings and ends, a template spells it at the end of each turn."""
    base = write_base(tmp_path, "llama2.json", template, None, None)
    edit_json(base / "tokenizer_config.json", eos_token="<s>")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        tokenizer = Tokenizer.load(base)
    assert (tokenizer.bos_id is not None) == BEGINS[template]
    assert [str(one.message).count("its chat template") for one in told] == [1] * BEGINS[template]


def test_contradicting_files_are_named_with_what_is_done(tmp_path: Path) -> None:
    """As DeepSeek-R1-Distill's, and as the reverse."""
    base = write_base(tmp_path, "llama3", TEMPLATES["named"], True, "bytes")
    with pytest.warns(UserWarning, match="first") as told:
        Tokenizer.load(base)
    assert str(told[0].message) == (
        f"{base}/tokenizer.json: its chat template and add_bos_token in tokenizer_config.json put "
        "<|begin_of_text|> first, its post-processor doesn't; trained and saved with it"
    )
    edit_json(base / "tokenizer_config.json", chat_template=None, add_bos_token=False)
    edit_json(base / "tokenizer.json", post_processor=puts("<|begin_of_text|>", 436))
    with pytest.warns(UserWarning, match=r"doesn't; trained and saved without it$"):
        Tokenizer.load(base)


def test_a_bos_that_opens_each_turn_is_not_put_before_them(tmp_path: Path) -> None:
    """SmolLM2's bos_token is <|im_start|>."""
    write_ours(tmp_path)
    template = "{% for m in messages %}{{ '<|im_start|>' }}{% endfor %}{{ bos_token }}"
    config = {"bos_token": "<|im_start|>", "chat_template": template, "add_bos_token": True}
    edit_json(tmp_path / "tokenizer_config.json", **config)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.bos_id is None
    assert_served_as_trained(tokenizer, served(tokenizer, tmp_path / "saved", "llama"))


# Whatever else could change ids


def test_a_tokenizer_that_can_not_write_all_text_serves_what_it_trains(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(write_unigram(tmp_path))
    theirs = served(tokenizer, tmp_path / "saved", "llama")
    for text in ("the fox", " hello world", "안녕하세요"):
        assert theirs(text)["input_ids"] == tokenizer.encode(text)


@pytest.mark.parametrize("kind", ["llama3", "llama2.json", "ours"])
def test_settings_that_would_change_served_ids_are_not_saved(kind: str, tmp_path: Path) -> None:
    """Truncation, padding, dropout, tokens that take white space, a class with its own code."""
    write_base(tmp_path, kind, None, None, "eos")
    data = read(tmp_path / "tokenizer.json")
    added = [token for token in data["added_tokens"] if token["content"] != "<|im_end|>"]
    last = max([*data["model"]["vocab"].values(), *(token["id"] for token in added)])
    taking = {"id": 2 if kind == "ours" else last + 1, "content": "<|im_end|>", "special": True}
    taking |= {"single_word": True, "lstrip": True, "rstrip": True, "normalized": True}
    edit_json(
        tmp_path / "tokenizer.json",
        added_tokens=[*added, taking],
        model={**data["model"], "dropout": 0.5},
        truncation={
            "direction": "Right",
            "max_length": 3,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        padding={
            "strategy": {"Fixed": 64},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<|pad|>" if kind == "ours" else "<|endoftext|>",
        },
    )
    edit_json(
        tmp_path / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["their.code", None]},
        tokenizer_class="TheirTokenizer",
        add_eos_token=True,
        add_prefix_space=True,
        clean_up_tokenization_spaces=True,
        legacy=True,
    )
    tokenizer = Tokenizer.load(tmp_path)
    assert_served_as_trained(tokenizer, served(tokenizer, tmp_path / "saved", "llama"))


@pytest.mark.parametrize(
    ("named", "stop", "pad"),
    [
        # Llama-3-Instruct: the base's stop is kept in generation_config, and ours is first
        (
            {"eos_token": "<|eot_id|>"},
            ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>"],
            "<|reserved_special_token_2|>",
        ),
        # Qwen-Base: eos is not what a chat ends with
        (
            {"eos_token": "<|end_of_text|>", "pad_token": "<|end_of_text|>"},
            ["<|im_end|>", "<|end_of_text|>"],
            "<|reserved_special_token_2|>",
        ),
        # SmolLM2-Instruct: the padding is the stop token
        (
            {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
            ["<|im_end|>", "<|end_of_text|>"],
            "<|reserved_special_token_2|>",
        ),
        ({"pad_token": "<|eot_id|>"}, ["<|im_end|>", "<|end_of_text|>"], "<|eot_id|>"),
    ],
)
def test_eos_and_pad_are_written_as_trained_in_every_file(
    named: dict[str, str], stop: list[str], pad: str, tmp_path: Path
) -> None:
    write_llama3(tmp_path)
    edit_json(tmp_path / "tokenizer_config.json", **named)
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(named))
    ends = {"eos_token_id": [438, 437], "temperature": 0.6}
    (tmp_path / "generation_config.json").write_text(json.dumps(ends if len(stop) > 2 else {}))
    if named.get("eos_token") == "<|im_end|>":
        (tmp_path / "generation_config.json").write_text('{"eos_token_id": 437}')
    tokenizer = Tokenizer.load(tmp_path)
    assert [tokenizer.decode([id]) for id in tokenizer.stop_ids] == stop
    theirs = served(tokenizer, tmp_path / "saved", "llama")
    assert_served_as_trained(tokenizer, theirs)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        roles = read(tmp_path / "saved" / name)
        assert roles["eos_token"] == "<|im_end|>"
        assert roles["pad_token"] == pad
    assert read(tmp_path / "saved/generation_config.json") == {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": list(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    again = Tokenizer.load(tmp_path / "saved")
    for name in ("bos_id", "stop_ids", "pad_id", "end_of_text_id"):
        assert getattr(again, name) == getattr(tokenizer, name), name


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
@pytest.mark.parametrize("key", ["additional_special_tokens", "extra_special_tokens"])
def test_tokens_that_are_only_named_beside_the_tokenizer_are_not_served(
    name: str, key: str, tmp_path: Path
) -> None:
    """transformers would add them, with ids beyond the model's, and find them in text."""
    write_llama3(tmp_path)
    if name == "special_tokens_map.json":
        (tmp_path / name).write_text("{}")
        key = "additional_special_tokens"
    edit_json(tmp_path / name, **{key: ["fox", {"content": "quick"}, "x"]})
    edit_json(tmp_path / "tokenizer_config.json", split_special_tokens=True)
    tokenizer = Tokenizer.load(tmp_path)
    assert_served_as_trained(tokenizer, served(tokenizer, tmp_path / "saved", "llama"))


def test_no_word_is_made_the_padding(tmp_path: Path) -> None:
    """transformers would take it out of text."""
    write_ours(tmp_path)
    data = read(tmp_path / "tokenizer.json")
    kept = [t for t in data["added_tokens"] if t["content"] in ("<|im_start|>", "<|im_end|>")]
    edit_json(tmp_path / "tokenizer.json", added_tokens=kept)
    edit_json(tmp_path / "tokenizer_config.json", pad_token=None)
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.pad_id is None


@pytest.mark.parametrize("ends", ["2", [None, -1, 1.0, "</s>", True, {}, 10**9], {"a": 1}])
def test_stops_that_are_no_ids_of_control_tokens_are_left_out(ends: object, tmp_path: Path) -> None:
    write_llama3(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    assert Tokenizer.load(tmp_path).stop_ids == (440, 437)


@pytest.mark.parametrize("kind", ["llama3", "llama2.json", "ours"])
@pytest.mark.parametrize("is_listed", [False, True])
def test_added_white_space_is_a_word_and_is_served_as_trained(
    kind: str, is_listed: bool, tmp_path: Path
) -> None:
    """Runs of spaces, as GPT-NeoX, Phi and OLMo add them: no control tokens."""
    write_base(tmp_path, kind, None, None, None)
    data = read(tmp_path / "tokenizer.json")
    added = data["added_tokens"]
    last = max([*data["model"]["vocab"].values(), *(token["id"] for token in added)])
    blank = {}
    for at, name in enumerate(["  ", "    ", "\n\n", "\t"], 1):
        token = {"id": last + at, "content": name, "special": False, "normalized": at > 2}
        added.append(token | {"single_word": False, "lstrip": False, "rstrip": False})
        blank[name] = last + at
    edit_json(tmp_path / "tokenizer.json", added_tokens=added)
    if is_listed:
        listed = {str(token["id"]): token for token in added}
        edit_json(tmp_path / "tokenizer_config.json", added_tokens_decoder=listed)
        (tmp_path / "added_tokens.json").write_text(json.dumps(blank))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.control_ids.isdisjoint(blank.values())
    for text in ("the  fox", "\n\n", "    the\tfox\n\n", "\n\n\n   fox  "):
        assert not tokenizer.control_tokens_in(text)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_control=True) == text
        assert set(blank.values()) & set(ids)
    theirs = served(tokenizer, tmp_path / "saved", "llama")
    assert_served_as_trained(tokenizer, theirs)
    chat = [{"role": role, "content": "a  b\n\n    c\t\n\n"} for role in ("user", "assistant")]
    ids = theirs.apply_chat_template(chat, return_dict=False)
    assert ids == list(encode_conversation(chat, tokenizer).input_ids)
    again = Tokenizer.load(tmp_path / "saved")
    assert (again.fingerprint, again.stop_ids) == (tokenizer.fingerprint, tokenizer.stop_ids)


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_white_space_that_a_sentencepiece_model_defines_is_a_word(
    kind: str, tmp_path: Path
) -> None:
    """As Gemma's runs of newlines."""
    write_sentencepiece(tmp_path, kind, user_defined=["<tool>", "\n\n"])
    tokenizer = Tokenizer.load(tmp_path)
    theirs = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    id = theirs.piece_to_id("\n\n")
    assert id in tokenizer.encode("a\n\nb")
    assert id not in tokenizer.control_ids
    assert_served_as_trained(tokenizer, served(tokenizer, tmp_path / "saved", "llama"))


# sentencepiece's files, converted


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Tokenizer, sentencepiece.SentencePieceProcessor]]:
    """Our tokenizer of a .model, and sentencepiece's without a space before a text."""
    pairs = {}
    for kind, how in itertools.product(("bpe", "unigram"), ("bytes", "unknown", "spaces")):
        folder = tmp_path_factory.mktemp(kind)
        bytes_ = how != "unknown"
        size = 520 if bytes_ else 200
        write_sentencepiece(folder, kind, bytes_, size, (), remove_spaces=how == "spaces")
        content = (folder / "tokenizer.model").read_bytes()
        no_prefix = bytes([3 << 3 | 2, 2, 3 << 3, 0])  # normalizer_spec.add_dummy_prefix: false
        theirs = sentencepiece.SentencePieceProcessor(model_proto=content + no_prefix)
        pairs[f"{kind} {how}"] = Tokenizer.load(folder), theirs
    return pairs


sentences = st.lists(st.sampled_from([w for line in LINES for w in line.split()])).map(" ".join)


@pytest.mark.parametrize("how", ["bytes", "unknown", "spaces"])
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@given(text=st.one_of(sentences, texts()))
def test_a_converted_model_gives_sentencepiece_s_ids(
    kind: str, how: str, text: str, models
) -> None:
    ours, theirs = models[f"{kind} {how}"]
    if not ours.control_tokens_in(text):
        assert ours.encode(text) == theirs.encode(text)


def test_a_model_that_cuts_text_in_another_way_is_refused(tmp_path: Path) -> None:
    write_sentencepiece(tmp_path, "char", byte_fallback=False)
    with pytest.raises(ValueError, match=r"tokenizer\.model: splits text into words or characters"):
        Tokenizer.load(tmp_path)


def test_a_model_is_saved_whole_and_as_a_tokenizer_json(tmp_path: Path) -> None:
    """llama.cpp reads the .model, and puts a space before a text unless it is told not to."""
    write_sentencepiece(tmp_path)
    before = (tmp_path / "tokenizer.model").read_bytes()
    tokenizer = Tokenizer.load(tmp_path)
    save_tokenizer(tmp_path / "saved", tokenizer)
    assert (tmp_path / "saved/tokenizer.model").read_bytes() == before
    config = read(tmp_path / "saved/tokenizer_config.json")
    assert config["add_prefix_space"] is False
    assert config["add_bos_token"] is True
    added = read(tmp_path / "saved/added_tokens.json")
    assert added == {"<|im_start|>": tokenizer.start_id, "<|im_end|>": tokenizer.end_id}
