"""A decoder of the Llama family and its like (`families.FAMILIES`) on flat tokens.

Parameter names are Hugging Face's, so a state dict is a checkpoint. Tokens come as one flat run of
documents, without padding: linear layers don't see where one ends, attention does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimind.documents import Documents
from minimind.model.attention import packed_attention
from minimind.model.cache import DecodeStep, KVCache, attend_token
from minimind.model.compiling import compiled
from minimind.model.config import ModelConfig
from minimind.model.elementwise import rms_norm, rotate
from minimind.model.linear import Linear, linear
from minimind.model.rope import inverse_frequencies

# Shape letters: T tokens of all documents, S tokens whose states are returned, C hidden size,
# V vocabulary, H query heads, K key/value heads, D head dimension.

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # queries, keys, values -> (T, H, D)
AttendLayer = Callable[[int, Tensor, Tensor, Tensor], Tensor]  # the layer's index goes first


class Transformer(nn.Module):
    """The model that `config` describes: `model.*` is the decoder, `lm_head` gives the logits.

    `model(input_ids)` returns logits. A tied head has no parameter of its own; `head_weight` is the
    embedding then.

    Source: the modeling files of the `FAMILIES` in transformers, for names and formulas.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.half_head: Tensor | None = None  # head_weight cast for a loss, in a WorkingCopy
        self._decode_layer: Callable[..., Tensor] = decode_layer  # see compile_decoding

    @property
    def head_weight(self) -> Tensor:
        """(V, C) the matrix whose product with a hidden state gives the logits."""
        if self.config.tie_word_embeddings:
            return self.model.embed_tokens.weight
        return self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """The device of the weights, which inputs must be on, too."""
        return self.head_weight.device

    def initialize(self, seed: int = 0, std: float = 0.02) -> Transformer:
        """Fill with fresh weights: normal, the layers' output projections scaled down by depth.

        Source: GPT-2 (Radford et al. 2019, section 2.3) for the scaling by depth.
        """
        generator = torch.Generator().manual_seed(seed)
        by_depth = (2 * self.config.num_hidden_layers) ** -0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 1:
                nn.init.ones_(parameter)
            else:
                scale = by_depth if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
                nn.init.normal_(parameter, std=std * scale, generator=generator)
        return self

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of each next token, for rows of equal length.

        Args:
            input_ids: (batch, tokens) int64

        Returns:
            (batch, tokens, V), of the weights' dtype.

        Raises:
            ValueError: `input_ids` isn't of two dimensions.
        """
        if input_ids.ndim != 2:
            raise ValueError(
                f"input_ids: their shape is {list(input_ids.shape)}; give (batch, tokens)"
            )
        rows, tokens = input_ids.shape
        documents = Documents.of([tokens] * rows, input_ids.device)
        positions = torch.arange(tokens, device=input_ids.device).repeat(rows)
        states = self.hidden_states(input_ids.flatten(), positions, documents)
        return F.linear(states, self.head_weight).view(rows, tokens, -1)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        documents: Documents,
        keep: Tensor | None = None,
        *,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """Read documents and return the states that the head turns into logits.

        Args:
            input_ids: (T,) int64
            positions: (T,) int64, each document's own, from 0.
            documents: where each document ends.
            keep: (S,) int64 indices of the tokens whose states are returned; None for all.
            activation_checkpointing: compute each layer again in the backward pass, to save memory.

        Returns:
            (S, C), or (T, C) without `keep`.
        """

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return packed_attention(q, k, v, documents)

        states: Tensor = self.model(input_ids, positions, attend, keep, activation_checkpointing)
        return states

    def prefill(self, prompts: list[Tensor], cache: KVCache) -> Tensor:
        """Read one prompt per row into an empty cache.

        Returns (rows, V): logits of the token that follows each prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        documents = Documents.of(lengths, self.device)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        last = documents.cu_seqlens[1:].long() - 1
        attend = partial(cache.attend_prompts, documents=documents)
        states = self.model(torch.cat(prompts), positions, attend, last)
        cache.advance(lengths)
        return linear(states, self.head_weight)

    def decode(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Read one more token per row, (rows,), where the cache holds everything before.

        Returns (rows, V): logits of the token that follows.
        """
        step = cache.begin_step()
        x = self.model.embed_tokens(input_ids)  # (rows, C)
        cos, sin = self.model.rotation(step.positions)
        for layer, keys, values in zip(self.model.layers, cache.keys, cache.values, strict=True):
            x = self._decode_layer(layer, x, cos, sin, step, keys, values)
        cache.advance([1] * len(input_ids))
        return linear(self.model.norm(x), self.head_weight)

    def compile_training(self) -> None:
        """Compile what each layer does before and after attention, at first use for fixed sizes.

        Attention, the only part that sees where documents end, isn't compiled.
        """
        # One compiled function of each serves all layers.
        before = compiled(DecoderLayer.before_attention)
        after = compiled(DecoderLayer.after_attention)
        before.retry()
        after.retry()
        for layer in self.model.layers:
            assert isinstance(layer, DecoderLayer)
            layer.before_attention = MethodType(before, layer)  # type: ignore[method-assign]
            layer.after_attention = MethodType(after, layer)  # type: ignore[method-assign]

    def uncompile_training(self) -> None:
        """Undo `compile_training`: layers run eagerly again."""
        for layer in self.model.layers:
            for name in ("before_attention", "after_attention"):
                layer.__dict__.pop(name, None)

    @torch.inference_mode()
    def compile_decoding(self, rows: int = 1) -> None:
        """Compile what a layer does to read one more token in each of `rows` rows.

        Rows may have any length. Another compilation follows when rows go from several to one, from
        equally to differently long, or to more than a few. Where compiling fails, the compiler's
        error comes out, and the model stays as it was.
        """
        # Unusual sizes: the compiler takes sizes that are equal for one and the same.
        cache = KVCache(self.config, rows, 61, self.device, self.head_weight.dtype)
        cache.advance([53] * rows)
        before, self._decode_layer = self._decode_layer, torch.compile(decode_layer, dynamic=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own, about its own code
                self.decode(torch.zeros(rows, dtype=torch.long, device=self.device), cache)
        except BaseException:
            self._decode_layer = before
            raise


class Decoder(nn.Module):
    """Embedding, layers, final norm. Named `model` inside `Transformer`, as in Hugging Face."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config
        self._frequencies: dict[torch.device, tuple[Tensor, float]] = {}

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attend: AttendLayer,
        keep: Tensor | None = None,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """(T,) -> (T, C), or (S, C) of the tokens in `keep`"""
        x = self.embed_tokens(input_ids)  # (T, C)
        cos, sin = self.rotation(positions)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            arguments = (x, cos, sin, partial(attend, index), keep if index == last else None)
            if activation_checkpointing:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        out: Tensor = self.norm(x)
        return out

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(T,) positions -> cos and sin, each (T, 1, D/2) float32: float16 would be wrong."""
        device = positions.device
        if device not in self._frequencies:  # not a buffer: no weight, and never half precision
            frequencies, scaling = inverse_frequencies(self.config)
            self._frequencies[device] = frequencies.to(device), scaling
        frequencies, scaling = self._frequencies[device]
        angles = positions[:, None, None] * frequencies
        return angles.cos() * scaling, angles.sin() * scaling


class DecoderLayer(nn.Module):
    """Attention, then an MLP, each on a normalized copy and added to the residual stream."""

    def __init__(self, config: ModelConfig, index: int = 0) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, rotates=index not in config.layers_without_rope)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend, keep: Tensor | None = None
    ) -> Tensor:
        """(T, C) -> (T, C), or (S, C) of the tokens in `keep`; `attend` sees what it chooses."""
        attended = attend(*self.before_attention(x, cos, sin))  # (T, H, D)
        if keep is not None:  # in the last layer: nothing reads the other tokens any more
            x, attended = x.index_select(0, keep), attended.index_select(0, keep)
        return self.after_attention(x, attended)

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
        """(T, C) -> queries (T, H, D), keys (T, K, D), values (T, K, D)"""
        return self.self_attn.project(self.input_layernorm(x), cos, sin)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """(S, C), (S, H, D) -> (S, C)"""
        x = x + self.self_attn.o_proj(attended.flatten(1))
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; q/k norm and biases where the config says."""

    def __init__(self, config: ModelConfig, rotates: bool = True) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(width, heads * head_dim, bias=config.qkv_bias)
        self.k_proj = Linear(width, kv_heads * head_dim, bias=config.qkv_bias)
        self.v_proj = Linear(width, kv_heads * head_dim, bias=config.qkv_bias)
        self.o_proj = Linear(heads * head_dim, width, bias=config.o_bias)
        eps = config.rms_norm_eps
        self.q_norm = RMSNorm(head_dim, eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(head_dim, eps) if config.qk_norm else nn.Identity()
        self.head_dim = head_dim
        self.rotates = rotates

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(T, C) -> queries (T, H, D) and keys (T, K, D), as a rule rotated; values (T, K, D)"""
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in projections)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotates:
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        return q.to(v.dtype), k.to(v.dtype), v


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020, arXiv:2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, C)"""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps
        self.dtype: torch.dtype | None = None  # of the result; None: the input's

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        return rms_norm(x, self.weight, self.eps, self.dtype)


def decode_layer(
    layer: DecoderLayer,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    step: DecodeStep,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """All that a layer does in a decode step: (rows, C) -> (rows, C); see `attend_token`."""
    out: Tensor = layer(x, cos, sin, partial(attend_token, step, keys, values))
    return out
