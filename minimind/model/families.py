"""The families of decoders that are read, and the keys of a config.json that name anything else.

What a checkpoint asks for and `Transformer` doesn't compute is refused by name, so that weights of
another family are never read as one of these, whatever their config.json calls them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from minimind.model.minimind_files import config_as_qwen3_or_llama

_BIAS = "attention_bias"


@dataclass(frozen=True, slots=True)
class Family:
    """What a `model_type` stands for: each switch's fixed value, or its key in config.json."""

    architecture: str
    _: KW_ONLY
    qkv_bias: bool | str = _BIAS
    o_bias: bool | str = _BIAS
    mlp_bias: bool | str = "mlp_bias"
    qk_norm: bool | str = False
    head_dim: int | None = None  # where config.json names none; None is hidden_size / heads
    rope_may_be_left_out: bool = False  # on the layers that no_rope_layers names
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of absent keys, where not Llama's
    window: int | None = None  # the sliding window where config.json has no such key
    windows_are_on: bool = True  # where use_sliding_window is absent
    has_window_switch: bool = True  # or else use_sliding_window switches nothing
    written: Mapping[str, Any] = field(default_factory=dict)  # keys that are always the same
    even_heads: bool = False  # transformers refuses a hidden_size that isn't a multiple of heads


FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaForCausalLM", even_heads=True),
    "mistral": Family(
        "MistralForCausalLM",
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        window=4096,
        has_window_switch=False,
        written={"sliding_window": None},
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        qkv_bias=True,
        o_bias=False,
        mlp_bias=False,
        window=4096,
        windows_are_on=False,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        mlp_bias=False,
        qk_norm=True,
        head_dim=128,
        window=4096,
        windows_are_on=False,
    ),
    "seed_oss": Family(
        "SeedOssForCausalLM", o_bias="attention_out_bias", head_dim=128, defaults={_BIAS: True}
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        rope_may_be_left_out=True,
        defaults={"tie_word_embeddings": True, "rope_theta": 2e6},
        windows_are_on=False,
    ),
}
# The last two are others under other names: Llama, and Qwen3 or Llama; saved as what they are.
READ = (*FAMILIES, "exaone", "minimind")

# Of EXAONE 3 and 3.5: its names, and Llama's.
_EXAONE_KEYS = {
    "num_layers": "num_hidden_layers",
    "layer_norm_epsilon": "rms_norm_eps",
    "activation_function": "hidden_act",
}
_EXAONE_WEIGHTS = {
    "transformer.wte": "model.embed_tokens",
    "transformer.h": "model.layers",
    "transformer.ln_f": "model.norm",
    "attn.attention": "self_attn",
    "out_proj": "o_proj",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "mlp.c_fc_0": "mlp.gate_proj",
    "mlp.c_fc_1": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}

# Keys that say nothing about the logits, or nothing that the weights' names and shapes don't say.
_HARMLESS = re.compile(
    r".*_token_id|.*drop(out|path)?(_prob|_rate)?|.*flash.*|.*fp32.*|.*dtype|"
    r"_?attn_implementation.*|initializer_(range|factor)|use_cache|output_(attentions|"
    r"hidden_states)|return_dict.*|transformers.*|_?name_or_path|pretraining_tp|id2label|label2id|"
    r"tokenizer_class|(model_)?max_(seq.*_)?len(gth)?|temperature|top_[kp]|typical_p|num_beam.*|"
    r"num_return_sequences|.*_penalty|max_window_layers|dual_chunk_attention_config|"
    r"is_llama_config|.*unsloth.*"
)
# Switches of weights, which show them; but not of what is added to the scores of attention.
_BIAS_SWITCH = re.compile(r"(?!.*(alibi|logit|rotary|rope|relative|position))(.*_)?bias")
# Words in keys by which other families compute something else: Granite, Cohere, Gemma, MiniCPM,
# OLMo, StableLM, GLM, Phi, Llama 4, HyperCLOVA X and those that come after them.
_COMPUTES = re.compile(
    r"multiplier|scal(e|ing|ar)|soft_?cap|logit|clip|limit|alpha|norm|rope|rotary|interleave|"
    r"window|expert|moe|activation|(^|_)act(_|$)|residual|causal|bidirectional|attn|attention|"
    r"lora_rank|sink|mup|loop|recurr|spars|alibi|position|dim_model_base|num_layers|n_layer|"
    r"kv_shared|mamba|linear_|ssm|conv|gating|layer_(ids|types)|per_layer|block_type|"
    r"(text|vision|audio|ffn)_config",
    re.IGNORECASE,
)
# What is always done here: these are no switches that may be off.
_ALWAYS = re.compile(
    r"(is_|use_)?(causal.*|rope|rotary.*|rms_?norm|pre_?norm|swiglu|gated_mlp)|"
    r"scale_(qk|attn|attn_weights|attention)|apply_rotary(_pos_emb|_emb)?"
)
# A factor of 0 is no switch that is off, either.
_FACTOR = re.compile(r"multiplier|scal(e|ing|ar)")
# What false, 0 or nothing does switch off, among the keys that speak of a computation.
_OFF = re.compile(
    r"window|expert|moe|mrope|interleave|(qk|post)_?(layer_?)?norm|norm_topk|parallel|"
    r"cross_attention|alibi|bidirectional|by_inverse_layer_idx|lora_rank|sink|mup|loop|recurr|"
    r"spars|mamba|ssm|conv|kv_shared|vision|audio|logits_to_keep"
)
_BY_ANOTHER_NAME = "its weights compute something else, whatever config.json calls them"


