"""A checkpoint that only looks like one of ours is refused, or computes what transformers does."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from minimind.model.config import _READ, ModelConfig
from minimind.model.families import _ALWAYS, _COMPUTES, _HARMLESS, _OFF, FAMILIES, READ
from minimind.model.pretrained import load, save
from minimind.model.transformer import Transformer
from tests.support.checkpoints import (
    LLAMA3,
    TINY,
    YARN,
    read_json,
    write_checkpoint,
    write_json,
)
from tests.support.strategies import json_values

TOLERANCE = 1e-4
TOKENS = torch.randint(TINY["vocab_size"], (2, 100), generator=torch.Generator().manual_seed(0))


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        output = model(TOKENS)
    return getattr(output, "logits", output)


# Each key of a config.json that changes what is computed


def as_config(model_type: str, **fields: object) -> dict:
    """What config.json of a tiny model says, with some keys set."""
    small = {
        **TINY,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "pad_token_id": None,
        "tie_word_embeddings": False,
        "rope_theta": 1e4,
    }
    theirs = AutoConfig.for_model(model_type, **small).to_dict()
    return {**theirs, "model_type": model_type, **fields}


# By family, what a key of its own may be set to; then what any key may be set to.
ROPES = [{"rope_theta": 5e5}, {"rope_theta": 1e4, **LLAMA3}, {"rope_theta": 1e4, **YARN}]
ROPES += [{"rope_theta": 1e4, "rope_type": kind, "factor": 2.0} for kind in ("linear", "dynamic")]
ROPES += [{"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5}]
VALUES = {
    "rope_parameters": ROPES,
    "hidden_act": ["gelu", "relu", "swish", "gelu_pytorch_tanh"],
    "layer_types": [["full_attention", "sliding_attention"], ["sliding_attention"] * 2],
    "no_rope_layers": [[0, 1], [1, 1], [1, 0]],
    "sliding_window": [None, 8, 99, 100, 512, 4096],
    "head_dim": [None, 16],
}


def variants(model_type: str) -> list[tuple[str, Any]]:
    """(key, value) for all keys of transformers' config, each set to something else."""
    out = []
    for key, value in as_config(model_type).items():
        if isinstance(value, bool):
            values: list = [not value]
        elif isinstance(value, int):
            values = [value + 1, value * 2]
        elif isinstance(value, float):
            values = [value * 2 + 0.5]
        else:
            values = []
        out += [(key, other) for other in VALUES.get(key, values)]
    switched = {"use_sliding_window": True, "sliding_window": 8, "layer_types": None}
    out += [("", switched | {"max_window_layers": first}) for first in range(3)]
    return [*out, ("", switched | {"use_sliding_window": False})]  # Mistral has no such switch


def theirs_from(config: dict) -> PreTrainedModel:
    """A random model of transformers with a config, each weight random."""
    fields = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **fields))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            parameter.normal_(around, 0.15, generator=generator)
    return model.eval()


def assert_refused_or_equal(config: dict, theirs: PreTrainedModel) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that are told
        try:
            ours = Transformer(ModelConfig.from_hf(config))
        except ValueError:
            return "refused"
    weights = theirs.state_dict()
    if ours.config.tie_word_embeddings:
        weights.pop("lm_head.weight")
    try:
        ours.load_state_dict(weights)
    except RuntimeError:  # `load` lists them
        return "other weights"
    torch.testing.assert_close(logits_of(ours), logits_of(theirs), atol=TOLERANCE, rtol=0)
    return "equal"


@pytest.mark.parametrize("model_type", FAMILIES)
def test_each_key_of_transformers_config_is_refused_or_computes_what_theirs_does(
    model_type: str,
) -> None:
    ends = {}
    for key, value in variants(model_type):
        config = as_config(model_type, **({key: value} if key else value))
        try:
            theirs = theirs_from(config)
            logits_of(theirs)
        except Exception:  # theirs refuses it
            continue
        ends[f"{key}={value}"] = assert_refused_or_equal(config, theirs)
    assert len(ends) > 20
    assert ends["tie_word_embeddings=True"] == ends["rms_norm_eps=0.500002"] == "equal"
    assert ends[f"rope_parameters={ROPES[2]}"] == "equal"
    assert ends[f"rope_parameters={ROPES[3]}"] == ends["hidden_act=relu"] == "refused"


