"""Tiny models and their directories, as transformers writes them. Knows no test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import tokenizers
import torch
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

import tests.support.strategies  # noqa: F401  # loads the Hypothesis profile that minds no busy machine
from minimind.model.config import ModelConfig, RopeScaling
from minimind.model.families import FAMILIES

TINY = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}
# Within a tiny vocabulary, which some families' own aren't.
SPECIAL_IDS = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}

rope_scalings = st.builds(
    RopeScaling,
    rope_type=st.just("llama3"),
    factor=st.floats(1, 64),
    original_max_position_embeddings=st.integers(64, 2**17),
    low_freq_factor=st.floats(0.5, 2),
    high_freq_factor=st.floats(3, 8),
)
rope_scalings |= st.builds(
    RopeScaling,
    rope_type=st.just("yarn"),
    factor=st.floats(1, 64),
    original_max_position_embeddings=st.integers(64, 2**17),
    beta_fast=st.none() | st.floats(16, 64),
    beta_slow=st.none() | st.floats(0.5, 2),
    attention_factor=st.none() | st.floats(0.5, 2),
    mscale=st.none() | st.floats(0.5, 2),
    mscale_all_dim=st.none() | st.floats(0.5, 2),
    truncate=st.none() | st.booleans(),
)


@st.composite
def configs(draw: st.DrawFn) -> ModelConfig:
    """Any model that one of the families can name."""
    model_type = draw(st.sampled_from(sorted(FAMILIES)))
    family = FAMILIES[model_type]
    switches: dict[str, bool] = {}
    keys: dict[str, bool] = {}  # those of config.json, where two switches may share one
    for name in ("qkv_bias", "o_bias", "mlp_bias", "qk_norm"):
        rule = getattr(family, name)
        if isinstance(rule, str):
            rule = keys.setdefault(rule, draw(st.booleans()))
        switches[name] = rule
    layers = draw(st.integers(1, 80))
    left_out = draw(st.sets(st.integers(0, layers - 1))) if family.rope_may_be_left_out else ()
    kv_heads = draw(st.integers(1, 8))
    return ModelConfig(
        model_type=model_type,
        vocab_size=draw(st.integers(1, 200_000)),
        hidden_size=draw(st.integers(1, 8192)),
        intermediate_size=draw(st.integers(1, 30_000)),
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * draw(st.integers(1, 8)),
        num_key_value_heads=kv_heads,
        head_dim=2 * draw(st.integers(1, 128)),
        max_position_embeddings=draw(st.integers(1, 2**20)),
        rms_norm_eps=draw(st.floats(1e-8, 1e-4)),
        rope_theta=draw(st.floats(1e3, 1e7)),
        rope_scaling=draw(st.none() | rope_scalings),
        tie_word_embeddings=draw(st.booleans()),
        layers_without_rope=tuple(sorted(left_out)),
        **switches,
    )


def tiny_transformers_model(model_type: str, **fields: object) -> PreTrainedModel:
    """A model of transformers with every parameter random: biases and norms too, and not small."""
    config = AutoConfig.for_model(model_type, **{**TINY, **SPECIAL_IDS, **fields})
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name else 0.0
            parameter.normal_(around, 0.15, generator=generator)
    return model


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")


def write_tokenizer(
    directory: Path, special: Sequence[str] = CHATML, bos_token: str | None = None
) -> None:
    """Special tokens, every byte, and `<think>`: an added token that isn't marked special.

    With `bos_token`, one of `special`, that is put before every text.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.add_tokens(["<think>"])
    if bos_token:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos_token} $A", special_tokens=[(bos_token, vocab[bos_token])]
        )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": bos_token,
            "eos_token": "<|endoftext|>",
            "clean_up_tokenization_spaces": False,
        },
    )


def write_checkpoint(
    directory: Path, model_type: str = "qwen3", **fields: object
) -> PreTrainedModel:
    """A directory as transformers saves it, and the model that is in it."""
    model = tiny_transformers_model(model_type, **fields)
    model.save_pretrained(directory)
    write_tokenizer(directory)
    return model


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")
