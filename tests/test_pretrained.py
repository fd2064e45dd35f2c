from __future__ import annotations

import os
import shutil
import signal
import warnings
from contextlib import suppress
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging

from minimind.data.conversation import Conversation, Message
from minimind.data.masking import encode_conversation, encode_prompt
from minimind.data.template import CHAT_TEMPLATE
from minimind.model import pretrained
from minimind.model.families import FAMILIES
from minimind.model.pretrained import load, save
from minimind.tokenizer import Tokenizer
from tests.support.checkpoints import (
    CHATML,
    TINY,
    read_json,
    write_checkpoint,
    write_json,
    write_tokenizer,
)
from tests.support.faults import BROKEN, Fuse, in_a_child, kill, small_disk

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
TEXT = "It's 12,345 o'clock.\n\n  하늘이 파랗다 👩‍👩‍👧‍👦\t\u00a0\r\n"


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A tiny tied Qwen3, as transformers writes it."""
    write_checkpoint(tmp_path / "base", "qwen3", tie_word_embeddings=True)
    return tmp_path / "base"


def edit_weights(directory: Path, **changes: torch.Tensor | None) -> None:
    """Replace weights of the file, add some, and leave out those that are None."""
    weights = load_file(directory / "model.safetensors") | changes
    kept = {name: value.clone() for name, value in weights.items() if value is not None}
    save_file(kept, directory / "model.safetensors", metadata={"format": "pt"})


def edit_json(path: Path, **changes: object) -> None:
    write_json(path, read_json(path) | changes)


def same(one: dict[int, torch.Tensor], other: dict[int, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def logits_of(model) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(24).view(2, 12))


# Loading


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_load_then_save_is_bit_equal(model_type, tied, dtype, tmp_path) -> None:
    theirs = write_checkpoint(tmp_path / "base", model_type, tie_word_embeddings=tied)
    theirs.to(dtype).save_pretrained(tmp_path / "base")
    save(tmp_path / "saved", *load(tmp_path / "base", dtype=dtype))
    before = load_file(tmp_path / "base/model.safetensors")
    after = load_file(tmp_path / "saved/model.safetensors")
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype == dtype
        assert torch.equal(value, after[name]), name
    save(tmp_path / "again", *load(tmp_path / "saved", dtype=dtype))
    for name in sorted(os.listdir(tmp_path / "saved")):
        again = tmp_path / "again" / name
        assert (tmp_path / "saved" / name).read_bytes() == again.read_bytes(), name


def test_a_tied_head_is_stored_once_and_tied_again(checkpoint, tmp_path) -> None:
    model, tokenizer = load(checkpoint)
    save(tmp_path / "saved", model, tokenizer)
    assert HEAD not in load_file(tmp_path / "saved/model.safetensors")
    again, _ = load(tmp_path / "saved")
    assert again.head_weight is again.model.embed_tokens.weight
    assert again.config.tie_word_embeddings


def test_shards_are_read_as_one_file_would_be(tmp_path) -> None:
    theirs = write_checkpoint(tmp_path)
    whole, _ = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path, max_shard_size="50KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    sharded, _ = load(tmp_path)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, sharded.state_dict()[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_weight_is_a_copy_in_the_asked_dtype(checkpoint, dtype) -> None:
    model, _ = load(str(checkpoint), dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert all(parameter.requires_grad for parameter in model.parameters())
    before = logits_of(model)
    path = checkpoint / "model.safetensors"
    path.write_bytes(bytes(path.stat().st_size))  # in place, as another program might
    assert torch.equal(logits_of(model), before)


def test_missing_unexpected_and_misshapen_weights_are_one_error_that_lists_them(checkpoint) -> None:
    weights = {
        "model.norm.weight": None,
        "model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2),
        "model.layers.0.mlp.up_proj.weight": torch.zeros(2, 2),
        "model.layers.1.self_attn.k_norm.weight": torch.zeros(32, dtype=torch.int8),
    }
    edit_weights(checkpoint, **weights)
    with pytest.raises(ValueError, match=r"4 of its weights don't fit its config\.json") as error:
        load(checkpoint)
    assert set(str(error.value).splitlines()[1:]) == {
        "    model.norm.weight is missing",
        "    model.layers.7.mlp.up_proj.weight is unexpected",
        "    model.layers.0.mlp.up_proj.weight is [2, 2], not [96, 64]",
        "    model.layers.1.self_attn.k_norm.weight holds I8, not floating-point numbers",
    }


def test_a_long_list_of_misfits_shows_ten_and_counts_the_rest(checkpoint) -> None:
    edit_json(checkpoint / "config.json", hidden_size=32)
    with pytest.raises(ValueError, match="weights don't fit") as error:
        load(checkpoint)
    lines = str(error.value).splitlines()
    count = len(load_file(checkpoint / "model.safetensors"))
    unaffected = 4  # q_norm and k_norm of two layers
    assert f": {count - unaffected} of its weights" in lines[0]
    assert len(lines) == 1 + 10 + 1
    assert lines[-1].strip() == f"and {count - unaffected - 10} more"


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod."])
def test_marks_of_compiling_and_of_ddp_are_taken_off(checkpoint, prefix: str) -> None:
    expected = logits_of(load(checkpoint)[0])
    weights = load_file(checkpoint / "model.safetensors")
    save_file({prefix + k: v for k, v in weights.items()}, checkpoint / "model.safetensors")
    assert torch.equal(logits_of(load(checkpoint)[0]), expected)
    deep = {k.replace("layers.0.", "layers.0._orig_mod."): v for k, v in weights.items()}
    save_file(deep, checkpoint / "model.safetensors")
    assert torch.equal(logits_of(load(checkpoint)[0]), expected)


def test_the_same_weight_under_two_names_is_an_error(checkpoint) -> None:
    edit_weights(checkpoint, **{"_orig_mod.model.norm.weight": torch.ones(64)})
    with pytest.raises(ValueError, match=r"model\.norm\.weight is there twice; keep one"):
        load(checkpoint)


def test_rotary_frequencies_in_old_files_are_passed_over(checkpoint) -> None:
    expected = logits_of(load(checkpoint)[0])
    edit_weights(checkpoint, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    assert torch.equal(logits_of(load(checkpoint)[0]), expected)


def test_a_tied_head_that_is_stored_again_must_equal_the_embedding(checkpoint) -> None:
    embedding = load_file(checkpoint / "model.safetensors")[EMBEDDING]
    edit_weights(checkpoint, **{HEAD: embedding})
    model, _ = load(checkpoint)
    assert model.head_weight is model.model.embed_tokens.weight
    for other in (embedding[:5], torch.tensor(1.0), embedding * 2):
        edit_weights(checkpoint, **{HEAD: other})
        with pytest.raises(ValueError, match=r"lm_head\.weight differs .* set tie_word_embeddings"):
            load(checkpoint)
    edit_json(checkpoint / "config.json", tie_word_embeddings=False)
    assert torch.equal(load(checkpoint)[0].head_weight, embedding * 2)


def test_a_directory_without_weights_or_config_says_so(checkpoint) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"base: no model\.safetensors; give a directory"):
        load(checkpoint)
    (checkpoint / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"base: no config\.json; give a directory that"):
        load(checkpoint)


def test_an_index_without_a_weight_map_is_named(checkpoint) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    write_json(checkpoint / "model.safetensors.index.json", {"weight_map": {}})
    with pytest.raises(ValueError, match=r"index\.json: has no weight_map; fetch"):
        load(checkpoint)


# Finding


def test_without_a_path_the_base_of_the_package_is_loaded(checkpoint, monkeypatch) -> None:
    assert pretrained.BASE.is_relative_to(Path(pretrained.__file__).parents[1])
    monkeypatch.setattr(pretrained, "BASE", checkpoint)
    assert torch.equal(logits_of(load()[0]), logits_of(load(checkpoint)[0]))


def test_a_path_that_is_no_directory_is_named(checkpoint) -> None:
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: is a file; give a model dir"):
        load(checkpoint / "model.safetensors")
    for path in ("./nowhere/at-all", "/nowhere", "runs/a/b", "../up/there"):
        with pytest.raises(FileNotFoundError, match=f"^{path}: no such directory; give a model"):
            load(path)


def hub_cache(home: Path, name: str, source: Path) -> None:
    """What Hugging Face's cache looks like after a download."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = home / "hub" / ("models--" + name.replace("/", "--"))
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    shutil.copytree(source, repository / "snapshots" / commit)


