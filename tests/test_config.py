from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from transformers import AutoConfig
from transformers.utils import logging

from minimind.model.config import ModelConfig, RopeScaling
from minimind.model.families import FAMILIES
from tests.support.checkpoints import LLAMA3, SPECIAL_IDS, TINY, YARN, configs

HF = {"model_type": "llama", "hidden_act": "silu", **TINY}


@given(configs())
def test_a_written_config_is_read_back_equal(config: ModelConfig) -> None:
    assert ModelConfig.from_hf(json.loads(json.dumps(config.to_hf()))) == config


@given(configs())
def test_a_written_config_means_the_same_to_readers_of_either_form(config: ModelConfig) -> None:
    written = config.to_hf()
    old = {key: value for key, value in written.items() if key != "rope_parameters"}
    new = {k: v for k, v in written.items() if k not in ("rope_theta", "rope_scaling")}
    assert ModelConfig.from_hf(old) == ModelConfig.from_hf(new) == config


@pytest.mark.parametrize("rope", [None, LLAMA3, YARN])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_transformers_and_we_read_each_others_config(
    model_type, rope, tmp_path, caplog, monkeypatch
) -> None:
    # transformers complains about a config's fields through this logger.
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    scaling = {"rope_theta": 5e5, **(rope or {})}
    theirs = AutoConfig.for_model(model_type, **TINY, **SPECIAL_IDS, rope_parameters=scaling)
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.from_hf(json.loads((tmp_path / "config.json").read_text()))
    assert ours.rope_theta == 5e5
    assert (ours.rope_scaling is None) == (rope is None)

    (tmp_path / "config.json").write_text(json.dumps(ours.to_hf() | SPECIAL_IDS))
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is type(theirs)
    assert caplog.records == []
    for name, value in TINY.items():
        assert getattr(again, name) == value
    assert again.rope_parameters == {"rope_type": "default", "rope_theta": 5e5} | (rope or {})
    assert again.tie_word_embeddings is theirs.tie_word_embeddings
    again.save_pretrained(tmp_path)
    assert ModelConfig.from_hf(json.loads((tmp_path / "config.json").read_text())) == ours


def test_transformers_4_files_are_read() -> None:
    # SmolLM2-135M's, and Qwen2.5-0.5B's with its switched-off sliding window and documented yarn.
    smollm2 = ModelConfig.from_hf(
        {
            "model_type": "llama",
            "attention_bias": False,
            "hidden_act": "silu",
            "hidden_size": 576,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "num_attention_heads": 9,
            "num_hidden_layers": 30,
            "num_key_value_heads": 3,
            "rms_norm_eps": 1e-05,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
            "vocab_size": 49152,
        }
    )
    assert (smollm2.head_dim, smollm2.rope_theta, smollm2.qkv_bias) == (64, 1e5, False)
    qwen = ModelConfig.from_hf(
        {
            "model_type": "qwen2",
            "hidden_act": "silu",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "max_position_embeddings": 32768,
            "max_window_layers": 21,
            "num_attention_heads": 14,
            "num_hidden_layers": 24,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-06,
            "rope_theta": 1000000.0,
            "rope_scaling": {"type": "yarn", "factor": 4.0},
            "sliding_window": 32768,
            "tie_word_embeddings": True,
            "use_sliding_window": False,
            "vocab_size": 151936,
        }
    )
    assert (qwen.qkv_bias, qwen.o_bias, qwen.qk_norm) == (True, False, False)
    assert qwen.rope_scaling == RopeScaling(
        rope_type="yarn", factor=4.0, original_max_position_embeddings=32768
    )


def test_absent_fields_take_transformers_defaults() -> None:
    absent = ("num_key_value_heads", "head_dim")
    bare = {key: value for key, value in HF.items() if key not in absent}
    llama = ModelConfig.from_hf(bare)
    assert (llama.num_key_value_heads, llama.head_dim, llama.rope_theta) == (4, 16, 10_000.0)
    assert (llama.rms_norm_eps, llama.tie_word_embeddings) == (1e-6, False)
    assert ModelConfig.from_hf(bare | {"model_type": "qwen3"}).head_dim == 128
    assert ModelConfig.from_hf(bare | {"head_dim": None, "rope_parameters": None}) == llama


def test_a_length_beside_rope_scaling_wins_over_the_one_inside() -> None:
    config = ModelConfig.from_hf(
        HF | {"rope_scaling": YARN, "original_max_position_embeddings": 100}
    )
    assert config.rope_scaling is not None
    assert config.rope_scaling.original_max_position_embeddings == 100


