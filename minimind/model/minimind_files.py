"""MiniMind's own config.json and state dicts, in the words of the family that computes the same.

MiniMind-3 is Qwen3 (a norm over each head's q and k), MiniMind2 is Llama. Knows no file.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_SECOND = (
    "n_routed_experts"  # a key that MiniMind2's config.json always has, and MiniMind-3's never
)

# What their code takes where nothing is said. Source: jingyaogong/minimind, MiniMindConfig, at
# d65ef2c (MiniMind-3) and at 04616c4 (MiniMind2).
_BOTH = {
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "vocab_size": 6400,
    "max_position_embeddings": 32_768,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
}
_PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "qwen3": _BOTH | {"hidden_size": 768, "num_key_value_heads": 4, "rms_norm_eps": 1e-6},
    "llama": _BOTH | {"hidden_size": 512, "num_key_value_heads": 2, "rms_norm_eps": 1e-5},
}
VERSIONS = {"qwen3": "MiniMind-3", "llama": "MiniMind2"}

# The rotary of `inference_rope_scaling`, which their code writes down and never reads.
_YARN = {
    "rope_type": "yarn",
    "factor": 16.0,
    "original_max_position_embeddings": 2048,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "attention_factor": 1.0,
}
# Keys that say nothing of a dense model, or that are read here.
_DROPPED = (
    *("use_moe", "num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob"),
    *("router_aux_loss_coef", _SECOND, "n_shared_experts", "scoring_func", "aux_loss_alpha"),
    *("seq_aux", "inference_rope_scaling", "rope_scaling", "rope_parameters", "auto_map"),
)


def config_as_qwen3_or_llama(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config.json of MiniMind's as Qwen3's, or as Llama's where it is MiniMind2's."""
    if data.get("use_moe"):
        raise ValueError("use_moe is true: a mixture of experts; use a dense model")
    model_type = "llama" if _SECOND in data else "qwen3"
    read: dict[str, Any] = {**_PUBLISHED[model_type], **data, "model_type": model_type}
    rope = None
    if data.get("inference_rope_scaling"):
        if model_type == "llama":
            raise ValueError(
                "inference_rope_scaling is true, which MiniMind2's versions compute in several "
                "ways; set it to false"
            )
        longest = read["max_position_embeddings"]
        rope = _YARN if type(longest) is not int or longest > 2048 else None
    if read.get("architectures") == ["MiniMindForCausalLM"]:
        del read["architectures"]
    read = {key: read[key] for key in read if key not in _DROPPED} | {"rope_scaling": rope}
    hidden_size, heads = read["hidden_size"], read["num_attention_heads"]
    if type(hidden_size) is int and type(heads) is int and heads > 0:  # else told when read
        wide = math.ceil(hidden_size * math.pi / 64) * 64
        if model_type == "llama":
            wide = (int(hidden_size * 8 / 3) + 63) // 64 * 64
        for key, value in {"head_dim": hidden_size // heads, "intermediate_size": wide}.items():
            read[key] = value if read.get(key) is None else read[key]
    return read


def config_of_shapes(
    shapes: Mapping[str, Sequence[int]], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a state dict's shapes tell, and MiniMind's defaults for the rest.

    Args:
        shapes: by the weights' names.
        given: a config.json's keys, of which num_attention_heads is taken if the shapes don't
            tell it: without a norm over each head, as in MiniMind2.

    Raises:
        ValueError: these aren't the weights of a dense model.
    """
    if experts := [name for name in shapes if ".experts." in name or ".mlp.gate." in name]:
        raise ValueError(f"{experts[0]} is there: a mixture of experts; use a dense model")
    vocab_size, hidden_size = _shape(shapes, "model.embed_tokens.weight", 2)
    first = "model.layers.0"
    queries, _ = _shape(shapes, f"{first}.self_attn.q_proj.weight", 2)
    keys, _ = _shape(shapes, f"{first}.self_attn.k_proj.weight", 2)
    intermediate_size, _ = _shape(shapes, f"{first}.mlp.gate_proj.weight", 2)
    norm = f"{first}.self_attn.q_norm.weight"
    published = _PUBLISHED["qwen3" if norm in shapes else "llama"]
    heads = given.get("num_attention_heads", published["num_attention_heads"])
    if norm in shapes:
        (head_dim,) = _shape(shapes, norm, 1)
    else:
        head_dim = queries // heads if type(heads) is int and heads > 0 else 0
    if head_dim == 0 or queries % head_dim or keys % head_dim:
        raise ValueError(
            f"{queries} rows of queries and {keys} of keys aren't whole heads of {head_dim}; "
            "put a config.json with num_attention_heads beside the file"
        )
    layers = [name.split(".")[2] for name in shapes if name.startswith("model.layers.")]
    told = {
        "model_type": "qwen3" if norm in shapes else "llama",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": len(set(layers)),
        "num_key_value_heads": keys // head_dim,
        "head_dim": head_dim,
    }
    if norm in shapes:
        told["num_attention_heads"] = queries // head_dim
    return told, {key: published[key] for key in published if key not in told}


def _shape(shapes: Mapping[str, Sequence[int]], name: str, rank: int) -> Sequence[int]:
    if name not in shapes:
        there = ", ".join(list(shapes)[:3]) or "nothing"
        raise ValueError(
            f"has no {name}, but {there:.200}; use the weights of a whole model under Llama's names"
        )
    if len(shapes[name]) != rank or 0 in shapes[name]:
        raise ValueError(f"{name} is {list(shapes[name])}; use the weights of a whole model")
    return shapes[name]