def test_a_hub_name_is_found_in_the_cache_while_offline(checkpoint, tmp_path, monkeypatch) -> None:
    hub_cache(tmp_path, "HuggingFaceTB/SmolLM2-135M", checkpoint)
    # What HF_HUB_OFFLINE=1 and HF_HOME set when huggingface_hub is imported.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, _ = load("HuggingFaceTB/SmolLM2-135M")
    assert torch.equal(logits_of(model), logits_of(load(checkpoint)[0]))
    for name in ("HuggingFaceTB/no-such-model", "not--a/name"):
        with pytest.raises(FileNotFoundError, match=rf"^{name}: no such directory, and no such mo"):
            load(name)


# Vocabulary


def test_a_base_without_chatml_gets_rows_that_are_the_mean_of_its_own(tmp_path) -> None:
    for tied in (True, False):
        base = tmp_path / f"tied-{tied}"
        write_checkpoint(base, "llama", vocab_size=258, tie_word_embeddings=tied)
        write_tokenizer(base, special=("<|endoftext|>",))
        before = load_file(base / "model.safetensors")
        with pytest.warns(UserWarning, match=r"no <\|im_start\|> and <\|im_end\|>; .*2 new rows"):
            model, tokenizer = load(base)
        rows = tokenizer.vocab_size - 258
        assert rows >= 2
        assert model.config.vocab_size == tokenizer.vocab_size
        assert (model.head_weight is model.model.embed_tokens.weight) == tied
        for name in (EMBEDDING, HEAD)[: 1 if tied else 2]:
            weight = model.state_dict()[name]
            assert torch.equal(weight[:258], before[name])
            expected = before[name].mean(0).expand(rows, -1)
            torch.testing.assert_close(weight[258:], expected)

        save(base / "saved", model, tokenizer)
        again, tokenizer_again = load(base / "saved")  # without a warning
        assert torch.equal(logits_of(again), logits_of(model))
        assert tokenizer_again.end_id == tokenizer.end_id
        theirs = AutoModelForCausalLM.from_pretrained(base / "saved")
        assert theirs.get_input_embeddings().weight.shape[0] == tokenizer.vocab_size


