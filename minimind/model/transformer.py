"""A decoder of the Llama, Qwen2 and Qwen3 families on flat tokens. Knows no text and no loss.

Parameter names are Hugging Face's, so a state dict is a checkpoint. Tokens come as one flat run of
documents, without padding; linear layers don't see where one ends, attention does.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minimind.model.attention import Documents, Tails, packed_attention
from minimind.model.cache import DecodeStep, KVCache, attend_token
from minimind.model.config import ModelConfig
from minimind.model.elementwise import rms_norm, rotate, swiglu
from minimind.model.linear import Linear, linear
from minimind.model.rope import inverse_frequencies

# Shape letters: T tokens of all documents, Q of their tails, S wanted, C hidden size, V vocabulary,
# H query heads, K key/value heads, D head dimension.

# (layer, q, k, v) -> attended; what the queries may see is the caller's choice.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
LayerAttend = Callable[[Tensor, Tensor, Tensor], Tensor]
Before = Callable[["DecoderLayer", Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
After = Callable[["DecoderLayer", Tensor, Tensor], Tensor]
ReadToken = Callable[..., Tensor]  # as `read_token`


class Transformer(nn.Module):
    """The whole model: `model.*` is the decoder, `lm_head` the product with the vocabulary.

    A tied head has no parameter of its own; `head_weight` is the embedding then.

    Source: the modeling files of Llama, Qwen2 and Qwen3 in transformers, for names and formulas.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self._read_token: ReadToken = read_token  # see compile_decoding

    @property
    def head_weight(self) -> Tensor:
        """(V, C) the matrix whose product with a hidden state gives the logits."""
        tied = self.config.tie_word_embeddings
        weight = self.model.embed_tokens.weight if tied else self.lm_head.weight
        assert isinstance(weight, Tensor)
        return weight

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
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

    def compile_tokenwise(self) -> None:
        """Compile what training does token by token: projections, norms, rotation, MLP.

        Attention, the only part that sees where documents end, stays as it is, and token counts are
        left open: nothing is compiled again later. Call it inside the autocast of the run. Where
        compiling fails, the compiler's error comes out, and the model stays as it was.
        """
        if self.compiled:
            return
        layers = self._decoder_layers()
        cos, sin = self.model.rotation(torch.arange(2, device=self.device))
        x = torch.ones(2, self.config.hidden_size, device=self.device, requires_grad=True) * 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own, about its own code
            before = torch.compile(before_attention, dynamic=True)
            after = torch.compile(after_attention, dynamic=True)
            _leave_open(x, cos, sin)
            q, k, v = before(layers[0], x, cos, sin)
            attended = q.detach().requires_grad_() * 1
            _leave_open(attended)
            out = (q, k, v, after(layers[0], x, attended))
            torch.autograd.grad(out, x, [torch.ones_like(y) for y in out])
        for layer in layers:
            layer.compiled = before, after

    def use_eager(self) -> None:
        """Take `compile_tokenwise` and `compile_decoding` back."""
        for layer in self._decoder_layers():
            layer.compiled = None
        self._read_token = read_token

    @torch.inference_mode()
    def compile_decoding(self, rows: int = 1) -> None:
        """Compile what a layer does to read one more token per row, for faster answers.

        How far a row has come is left open. Another compilation follows when rows go from several
        to one, from equally to differently long, or to more than a few. Where compiling fails, the
        compiler's error comes out, and the model stays as it was.

        Args:
            rows: to compile for.
        """
        # Sizes that nothing else has: the compiler holds what is equal for one and the same.
        cache = KVCache(self.config, rows, 61, self.device, self.head_weight.dtype)
        cache.advance([53] * rows)
        before, self._read_token = self._read_token, torch.compile(read_token, dynamic=True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PyTorch's own, about its own code
                self.decode(torch.zeros(rows, dtype=torch.long, device=self.device), cache)
        except BaseException:
            self._read_token = before
            raise

    @property
    def decodes_compiled(self) -> bool:
        """Whether answers are decoded compiled."""
        return self._read_token is not read_token

    @property
    def compiled(self) -> bool:
        """Whether training runs compiled."""
        return self._decoder_layers()[0].compiled is not None

    def _decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.model.layers if isinstance(layer, DecoderLayer)]

    def forward(self, compute: Callable[[Transformer], Tensor]) -> Tensor:
        """`compute(self)`, while embedding, final norm and head are at hand in one piece.

        Training's losses are computed in here, head and all: where processes share the weights,
        they are gathered when a module's `forward` is entered, and at no other time.
        """
        return compute(self)

    def hidden_states(
        self,
        input_ids: Tensor,
        positions: Tensor,
        documents: Documents,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """Read documents and return the states that the head turns into logits.

        Args:
            input_ids: (T,) int64
            positions: (T,) int64, each document's own, from 0.
            documents: where each document ends, and of which tokens the states are wanted; what
                the last layer does for others alone isn't computed.
            activation_checkpointing: compute each layer again in the backward pass, to save memory.

        Returns:
            (S, C) of the wanted tokens, or (T, C) of all.
        """
        attend = partial(packed_attention, documents)
        states: Tensor = self.model(
            input_ids, positions, attend, documents.tails, activation_checkpointing
        )
        return states

    def logits(self, input_ids: Tensor) -> Tensor:
        """Score every next token of a rectangular batch, causally.

        Args:
            input_ids: (batch, tokens) int64

        Returns:
            (batch, tokens, V)
        """
        rows, tokens = input_ids.shape
        documents = Documents.of([tokens] * rows, input_ids.device)
        positions = torch.arange(tokens, device=input_ids.device).repeat(rows)
        states = self.hidden_states(input_ids.reshape(-1), positions, documents)
        return F.linear(states, self.head_weight).view(rows, tokens, -1)

    def prefill(self, prompts: list[Tensor], cache: KVCache) -> Tensor:
        """Read one prompt per row into an empty cache.

        Returns:
            (rows, V) logits of the token that follows each prompt.
        """
        lengths = [len(prompt) for prompt in prompts]
        last = torch.tensor(lengths).cumsum(0) - 1
        documents = Documents.of(lengths, self.device, wanted=last)
        positions = torch.cat([torch.arange(length) for length in lengths]).to(self.device)
        attend = partial(cache.attend_prompts, documents)
        states = self.model(torch.cat(prompts), positions, attend, documents.tails)
        cache.advance(lengths)
        return linear(states, self.head_weight)

    def decode(self, input_ids: Tensor, cache: KVCache) -> Tensor:
        """Read one more token per row.

        Args:
            input_ids: (rows,)
            cache: holds everything before.

        Returns:
            (rows, V) logits of the token that follows.
        """
        now = cache.begin_token()
        x = self.model.embed_tokens(input_ids)  # (rows, C)
        cos, sin = self.model.rotation(now.positions)
        for layer, keys, values in zip(self.model.layers, cache.keys, cache.values, strict=True):
            x = self._read_token(layer, x, cos, sin, now, keys, values)
        cache.advance([1] * len(input_ids))
        return linear(self.model.norm(x), self.head_weight)


class Decoder(nn.Module):
    """Embedding, layers, final norm. Named `model` inside `Transformer`, as in Hugging Face."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.config = config
        self._frequencies: dict[torch.device, tuple[Tensor, float]] = {}

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        attend: Attend,
        tails: Tails | None = None,
        activation_checkpointing: bool = False,
    ) -> Tensor:
        """See `Transformer.hidden_states`."""
        x = self.embed_tokens(input_ids)  # (T, C)
        cos, sin = self.rotation(positions)
        last = len(self.layers) - 1
        for index, layer in enumerate(self.layers):
            arguments = (x, cos, sin, partial(attend, index), tails if index == last else None)
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
    """Attention, then a gated MLP, each on a normalized copy and added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)
        self.compiled: tuple[Before, After] | None = None  # see Transformer.compile_tokenwise

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, attend: LayerAttend, tails: Tails | None
    ) -> Tensor:
        """(T, C) -> (T, C), or (S, C) of the wanted tokens, which stand in the tails."""
        # Without gradients the compiler would begin anew, for passes that are few.
        fast = self.compiled if torch.is_grad_enabled() else None
        before, after = fast or (before_attention, after_attention)
        if tails is None:
            return after(self, x, attend(*before(self, x, cos, sin)))
        attended = attend(*before_tails(self, x, cos, sin, tails.index))  # (Q, H, D)
        wanted = tails.index.index_select(0, tails.wanted)
        return after(self, x.index_select(0, wanted), attended.index_select(0, tails.wanted))


