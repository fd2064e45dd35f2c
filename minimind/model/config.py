"""Describe a decoder of the Llama family and its like.

The field names are Hugging Face's. Where the families differ, the difference is a field here and a
column of `FAMILIES`; no other code asks for a family's name.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from minimind.model.families import family_of, refuse_unsupported, under_llamas_names

ModelType = Literal["llama", "mistral", "qwen2", "qwen3", "seed_oss", "smollm3"]

_SWITCHES = ("qkv_bias", "o_bias", "mlp_bias", "qk_norm")

# Wider than any published model of these families, far below what would exhaust a machine.
_MAX_SIZES = {
    "vocab_size": 2**22,
    "hidden_size": 2**16,
    "intermediate_size": 2**19,
    "num_hidden_layers": 1024,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "max_position_embeddings": 2**24,
}

# Keys of config.json that are fields under the same name, and all that are read.
_COPIED = {*_MAX_SIZES, "rms_norm_eps", "tie_word_embeddings"}
_READ = _COPIED | {
    *("model_type", "architectures", "hidden_act", "layer_types"),
    *("sliding_window", "use_sliding_window", "no_rope_layers", "no_rope_layer_interval"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
    *("partial_rotary_factor", "original_max_position_embeddings"),
}

_LLAMA3_BOUNDS = ("low_freq_factor", "high_freq_factor")
_YARN_NUMBERS = ("beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
_RANGES = {
    "rms_norm_eps": (1e-12, 1.0),
    "rope_theta": (2.0, 1e12),
    "factor": (1.0, 2.0**20),
    **dict.fromkeys(_LLAMA3_BOUNDS, (1e-6, 1e6)),
    **dict.fromkeys(_YARN_NUMBERS, (0.0, 1e6)),
}

_ROPE_REQUIRED = {"rope_type", "factor", "original_max_position_embeddings"}
_ROPE_FIELDS: Mapping[str, set[str]] = {
    "default": set(),
    "llama3": {*_ROPE_REQUIRED, *_LLAMA3_BOUNDS},
    "yarn": {*_ROPE_REQUIRED, *_YARN_NUMBERS, "truncate"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than the pretraining's."""

    rope_type: Literal["llama3", "yarn"]  # of Llama 3.1; of Peng et al. 2023, arXiv:2309.00071
    factor: float  # how many times longer than the original context
    original_max_position_embeddings: int  # tokens
    low_freq_factor: float | None = None  # llama3's bounds, in turns over the original context
    high_freq_factor: float | None = None
    beta_fast: float | None = None  # yarn's bounds, in turns over the original context
    beta_slow: float | None = None
    attention_factor: float | None = None  # yarn's scale of cos and sin; None: from `factor`
    mscale: float | None = None  # yarn's other way to derive it (DeepSeek), where both are set
    mscale_all_dim: float | None = None
    truncate: bool | None = None  # whether yarn rounds its bounds outwards to whole dimensions

    def __post_init__(self) -> None:
        _check_rope_fields(self.rope_type, self.to_hf())
        is_llama3 = self.rope_type == "llama3"
        required = _ROPE_FIELDS["llama3"] if is_llama3 else _ROPE_REQUIRED
        names = [field.name for field in fields(self)][1:]
        _check_fields(self, *(n for n in names if n in required or getattr(self, n) is not None))
        low, high = (getattr(self, name) for name in _LLAMA3_BOUNDS)
        if is_llama3 and low >= high:
            raise ValueError(
                f"low_freq_factor {low:g} is not below high_freq_factor {high:g}; swap them"
            )

    def to_hf(self) -> dict[str, object]:
        """The fields that are set, under config.json's names."""
        return _without_null({field.name: getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The shape of a decoder, in Hugging Face's field names.

    Attributes:
        model_type: the family it is saved as; see `FAMILIES`.
        vocab_size: rows of the embedding and of the head.
        hidden_size, intermediate_size: widths of the residual stream and of the SwiGLU.
        num_hidden_layers: decoder layers.
        num_attention_heads, num_key_value_heads: query heads, and the heads they share (GQA).
        head_dim: width of one head; need not be hidden_size / num_attention_heads.
        rms_norm_eps: what each RMSNorm adds to the mean square.
        rope_theta: base of the rotary frequencies. rope_scaling: None is plain RoPE.
        max_position_embeddings: the longest context, in tokens.
        tie_word_embeddings: the head is the embedding.
        qkv_bias, o_bias, mlp_bias: which linear layers add a bias.
        qk_norm: RMSNorm over each head's queries and keys.
        layers_without_rope: the layers, from 0, whose queries and keys aren't rotated (SmolLM3; in
            config.json no_rope_layers has a 0 for each of them, and a 1 for the others).

    Raises:
        ValueError: a value is out of range, or this family has no such biases, q/k norm or layers.

    Source: the configuration files of the `FAMILIES` in transformers.
    """

    model_type: ModelType
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    layers_without_rope: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        others = ("rms_norm_eps", "rope_theta", "tie_word_embeddings")
        _check_fields(self, *_MAX_SIZES, *others, *_SWITCHES)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key-value heads evenly; use a divisor"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; RoPE turns pairs, so use an even one")
        family = family_of(self.model_type)
        in_json: dict[str, bool] = {}
        for name in _SWITCHES:
            value, rule = getattr(self, name), getattr(family, name)
            expected = in_json.setdefault(rule, value) if isinstance(rule, str) else rule
            if value != expected:
                raise ValueError(
                    f"a {self.model_type} model with {name}={value} cannot be written as "
                    f"{family.architecture}; use {name}={expected} or another model_type"
                )
        left_out = self.layers_without_rope
        if left_out and not family.rope_may_be_left_out:
            raise ValueError(
                f"a {self.model_type} model with layers_without_rope={left_out} cannot be written "
                f"as {family.architecture}; use layers_without_rope=() or model_type smollm3"
            )
        if list(left_out) != sorted(set(left_out) & set(range(self.num_hidden_layers))):
            raise ValueError(
                f"layers_without_rope is {left_out}; use rising numbers from 0 to "
                f"{self.num_hidden_layers - 1}"
            )

    @classmethod
    def from_hf(cls, data: Mapping[str, Any], place: str = "config.json") -> ModelConfig:
        """Read a parsed config.json, of transformers 4 or 5.

            {"rope_theta": 1e4, "rope_scaling": {"type" or "rope_type": ...}}       transformers 4
            {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}        transformers 5

        Sizes must be there; other absent fields take transformers' defaults. EXAONE's own names
        are read as Llama's, and MiniMind's as Qwen3's or Llama's, with its code's defaults. `place`
        begins every error, and the UserWarning that names the keys that are not read.

        Raises:
            ValueError: a field is missing or malformed, or asks for what this model can't do.
        """
        try:
            data = under_llamas_names(data)
            family = family_of(data.get("model_type"))
            not_read = refuse_unsupported(data, family, _READ)
            data = {**family.defaults, **_without_null(data)}
            heads = _check_value("num_attention_heads", data.get("num_attention_heads"))
            hidden_size = _check_value("hidden_size", data.get("hidden_size"))
            values: dict[str, Any] = dict.fromkeys(_MAX_SIZES) | {"model_type": data["model_type"]}
            values["num_key_value_heads"] = heads
            values["head_dim"] = family.head_dim or hidden_size // heads
            values |= {key: data[key] for key in data.keys() & _COPIED}
            for name in _SWITCHES:
                rule = getattr(family, name)
                values[name] = data.get(rule, False) if isinstance(rule, str) else rule
            values["rope_theta"], values["rope_scaling"] = _read_rope(data)
            if family.rope_may_be_left_out:
                values["layers_without_rope"] = _layers_without_rope(data)
            config = cls(**values)
        except ValueError as error:
            raise ValueError(f"{place}: {error}") from None
        if not_read:
            warnings.warn(
                f"{place}: not read: {', '.join(not_read):.300}; if one of these keys changes what "
                "the model computes, its answers will be wrong",
                stacklevel=3,
            )
        return config

    def to_hf(self) -> dict[str, object]:
        """Write config.json's fields so that transformers 4.5x and 5.x and llama.cpp read them.

        `from_hf(config.to_hf()) == config`. Token ids and dtype are the writer's to add.
        """
        family = family_of(self.model_type)
        scaling = self.rope_scaling and self.rope_scaling.to_hf()
        keys = {name: name for name in (*_MAX_SIZES, "rms_norm_eps", "tie_word_embeddings")}
        keys |= {name: key for name in _SWITCHES if isinstance(key := getattr(family, name), str)}
        written = dict(family.written)
        if family.rope_may_be_left_out:
            rotated = (i not in self.layers_without_rope for i in range(self.num_hidden_layers))
            written["no_rope_layers"] = [int(is_rotated) for is_rotated in rotated]
        return {
            "architectures": [family.architecture],  # llama.cpp's converter chooses by this
            "model_type": self.model_type,
            "hidden_act": "silu",
            **{key: getattr(self, name) for name, key in keys.items()},
            # transformers 4.5x reads these two and warns of a rope_theta inside rope_scaling.
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            # transformers 5 keeps everything here (a set rope_scaling wins, with equal values);
            # llama.cpp's converter looks here first, then above.
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}
            | (scaling or {}),
            **written,
        }


def _layers_without_rope(data: Mapping[str, Any]) -> tuple[int, ...]:
    """Those with a 0 in no_rope_layers; without that, each no_rope_layer_interval-th."""
    layers = range(_check_value("num_hidden_layers", data.get("num_hidden_layers")))
    interval = data.get("no_rope_layer_interval")
    rotated = data.get("no_rope_layers")
    if rotated is None and type(interval) is int and interval > 0:
        return tuple(layers[interval - 1 :: interval])
    if rotated is None:
        raise ValueError(
            f"no_rope_layers is not there, and no_rope_layer_interval is {interval!r:.40}; "
            "fetch the model's config.json again"
        )
    if not isinstance(rotated, list) or set(map(repr, rotated)) - {"0", "1"}:
        raise ValueError(f"no_rope_layers is {rotated!r:.40}; use a list of 0 and 1")
    if len(rotated) < len(layers):
        raise ValueError(
            f"no_rope_layers is for {len(rotated)} of {len(layers)} layers; list all of them"
        )
    return tuple(layer for layer in layers if not rotated[layer])


def _read_rope(data: Mapping[str, Any]) -> tuple[Any, RopeScaling | None]:
    """(rope_theta, scaling) from either form, with transformers' precedence if both are given."""
    rope = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"rope_scaling is {rope!r}; use an object or null")
    rope = _without_null(rope)
    for share in (data.get("partial_rotary_factor", 1), rope.pop("partial_rotary_factor", 1)):
        if share != 1:
            raise ValueError(f"partial_rotary_factor is {share!r}; only whole heads are rotated")
    theta = rope.pop("rope_theta", data.get("rope_theta", 10_000.0))
    rope_type = rope.pop("rope_type", rope.pop("type", "default"))  # "type" is the oldest form
    _check_rope_fields(rope_type, rope)
    if rope_type == "default":
        return theta, None
    # A length beside rope_scaling wins over the one inside (Phi); without any, it is the maximum.
    name = "original_max_position_embeddings"
    original = data.get(name, rope.get(name, data.get("max_position_embeddings")))
    return theta, RopeScaling(rope_type=rope_type, **{"factor": None, **rope, name: original})