# Of other families: some by the words that their names have in common, some by their kind
OTHERS = {
    "Granite": {"attention_multiplier": 1.0},
    "Granite's embedding": {"embedding_multiplier": 12.0},
    "Granite's residual": {"residual_multiplier": 0.22},
    "Granite's logits": {"logits_scaling": 8.0},
    "SmolLM3": {"no_rope_layers": [1, 0]},
    "SmolLM3's interval": {"no_rope_layer_interval": 4},
    "ERNIE": {"use_bias": False},
    "GPT-J's rotary": {"rope_interleaved": True},
    "DeepSeek's rotary": {"rope_interleave": True},
    "GPT-NeoX": {"rotary_pct": 0.25},
    "Phi": {"partial_rotary_factor": 0.5},
    "StableLM": {"use_parallel_residual": True},
    "MiniCPM's embedding": {"scale_emb": 12},
    "MiniCPM's depth": {"scale_depth": 1.4},
    "MiniCPM's head": {"dim_model_base": 256},
    "OLMo": {"clip_qkv": 8.0},
    "Gemma 2": {"final_logit_softcapping": 30.0},
    "Gemma 2's attention": {"attn_logit_softcapping": 50.0},
    "Gemma 3": {"query_pre_attn_scalar": 256},
    "Gemma's activation": {"hidden_activation": "gelu_pytorch_tanh"},
    "EmbeddingGemma": {"use_bidirectional_attention": True},
    "Cohere": {"logit_scale": 0.0625},
    "Cohere's norm": {"layer_norm_eps": 1e-5},
    "HyperCLOVA X": {"use_post_norm": True},
    "Llama 4": {"attn_temperature_tuning": 4},
    "Llama 4's chunks": {"attention_chunk_size": 8192},
    "Mixtral": {"num_experts_per_tok": 2},
    "MPT": {"alibi": True},
    "BERT": {"position_embedding_type": "relative_key"},
    "a vision model": {"text_config": {"num_hidden_layers": 2}},
    "an encoder": {"is_causal": "no"},
    "one that sees both ways": {"is_causal": False},
    "one without positions": {"use_rope": False},
    "one that is scaled to nothing": {"residual_multiplier": 0.0},
    "Granite, scaled to nothing": {"attention_multiplier": 0},
    "GPT-2, not scaled": {"scale_attn_weights": False},
    "scores that aren't scaled": {"scale_qk": False},
    "Falcon without rotary": {"apply_rotary_pos_emb": False},
    "a bias by distance": {"alibi_bias": True},
    "a bias of logits": {"logit_bias": 0.5},
    "a bias of the rotary": {"rotary_bias": 2},
    "a bias of positions": {"relative_position_bias": True},
    "one of another day": {"my_attention_temperature": 0.7},
}
HARMLESS = {
    "eos_token_id": [1, 2],
    "torch_dtype": "bfloat16",
    "dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "attention_dropout": 0.1,
    "embd_pdrop": 0.1,
    "use_cache": True,
    "initializer_range": 0.02,
    "pretraining_tp": 2,
    "max_window_layers": 21,
    "_attn_implementation_autoset": True,
    "attn_implementation": "flash_attention_2",
    "is_llama_config": True,
    "rope_interleaved": False,
    "unsloth_fixed": True,
    "sliding_window": 4096,
    "num_experts": 0,
    "use_qk_norm": False,
    "is_causal": True,
    "max_sequence_length": 2048,
    "attention_multiplier": None,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "use_mrope": False,
    "use_post_norm": False,
    "use_parallel_residual": False,
    "alibi": False,
    "alibi_bias": False,
    "num_logits_to_keep": 0,
    "qkv_bias": True,
    "lm_head_bias": False,
}
# Passed over for no value: another family may compute something else without it.
TOLD = {"use_layer_norm": False, "normalize_embeddings": 0, "activation": "", "my_bias": 0.5}
CONFIG = {**TINY, "hidden_act": "silu", "rope_theta": 1e4}
CONFIG |= {"no_rope_layers": [1, 1], "no_rope_layer_interval": 4}


def config_of(model_type: str, **fields: object) -> dict:
    config = {**CONFIG, "model_type": model_type, **fields}
    if not FAMILIES[model_type].rope_may_be_left_out and "no_rope_layers" not in fields:
        del config["no_rope_layers"]
    if not FAMILIES[model_type].rope_may_be_left_out and "no_rope_layer_interval" not in fields:
        del config["no_rope_layer_interval"]
    return {"sliding_window": None, **config}


@pytest.mark.parametrize("other", OTHERS)
def test_a_key_that_speaks_of_another_computation_is_refused_by_name(other: str) -> None:
    (key,) = OTHERS[other]
    for model_type, family in FAMILIES.items():
        if family.rope_may_be_left_out and key.startswith("no_rope"):
            continue
        with pytest.raises(ValueError, match=rf"^config\.json: {key} is .*; (use|only) ") as error:
            ModelConfig.from_hf(config_of(model_type, **OTHERS[other]))
        assert "set it" not in str(error.value)  # nobody is invited to edit the key away