# What a layer does before and after attention works token by token. Functions of the layer, not
# methods: one compiled pair serves all layers, and a copy of a model computes with its own weights.


def before_attention(
    layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(T, C) -> queries (T, H, D), keys and values (T, K, D)"""
    x = layer.input_layernorm(x)
    return layer.self_attn.queries(x, cos, sin), *layer.self_attn.keys_values(x, cos, sin)


def read_token(
    layer: DecoderLayer,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    now: DecodeStep,
    keys: Tensor,
    values: Tensor,
) -> Tensor:
    """All that a layer does when decoding: (rows, C) -> (rows, C); see `attend_token`"""
    q, k, v = before_attention(layer, x, cos, sin)
    return after_attention(layer, x, attend_token(now, keys, values, q, k, v))


def before_tails(
    layer: DecoderLayer, x: Tensor, cos: Tensor, sin: Tensor, index: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(T, C) -> queries (Q, H, D) of some tokens, keys and values (T, K, D) of all"""
    x = layer.input_layernorm(x)
    asking = (x.index_select(0, index), cos.index_select(0, index), sin.index_select(0, index))
    return layer.self_attn.queries(*asking), *layer.self_attn.keys_values(x, cos, sin)


def after_attention(layer: DecoderLayer, x: Tensor, attended: Tensor) -> Tensor:
    """The residual stream (S, C) and what attention found (S, H, D) -> (S, C)"""
    x = x + layer.self_attn.o_proj(attended.flatten(1))
    out: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
    return out


def _leave_open(*tensors: Tensor) -> None:
    """Tell the compiler that their first size, one and the same, may be any."""
    from torch._dynamo.decorators import mark_unbacked  # takes a second to import

    for tensor in tensors:
        mark_unbacked(tensor, 0, shape_id="tokens", min=1)


class Attention(nn.Module):
    """Projections of grouped-query attention: rotary positions, q/k norm or biases where set."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head_dim = config.hidden_size, config.head_dim
        heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = Linear(width, heads * head_dim, bias=config.qkv_bias)
        self.k_proj = Linear(width, kv_heads * head_dim, bias=config.qkv_bias)
        self.v_proj = Linear(width, kv_heads * head_dim, bias=config.qkv_bias)
        self.o_proj = Linear(heads * head_dim, width, bias=config.o_bias)
        self.q_norm: nn.Module = nn.Identity()
        self.k_norm: nn.Module = nn.Identity()
        if config.qk_norm:
            self.q_norm = RMSNorm(head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(head_dim, config.rms_norm_eps)
        self.head_dim = head_dim

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(T, C) -> (T, H, D)"""
        q: Tensor = self.q_proj(x).unflatten(-1, (-1, self.head_dim))
        return rotate(self.q_norm(q), cos, sin).to(q.dtype)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """(T, C) -> keys and values, each (T, K, D)"""
        k = self.k_proj(x).unflatten(-1, (-1, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (-1, self.head_dim))
        return rotate(self.k_norm(k), cos, sin).to(v.dtype), v


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(width, inner, bias=bias)
        self.up_proj = Linear(width, inner, bias=bias)
        self.down_proj = Linear(inner, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(T, C) -> (T, C)"""
        out: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return out


class RMSNorm(nn.Module):
    """See `rms_norm`."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)"""
        return rms_norm(x, self.weight, self.eps)