def test_chatml_may_take_rows_that_the_base_left_spare(tmp_path) -> None:
    reserved = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
    write_checkpoint(tmp_path, "llama")
    write_tokenizer(tmp_path, special=("<|endoftext|>", *reserved))
    with pytest.warns(
        UserWarning, match=r"added in place of <\|reserved_special_token_0\|>"
    ) as caught:
        model, tokenizer = load(tmp_path)
    assert "new rows" not in str(caught[0].message)
    assert caught[0].filename == __file__
    assert model.config.vocab_size == TINY["vocab_size"]
    assert torch.equal(model.head_weight, load_file(tmp_path / "model.safetensors")[HEAD])
    assert (tokenizer.start_id, tokenizer.end_id) == (1, 2)


def test_a_vocabulary_smaller_than_the_tokenizer_is_an_error(tmp_path) -> None:
    write_checkpoint(tmp_path, "llama", vocab_size=200)
    with pytest.raises(ValueError, match="tokenizer has 261 ids and the model rows for 200; use"):
        load(tmp_path)
    write_checkpoint(tmp_path, "llama", vocab_size=261)
    model, tokenizer = load(tmp_path)
    write_checkpoint(tmp_path, "llama", vocab_size=300)
    small = model
    larger_tokenizer = Tokenizer.load(pretrained.BASE / "tokenizer.json")
    with pytest.raises(ValueError, match=r"the tokenizer has \d+ ids and the model rows for 261"):
        save(tmp_path / "saved", small, larger_tokenizer)
    assert not (tmp_path / "saved").exists()
    assert tokenizer.vocab_size == 261