def test_a_key_that_changes_no_logits_is_passed_over_and_any_other_is_told_once() -> None:
    for model_type in FAMILIES:
        ModelConfig.from_hf(config_of(model_type, **HARMLESS))  # warnings are errors
        odd = {"mood": "merry", "auto_map": {"AutoModelForCausalLM": "m.Model"}, "off": False}
        odd |= TOLD
        with pytest.warns(UserWarning, match="not read") as caught:
            ModelConfig.from_hf(config_of(model_type, **HARMLESS, **odd), "here")
        (warning,) = caught
        names = ", ".join(sorted(["auto_map", "mood", *TOLD]))
        assert str(warning.message).startswith(f"here: not read: {names}; if one of")


@given(key=st.text(max_size=20) | st.sampled_from(sorted(OTHERS)), value=json_values)
def test_any_other_key_is_refused_or_told_unless_it_is_off_or_harmless(key: str, value) -> None:
    key = next(iter(OTHERS[key])) if key in OTHERS else key
    config = config_of("qwen3")
    if key in config or key in _READ or _HARMLESS.fullmatch(key):
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            ModelConfig.from_hf(config | {key: value})
        except ValueError as error:
            assert key in str(error)  # noqa: PT017
            return
    told = [str(warning.message) for warning in caught]
    may_differ = value is not None and _COMPUTES.search(key) and not _OFF.search(key)
    is_done_here = value is True and _ALWAYS.fullmatch(key)
    is_passed_over = is_done_here or (not value and not may_differ)
    assert told == [] if is_passed_over else key in told[0]


def test_the_family_goes_before_its_keys_and_no_message_invites_another_name() -> None:
    granite = {"model_type": "granite", "hidden_act": "gelu", "attention_multiplier": 0.1}
    with pytest.raises(ValueError, match="model_type 'granite' is not supported") as error:
        ModelConfig.from_hf(CONFIG | granite)
    assert all(name in str(error.value) for name in READ)
    assert "another name in config.json would not change what the weights" in str(error.value)


# Whole checkpoints of other families, under a name of ours