def _check_rope_fields(rope_type: object, names: Iterable[str]) -> None:
    if not isinstance(rope_type, str) or rope_type not in _ROPE_FIELDS:
        raise ValueError(f"rope_type {rope_type!r} is not supported; use {', '.join(_ROPE_FIELDS)}")
    if unknown := sorted(set(names) - _ROPE_FIELDS[rope_type]):
        raise ValueError(f"rope_type {rope_type} has no {', '.join(unknown)}; leave it out")


def _without_null(data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that aren't null: transformers writes null for "the default"."""
    return {key: value for key, value in data.items() if value is not None}


def _check_fields(config: object, *names: str) -> None:
    for name in names:
        object.__setattr__(config, name, _check_value(name, getattr(config, name)))


def _check_value(name: str, value: Any) -> Any:
    """A field's value if it is of the field's kind and range; an integer may become a float."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name in _RANGES:
        least, most = _RANGES[name]
        if not is_number or not least <= value <= most:  # NaN isn't either
            raise ValueError(f"{name} is {value!r}; use a number from {least:g} to {most:g}")
        return float(value)  # transformers warns of integers
    if largest := _MAX_SIZES.get(name.removeprefix("original_")):
        if not is_number or isinstance(value, float) or not 1 <= value <= largest:
            raise ValueError(f"{name} is {value!r}; use an integer from 1 to {largest:,}")
    elif not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; use true or false")
    return value