REFUSED = {
    "model_type 'gemma' is not supported; use a base of llama, .*exaone, minimind .another na": {
        "model_type": "gemma",
        "hidden_act": "gelu",  # the family is what a person can choose, so it goes first
    },
    "model_type None is not supported; use": {"model_type": None},
    r"model_type \['llama'\] is not supported": {"model_type": ["llama"]},
    "num_experts is 8: a mixture of experts": {"num_experts": 8},
    "num_local_experts is 4: a mixture of experts": {"num_local_experts": 4},
    "sliding_window is 'not there', use_sliding_window is True": {"use_sliding_window": True},
    "sliding_window is 511, use_sliding_window is None and the context 512; every": {
        "sliding_window": 511
    },
    r"architectures is \['HeliumForCausalLM'\], and model_type 'llama' means LlamaForCausalLM": {
        "architectures": ["HeliumForCausalLM"]
    },
    "architectures is 7, and model_type": {"architectures": 7},
    "use_bias is a key of ERNIE": {"use_bias": False},
    "layer_types is .*'sliding_attention'.*; use a model whose": {
        "layer_types": ["full_attention", "sliding_attention"]
    },
    "layer_types is 'full_attention', and every layer": {"layer_types": "full_attention"},
    "hidden_act is 'gelu'; only silu": {"hidden_act": "gelu"},
    "quantization_config is set": {"quantization_config": {"bits": 4}},
    "partial_rotary_factor is 0.5; only whole": {"partial_rotary_factor": 0.5},
    "partial_rotary_factor is 0.25": {"rope_parameters": {"partial_rotary_factor": 0.25}},
    "rope_type 'linear' is not supported": {"rope_scaling": {"type": "linear", "factor": 2}},
    "rope_type 'dynamic' is not supported": {"rope_scaling": {"rope_type": "dynamic"}},
    "rope_type 'longrope' is not supported": {"rope_parameters": {"rope_type": "longrope"}},
    r"rope_type \['yarn'\] is not supported": {"rope_scaling": {"type": ["yarn"]}},
    "rope_type default has no full_attention": {"rope_parameters": {"full_attention": {}}},
    "rope_type yarn has no short_factor": {"rope_scaling": {**YARN, "short_factor": [1.0]}},
    "rope_type yarn has no low_freq_factor": {"rope_scaling": {**YARN, "low_freq_factor": 1.0}},
    "factor is None; use a number from 1": {"rope_scaling": {"type": "yarn"}},
    "truncate is 1; use true or false": {"rope_scaling": {**YARN, "truncate": 1}},
    "rope_scaling is 'yarn'; use an object": {"rope_scaling": "yarn"},
    "low_freq_factor is None; use a number": {"rope_scaling": {"type": "llama3", "factor": 8}},
    "rope_theta is 'big'; use a number": {"rope_theta": "big"},
    "rope_theta is nan; use a number from": {"rope_theta": math.nan},
    "vocab_size is None; use an integer": {"vocab_size": None},
    "vocab_size is 1.5; use an integer": {"vocab_size": 1.5},
    "tie_word_embeddings is 'yes'; use true or false": {"tie_word_embeddings": "yes"},
    "hidden_size is 10000000000; use an integer from 1 to 65,536": {"hidden_size": 10**10},
    "num_attention_heads is 0; use an integer": {"num_attention_heads": 0},
    "num_hidden_layers is -1; use an integer": {"num_hidden_layers": -1},
    "4 attention heads cannot share 3 key-value heads": {"num_key_value_heads": 3},
    "head_dim is 33; RoPE turns pairs": {"head_dim": 33},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_model_cannot_do_is_refused_by_name(reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^here/config\.json: {reason}"):
        ModelConfig.from_hf(HF | REFUSED[reason], "here/config.json")


@pytest.mark.parametrize("name", TINY)
def test_an_absurd_size_is_refused_before_anything_is_allocated(name: str) -> None:
    for value in (0, -1, 2**40, 1.0, True, "64"):
        with pytest.raises(ValueError, match=f"^config.json: {name} is .*; use an integer"):
            ModelConfig.from_hf(HF | {name: value})
    config = ModelConfig.from_hf(HF)
    for value in (0, -1, 2**40, 1.0, True):
        with pytest.raises(ValueError, match=f"^{name} is .*; use an integer from 1 to"):
            dataclasses.replace(config, **{name: value})


@pytest.mark.parametrize(
    ("model_type", "switches"),
    [
        ("llama", {"qk_norm": True}),
        ("llama", {"qkv_bias": True}),
        ("qwen2", {}),
        ("qwen2", {"qkv_bias": True, "o_bias": True}),
        ("qwen3", {}),
        ("qwen3", {"qk_norm": True, "mlp_bias": True}),
    ],
)
def test_a_model_that_its_family_cannot_express_is_refused(model_type, switches) -> None:
    with pytest.raises(
        ValueError, match=f"cannot be written as {FAMILIES[model_type].architecture}"
    ):
        ModelConfig(model_type=model_type, **TINY, **switches)


def test_switches_are_booleans_and_constants_are_in_range() -> None:
    with pytest.raises(ValueError, match="mlp_bias is 1; use true or false"):
        ModelConfig(model_type="llama", **TINY, mlp_bias=1)
    with pytest.raises(ValueError, match=r"rms_norm_eps is 0\.0; use a number from"):
        ModelConfig(model_type="llama", **TINY, rms_norm_eps=0.0)
    with pytest.raises(ValueError, match="model_type 'gpt2' is not supported"):
        ModelConfig(model_type="gpt2", **TINY)


BAD_SCALINGS = {
    "rope_type 'linear' is not supported; use default, llama3, yarn": {"rope_type": "linear"},
    r"factor is 0\.5; use a number from 1": {"factor": 0.5},
    "factor is nan": {"factor": math.nan},
    "original_max_position_embeddings is 0": {"original_max_position_embeddings": 0},
    "rope_type llama3 has no beta_fast; leave it out": {"beta_fast": 32.0},
    "low_freq_factor 4 is not below high_freq_factor 4": {"low_freq_factor": 4.0},
    "high_freq_factor is None; use a number": {"high_freq_factor": None},
}


@pytest.mark.parametrize("reason", BAD_SCALINGS)
def test_a_malformed_rope_scaling_is_refused(reason: str) -> None:
    with pytest.raises(ValueError, match=f"^{reason}"):
        RopeScaling(**{**LLAMA3, **BAD_SCALINGS[reason]})
    with pytest.raises(ValueError, match="beta_fast is -1; use a number from 0"):
        RopeScaling(**YARN, beta_fast=-1)