RELABELLED = (
    *("smollm3", "granite", "ernie4_5", "helium", "hyperclovax", "cohere", "cohere2", "gemma"),
    *("gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "glm", "glm4", "stablelm", "diffllama"),
    *("ministral", "ministral3", "cwm", "exaone4", "hunyuan_v1_dense", "bitnet", "arcee", "phi3"),
    *("internlm3", "llama", "mistral", "qwen2", "qwen3", "seed_oss", "mixtral", "qwen3_moe"),
)


@pytest.mark.parametrize("name", RELABELLED)
def test_a_relabelled_checkpoint_is_refused_or_computes_what_it_did(name: str) -> None:
    try:
        config = as_config(name, num_hidden_layers=2)
    except ValueError:
        pytest.skip("this version of transformers hasn't got it")
    theirs = theirs_from(config)
    true_name = type(theirs).__name__
    for model_type, family in FAMILIES.items():
        # Only the name is changed, as the old message invited to.
        mine = {**config, "model_type": model_type, "architectures": [true_name]}
        end = assert_refused_or_equal(mine, theirs)
        assert (end == "refused") == (true_name != family.architecture)
        # The class is changed too. Nothing in Helium's config tells it from Llama then.
        if name != "helium":
            assert_refused_or_equal(mine | {"architectures": [family.architecture]}, theirs)
            del mine["architectures"]
            assert_refused_or_equal(mine, theirs)


# EXAONE 3 and 3.5

EXAONE_KEYS = {
    "num_hidden_layers": "num_layers",
    "rms_norm_eps": "layer_norm_epsilon",
    "hidden_act": "activation_function",
}
EXAONE_WEIGHTS = {
    r"model\.embed_tokens": "transformer.wte",
    r"model\.layers": "transformer.h",
    r"model\.norm": "transformer.ln_f",
    r"self_attn": "attn.attention",
    r"o_proj": "out_proj",
    r"input_layernorm": "ln_1",
    r"post_attention_layernorm": "ln_2",
    r"gate_proj": "c_fc_0",
    r"up_proj": "c_fc_1",
    r"down_proj": "c_proj",
}


def write_exaone(directory: Path, **fields: object) -> PreTrainedModel:
    """A Llama, written as EXAONE's own code writes it; and that Llama."""
    theirs = write_checkpoint(directory, "llama", **fields)
    config = read_json(directory / "config.json")
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope or None}
    config = {EXAONE_KEYS.get(key, key): value for key, value in config.items()}
    config |= {"model_type": "exaone", "architectures": ["ExaoneForCausalLM"], "embed_dropout": 0.0}
    config |= {"auto_map": {"AutoModelForCausalLM": "modeling_exaone.ExaoneForCausalLM"}}
    write_json(directory / "config.json", config)
    weights = {}
    for name, value in load_file(directory / "model.safetensors").items():
        for ours, exaones in EXAONE_WEIGHTS.items():
            name = re.sub(ours, exaones, name)
        weights[name] = value
    assert "transformer.h.1.mlp.c_fc_0.weight" in weights
    assert "transformer.h.0.attn.attention.out_proj.weight" in weights
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return theirs


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("rope", [{}, LLAMA3], ids=["3", "3.5"])
def test_exaone_is_llama_under_other_names_and_is_saved_as_llama(tied, rope, tmp_path) -> None:
    rope = {"rope_theta": 1e6, **rope}
    options = {"tie_word_embeddings": tied, "rope_parameters": rope, "rms_norm_eps": 1e-3}
    theirs = write_exaone(tmp_path / "base", **options)
    model, tokenizer = load(tmp_path / "base")  # without a warning
    assert model.config.rms_norm_eps == 1e-3
    torch.testing.assert_close(logits_of(model), logits_of(theirs), atol=TOLERANCE, rtol=0)

    save(tmp_path / "saved", model, tokenizer)
    saved = read_json(tmp_path / "saved/config.json")
    assert saved["model_type"] == "llama"
    assert saved["architectures"] == ["LlamaForCausalLM"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(logits_of(again), logits_of(theirs), atol=TOLERANCE, rtol=0)
    assert torch.equal(logits_of(load(tmp_path / "saved")[0]), logits_of(model))


def test_exaone_as_newer_versions_of_transformers_read_it(tmp_path) -> None:
    try:
        AutoConfig.for_model("exaone")
    except ValueError:
        pytest.skip("this version of transformers hasn't got it")
    write_exaone(tmp_path / "base", rope_parameters={"rope_theta": 1e6, **LLAMA3})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    expected = logits_of(theirs)
    model, _ = load(tmp_path / "base")
    torch.testing.assert_close(logits_of(model), expected, atol=TOLERANCE, rtol=0)
    theirs.save_pretrained(tmp_path / "base")  # as it writes it
    torch.testing.assert_close(
        logits_of(load(tmp_path / "base")[0]), expected, atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("key", ["layer_norm_epsilon", "rope_theta"])
def test_what_exaones_code_and_transformers_take_otherwise_must_be_there(key, tmp_path) -> None:
    write_exaone(tmp_path)
    config = read_json(tmp_path / "config.json")
    del config[key]
    write_json(tmp_path / "config.json", config)
    with pytest.raises(
        ValueError, match=r"config\.json: (rms_norm_eps|rope_theta) is not there; fe"
    ):
        load(tmp_path)


def test_a_key_under_exaones_name_and_under_llamas_is_an_error(tmp_path) -> None:
    write_exaone(tmp_path)
    both = read_json(tmp_path / "config.json") | {"rms_norm_eps": 1e-5}
    write_json(tmp_path / "config.json", both)
    with pytest.raises(ValueError, match="both layer_norm_epsilon and rms_norm_eps are there; f"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"no_rope_layers": None}, "no_rope_layers is not there, and no_rope_layer_interval is No"),
        (
            {"no_rope_layers": None, "no_rope_layer_interval": 0},
            "no_rope_layers is not there, and no_rope_layer_interval is 0",
        ),
        ({"no_rope_layers": [1]}, "no_rope_layers is for 1 of 2 layers; list all of them"),
        ({"no_rope_layers": [1, 2]}, r"no_rope_layers is \[1, 2\]; use a list of 0 and 1"),
        ({"no_rope_layers": "11"}, "no_rope_layers is '11'; use a list of 0 and 1"),
    ],
)
def test_layers_without_rotary_must_be_named(fields, error: str) -> None:
    config = config_of("smollm3") | {"no_rope_layer_interval": None} | fields
    with pytest.raises(ValueError, match=rf"^config\.json: {error}"):
        ModelConfig.from_hf(config)


def test_layers_without_rotary_are_rising_numbers_and_only_where_they_can_be_written() -> None:
    smollm3 = ModelConfig.from_hf(config_of("smollm3", no_rope_layers=[1, 0, 0]))
    assert smollm3.layers_without_rope == (1,)  # of two layers
    fields = {**TINY, "layers_without_rope": (1,)}
    with pytest.raises(
        ValueError, match=r"with layers_without_rope=\(1,\) cannot be written as Ll"
    ):
        ModelConfig(model_type="llama", **fields)
    for wrong in ((2,), (-1,), (1, 0), (0, 0)):
        with pytest.raises(
            ValueError, match=r"layers_without_rope is .*; use rising numbers from 0 "
        ):
            ModelConfig(model_type="smollm3", **fields | {"layers_without_rope": wrong})