def family_of(model_type: object) -> Family:
    """The family that a model is saved as."""
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"model_type {model_type!r} is not supported; use a base of {', '.join(READ)} "
            "(another name in config.json would not change what the weights compute)"
        )
    return FAMILIES[model_type]


def under_llamas_names(data: Mapping[str, Any]) -> Mapping[str, Any]:
    """config.json as Llama's, where it is EXAONE's; as Qwen3's or Llama's, where MiniMind's."""
    if data.get("model_type") == "minimind":
        return config_as_qwen3_or_llama(data)
    if data.get("model_type") != "exaone":
        return data
    for theirs, ours in _EXAONE_KEYS.items():
        if theirs in data and ours in data:
            raise ValueError(
                f"both {theirs} and {ours} are there; fetch the model's config.json again"
            )
    data = {_EXAONE_KEYS.get(key, key): value for key, value in data.items()}
    rope = data.get("rope_parameters")
    there = {**data, **(rope if isinstance(rope, dict) else {})}
    for name in ("rms_norm_eps", "rope_theta"):
        if there.get(name) is None:  # EXAONE's own code and transformers have other defaults
            raise ValueError(f"{name} is not there; fetch the model's config.json again")
    if data.get("architectures") == ["ExaoneForCausalLM"]:
        del data["architectures"]
    data.pop("auto_map", None)  # names code that computes what Llama does
    return {**data, "model_type": "llama"}


def weight_under_llamas_name(name: str) -> str:
    """A weight's name as Llama's, where it is EXAONE's."""
    if name.startswith("transformer."):
        for theirs, ours in _EXAONE_WEIGHTS.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}\.", rf"\g<1>{ours}.", name)
    return name


def refuse_unsupported(data: Mapping[str, Any], family: Family, read: set[str]) -> list[str]:
    """Name what a checkpoint asks for that `Transformer` doesn't compute.

    `read` are the keys that the caller reads. A key that is unknown, and not known to be harmless,
    is an error where its name speaks of a computation, and is returned otherwise. One that is
    false or empty is passed over, but returned where that may be another computation.
    """
    architectures = data.get("architectures") or [family.architecture]
    names = architectures if isinstance(architectures, list) else [architectures]
    if family.architecture.lower() not in (str(name).lower() for name in names):
        raise ValueError(
            f"architectures is {architectures!r:.80}, and model_type {data['model_type']!r} means "
            f"{family.architecture}: {_BY_ANOTHER_NAME}; use a base of {', '.join(READ)}"
        )
    for key in ("num_experts", "num_local_experts", "n_routed_experts"):
        if data.get(key):
            raise ValueError(f"{key} is {data[key]!r}: a mixture of experts; use a dense model")
    _refuse_windows(data, family)
    if (activation := data.get("hidden_act")) not in (None, "silu"):
        raise ValueError(f"hidden_act is {activation!r}; only silu (SwiGLU) is supported")
    if data.get("quantization_config"):
        raise ValueError("quantization_config is set; use the checkpoint before quantization")
    if "use_bias" in data:  # at any value: its rotary is interleaved, and no key says so
        raise ValueError(
            f"use_bias is a key of ERNIE, whose rotary is interleaved: {_BY_ANOTHER_NAME}; "
            f"use a base of {', '.join(READ)}"
        )
    if not family.rope_may_be_left_out:
        read = read - {"no_rope_layers", "no_rope_layer_interval"}
    told = []
    for key, value in data.items():
        if key in read or _HARMLESS.fullmatch(key) or value is None:
            continue
        if isinstance(value, bool) and _BIAS_SWITCH.fullmatch(key):
            continue
        is_always_on = _ALWAYS.fullmatch(key)
        is_number = isinstance(value, float) or (type(value) is int and _FACTOR.search(key))
        is_off = not value and not is_number
        if value is True if is_always_on else is_off:
            if not is_always_on and _COMPUTES.search(key) and not _OFF.search(key):
                told.append(key)
            continue
        if is_always_on or _COMPUTES.search(key):
            raise ValueError(
                f"{key} is {value!r:.80}, which {family.architecture} doesn't have: "
                f"{_BY_ANOTHER_NAME}; use a base of {', '.join(READ)}"
            )
        told.append(key)
    return sorted(told)


def _refuse_windows(data: Mapping[str, Any], family: Family) -> None:
    layer_types = data.get("layer_types") or []
    if not isinstance(layer_types, list) or set(map(str, layer_types)) - {"full_attention"}:
        raise ValueError(
            f"layer_types is {layer_types!r:.80}, and every layer here sees its whole context; "
            "use a model whose layers are all full_attention"
        )
    window = data.get("sliding_window", family.window)  # null says that there is none
    switch = data.get("use_sliding_window") if family.has_window_switch else None
    if window is None and switch and family.windows_are_on:
        window = "not there"
    context = data.get("max_position_embeddings")
    is_on = family.windows_are_on if switch is None else switch
    lengths = (context, window)
    is_short = not all(type(length) is int for length in lengths) or context > window
    if is_on and window is not None and is_short:
        raise ValueError(
            f"sliding_window is {window!r:.40}, use_sliding_window is {switch!r:.40} and the "
            f"context {context!r:.40}; every layer here sees its whole context, so use a model "
            "whose sliding_window is null or no shorter than its context"
        )