@pytest.mark.parametrize("special", [("<|endoftext|>",), CHATML], ids=["no ChatML", "ChatML"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_padding_token_beyond_the_embedding_gets_a_row_and_it_is_told(
    tied, special, tmp_path
) -> None:
    # As models are whose trainer added [PAD] to the tokenizer alone; here behind `<think>`.
    base = tmp_path / "base"
    rows = len(special) + 257
    theirs = write_checkpoint(base, "llama", vocab_size=rows, tie_word_embeddings=tied)
    write_tokenizer(base, special)
    tokens = Tokenizers.from_file(str(base / "tokenizer.json"))
    tokens.add_special_tokens(["[PAD]"])
    tokens.save(str(base / "tokenizer.json"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model, tokenizer = load(base)
    told = [str(warning.message) for warning in caught]
    assert any(
        f"base: [PAD] has the id {rows}, and the model rows for {rows} ids; it gets a row" in text
        for text in told
    )
    assert any("with 2 new rows" in text for text in told) == (special != CHATML)
    assert {warning.filename for warning in caught} == {__file__}
    assert model.config.vocab_size == tokenizer.vocab_size == rows + (1 if special == CHATML else 3)
    assert tokenizer.decode([rows]) == "[PAD]"
    old = theirs.get_output_embeddings().weight
    assert torch.equal(model.head_weight[:rows], old)
    torch.testing.assert_close(model.head_weight[rows], old.mean(0))

    save(tmp_path / "saved", model, tokenizer)
    again, _ = load(tmp_path / "saved")  # without a warning
    assert torch.equal(logits_of(again), logits_of(model))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = theirs(torch.arange(24).view(2, 12)).logits
    torch.testing.assert_close(logits, logits_of(model), atol=1e-4, rtol=0)


def test_any_other_token_beyond_the_embedding_is_an_error(tmp_path) -> None:
    write_checkpoint(tmp_path, "llama", vocab_size=261)
    for added in (["<tool_call>"], ["[PAD]", "<tool_call>"]):
        write_tokenizer(tmp_path)
        tokens = Tokenizers.from_file(str(tmp_path / "tokenizer.json"))
        tokens.add_special_tokens(added)
        tokens.save(str(tmp_path / "tokenizer.json"))
        with pytest.raises(ValueError, match=r"tokenizer has 26\d ids and the model rows for 261"):
            load(tmp_path)


# What only looks like a model of ours


def test_an_adapter_folder_is_named_as_such(checkpoint, tmp_path) -> None:
    adapter = {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    write_json(checkpoint / "adapter_config.json", adapter)
    with pytest.warns(UserWarning, match=r"a PEFT adapter \(of 'org/base'\) lies beside the mo"):
        load(checkpoint)
    (checkpoint / "model.safetensors").rename(checkpoint / "adapter_model.safetensors")
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    for gone in (None, *names):  # whatever else lies there
        if gone:
            (checkpoint / gone).unlink()
        with pytest.raises(
            FileNotFoundError, match=r"base: a PEFT adapter of 'org/base', not a model; merge it"
        ):
            load(checkpoint)


def test_a_shape_that_transformers_refuses_is_told(tmp_path) -> None:
    # Kanana-1.5-2.1b's kind: 1,792 wide with 24 heads.
    write_checkpoint(tmp_path / "base", "llama", num_key_value_heads=1)
    edit_json(tmp_path / "base/config.json", num_attention_heads=3)
    edit_weights(
        tmp_path / "base",
        **{f"model.layers.{i}.self_attn.q_proj.weight": torch.zeros(96, 64) for i in range(2)},
        **{f"model.layers.{i}.self_attn.o_proj.weight": torch.zeros(64, 96) for i in range(2)},
    )
    with pytest.warns(UserWarning, match="hidden_size 64 is not a multiple of 3 heads"):
        model, tokenizer = load(tmp_path / "base")
    save(tmp_path / "saved", model, tokenizer)
    with pytest.raises(Exception, match="not a multiple"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    with pytest.warns(UserWarning, match="transformers 5 refuses"):
        assert torch.equal(logits_of(load(tmp_path / "saved")[0]), logits_of(model))


# Saving


def test_a_saved_directory_says_what_the_model_is_and_where_it_stops(checkpoint, tmp_path) -> None:
    write_json(checkpoint / "generation_config.json", {"temperature": 0.6, "top_p": 0.9})
    model, tokenizer = load(checkpoint)
    save(tmp_path / "deep/saved", model, tokenizer, dtype=torch.bfloat16)
    saved = tmp_path / "deep/saved"
    config, generation = (
        read_json(saved / "config.json"),
        read_json(saved / "generation_config.json"),
    )
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["eos_token_id"] == tokenizer.end_id
    assert generation == {
        "bos_token_id": None,
        "eos_token_id": list(tokenizer.stop_ids),
        "pad_token_id": tokenizer.pad_id,
    }
    assert tokenizer.end_id in generation["eos_token_id"]
    assert generation["pad_token_id"] not in generation["eos_token_id"]
    with safe_open(saved / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118
    modes = {path.name: path.stat().st_mode & 0o777 for path in saved.iterdir()}
    assert modes["model.safetensors"] == modes["config.json"]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_compiled_model_is_saved_under_plain_names(checkpoint, tmp_path) -> None:
    model, tokenizer = load(checkpoint)
    save(tmp_path / "saved", torch.compile(model, backend="eager"), tokenizer)
    assert load_file(tmp_path / "saved/model.safetensors").keys() == model.state_dict().keys()


def test_saving_again_replaces_the_files_and_keeps_the_others(checkpoint, tmp_path) -> None:
    model, tokenizer = load(checkpoint)
    save(tmp_path / "saved", model, tokenizer)
    (tmp_path / "saved/notes.txt").write_text("mine")
    with torch.no_grad():
        model.head_weight.add_(1)
    save(tmp_path / "saved", model, tokenizer)
    assert (tmp_path / "saved/notes.txt").read_text() == "mine"
    assert torch.equal(logits_of(load(tmp_path / "saved")[0]), logits_of(model))


@pytest.mark.parametrize(
    ("blow", "other"),
    [
        pytest.param(BROKEN, False, id="EIO, same model", marks=pytest.mark.slow),
        pytest.param(kill, False, id="SIGKILL, same model"),
        pytest.param(BROKEN, True, id="EIO, another model's directory"),
        pytest.param(kill, True, id="SIGKILL, another model's directory", marks=pytest.mark.slow),
    ],
)
def test_wherever_a_save_is_cut_off_no_mix_of_old_and_new_loads(
    blow, other, checkpoint, tmp_path
) -> None:
    """Cut off at the first file operation, then at the second, ... until one comes through."""
    old, old_tokenizer = load(checkpoint)
    if other:  # the same shapes, but other ids: a mix of the two would load without an error
        write_tokenizer(checkpoint, special=("<|im_end|>", "<|im_start|>", "<|pad|>", "<|end|>"))
    model, tokenizer = load(checkpoint)
    assert (tokenizer.end_id == old_tokenizer.end_id) is not other
    with torch.no_grad():
        model.head_weight.add_(1)
    both = {old_tokenizer.end_id: logits_of(old)}, {tokenizer.end_id: logits_of(model)}
    save(tmp_path / "old", old, old_tokenizer)
    ends, without = [], 0
    for count in range(100):
        saved = tmp_path / str(count)
        shutil.copytree(tmp_path / "old", saved)

        def cut_off(saved: Path = saved, count: int = count) -> None:
            with pytest.MonkeyPatch.context() as monkeypatch:
                fuse = Fuse(monkeypatch, blow, left=count)
                with suppress(OSError):
                    save(saved, model, tokenizer)
                    assert not fuse.failed  # an error is never swallowed
            assert not fuse.failed

        ends.append(in_a_child(cut_off))
        if other and not (saved / "model.safetensors").exists():
            without += 1
        else:
            loaded, tokenizer_again = load(saved)
            found = {tokenizer_again.end_id: logits_of(loaded)}
            assert any(same(found, one) for one in both)
        if ends[-1] == 0:
            break
    assert ends[-1] == 0
    assert set(ends[:-1]) == {-signal.SIGKILL if blow is kill else 1}
    assert len(ends) > 20
    assert bool(without) is other


def test_what_a_killed_save_left_is_cleared_away(checkpoint, tmp_path) -> None:
    (tmp_path / "saved/.saving-abc").mkdir(parents=True)
    (tmp_path / "saved/.saving-abc/model.safetensors").write_bytes(b"half")
    save(tmp_path / "saved", *load(checkpoint))
    assert not list((tmp_path / "saved").glob(".*"))


def test_a_full_disk_leaves_the_saved_model_as_it_was(checkpoint, tmp_path) -> None:
    model, tokenizer = load(checkpoint)
    before = logits_of(model)
    refused = 0
    with small_disk(tmp_path / "disk", 3_000) as disk:
        save(disk / "saved", model, tokenizer)
        with torch.no_grad():
            model.head_weight.add_(1)
        for free in range(0, 10**6, 2**14):
            (disk / "other").write_bytes(bytes(shutil.disk_usage(disk).free - free))
            try:
                save(disk / "saved", model, tokenizer)
                break
            except OSError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
                assert torch.equal(logits_of(load(disk / "saved")[0]), before)
                refused += 1
            finally:
                (disk / "other").unlink()
        assert torch.equal(logits_of(load(disk / "saved")[0]), logits_of(model))
    assert refused > 3


def test_a_sharded_model_is_not_half_replaced(checkpoint, tmp_path) -> None:
    model, tokenizer = load(checkpoint)
    write_json(checkpoint / "model.safetensors.index.json", {"weight_map": {}})
    with pytest.raises(FileExistsError, match="holds a sharded model, and some readers"):
        save(checkpoint, model, tokenizer)


def test_the_saved_chat_template_is_ours_in_both_places(checkpoint, tmp_path) -> None:
    save(tmp_path / "saved", *load(checkpoint))  # no template there before: no warning
    hidden = "{{ 'You are a helpful assistant' }}" + CHAT_TEMPLATE
    edit_json(checkpoint / "tokenizer_config.json", chat_template=hidden)
    model, tokenizer = load(checkpoint)
    with pytest.warns(UserWarning, match="the base's own chat template is replaced"):
        save(tmp_path / "saved", model, tokenizer)
    config = read_json(tmp_path / "saved/tokenizer_config.json")
    assert config["chat_template"] == CHAT_TEMPLATE
    assert (tmp_path / "saved/chat_template.jinja").read_text() == CHAT_TEMPLATE
    save(tmp_path / "again", *load(tmp_path / "saved"))  # ours already: no warning


# What transformers makes of it


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(our model, our tokenizer, its directory), with the embedded base's tokenizer."""
    root = tmp_path_factory.mktemp("trained")
    vocab_size = Tokenizer.load(pretrained.BASE / "tokenizer.json").vocab_size
    write_checkpoint(root / "base", "qwen3", vocab_size=vocab_size, tie_word_embeddings=True)
    (root / "base/tokenizer_config.json").unlink()
    for path in pretrained.BASE.glob("tokenizer*.json"):
        shutil.copy(path, root / "base")
    model, tokenizer = load(root / "base")
    save(root / "saved", model, tokenizer)
    return model, tokenizer, root / "saved"


def through_transformers(directory: Path, out: Path) -> Path:
    """Their load and save."""
    AutoModelForCausalLM.from_pretrained(directory).save_pretrained(out)
    AutoTokenizer.from_pretrained(directory).save_pretrained(out)
    return out


def test_a_saved_run_opens_in_transformers_and_survives_their_save(trained, tmp_path) -> None:
    model, tokenizer, saved = trained
    first = through_transformers(saved, tmp_path / "first")
    for directory in (saved, first, through_transformers(first, tmp_path / "second")):
        theirs = AutoModelForCausalLM.from_pretrained(directory)
        assert theirs.dtype == torch.float32
        input_ids = torch.arange(64).view(2, 32)
        with torch.no_grad():
            torch.testing.assert_close(
                model(input_ids), theirs(input_ids).logits, atol=1e-4, rtol=0
            )
        eos = theirs.generation_config.eos_token_id
        assert eos == list(tokenizer.stop_ids)
        assert theirs.generation_config.pad_token_id == tokenizer.pad_id
        ours_again, tokenizer_again = load(directory)
        assert torch.equal(model(input_ids), ours_again(input_ids))
        assert tokenizer_again.encode(TEXT) == tokenizer.encode(TEXT)
        assert AutoTokenizer.from_pretrained(directory).encode(TEXT) == tokenizer.encode(TEXT)


def conversations() -> list[tuple[Message, ...]]:
    """200 conversations: Korean and English, one to five turns, all sorts of white space."""
    texts = [
        "안녕하세요? 오늘 날씨가 어때요?",
        "What's the capital of France?\n\nAnswer in one word.",
        "  leading and trailing spaces  ",
        "\n\n\nnewlines\n\n",
        "\ttabs\tand\r\ncarriage returns\r",
        "12345 + 67890 = 80235",
        "ㅋㅋㅋ ㅠㅠ 👩‍👩‍👧‍👦 한글 자모 ᄒ",
        "def f(x):\n    return x  # 코드",
        " ",
        "\n",
        "…“quotes” — and\u00a0no-break\u3000spaces",
        "user\nassistant\n",
    ]
    roles = ("user", "assistant")
    out = []
    for number in range(200):
        turns = 1 + number % 5
        picked = [
            texts[(number * 7 + turn * 5 + number // 12) % len(texts)] for turn in range(turns)
        ]
        messages = [Message(roles[turn % 2], text) for turn, text in enumerate(picked)]
        if number % 3 == 0:
            messages.insert(0, Message("system", texts[number % len(texts)]))
        out.append(tuple(messages))
    return out


def test_their_chat_template_gives_the_training_ids(trained, tmp_path) -> None:
    _, tokenizer, saved = trained
    for directory in (saved, through_transformers(saved, tmp_path / "again")):
        theirs = AutoTokenizer.from_pretrained(directory)
        for messages in conversations():
            dicts = [{"role": m.role, "content": m.content} for m in messages]
            ids = theirs.apply_chat_template(dicts, return_dict=False)
            assert ids == list(encode_conversation(Conversation(messages), tokenizer).input_ids)
            ids = theirs.apply_chat_template(dicts, add_generation_prompt=True, return_dict=False)
            assert ids == list(encode_prompt(messages, tokenizer))


def test_a_base_that_begins_with_a_bos_gets_one_and_only_one(tmp_path) -> None:
    special = ("<s>", "<|endoftext|>", "<|im_start|>", "<|im_end|>")
    write_checkpoint(tmp_path / "base", "llama")
    write_tokenizer(tmp_path / "base", special, bos_token="<s>")
    model, tokenizer = load(tmp_path / "base")
    save(tmp_path / "saved", model, tokenizer)
    template = (tmp_path / "saved/chat_template.jinja").read_text()
    assert template == "{{ bos_token }}" + CHAT_TEMPLATE
    assert read_json(tmp_path / "saved/generation_config.json")["bos_token_id"] == 0
    save(tmp_path / "again", *load(tmp_path / "saved"))  # ours already: no warning
    theirs = AutoTokenizer.from_pretrained(tmp_path / "again")
    for messages in conversations()[:20]:
        dicts = [{"role": m.role, "content": m.content} for m in messages]
        ids = theirs.apply_chat_template(dicts, return_dict=False)
        assert ids == list(encode_conversation(Conversation(messages), tokenizer).input_ids)
        assert ids.count(0) == 1


def test_content_that_spells_a_token_is_text_for_us_and_the_token_for_them(trained) -> None:
    _, tokenizer, saved = trained
    theirs = AutoTokenizer.from_pretrained(saved)
    for token in ("<|im_end|>", "<|endoftext|>", "<think>", "<tool_call>"):
        messages = (Message("user", f"what is {token}?"), Message("assistant", "a token"))
        ours = encode_conversation(Conversation(messages), tokenizer).input_ids
        dicts = [{"role": m.role, "content": m.content} for m in messages]
        parsed = theirs.apply_chat_template(dicts, return_dict=False)
        control = tokenizer.encode_control(token)
        turns_end = 2 if token == "<|im_end|>" else 0
        assert list(ours).count(control) == turns_end
        assert parsed.count(control) == turns_end + 1
        assert tokenizer.decode(list(ours)) == theirs.decode(parsed)


def test_the_files_hold_nothing_that_transformers_complains_of(
    trained, caplog, monkeypatch
) -> None:

    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    _, _, saved = trained
    AutoModelForCausalLM.from_pretrained(saved)
    AutoTokenizer.from_pretrained(saved)
    generation = GenerationConfig.from_pretrained(saved)
    assert generation.do_sample in (None, False)
    assert generation.temperature in (None, 1.0)
    assert [record.getMessage() for record in caplog.records] == []
