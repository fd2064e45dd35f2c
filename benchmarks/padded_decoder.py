"""A decoder as small trainers write it: padded rows, each operation by itself, logits everywhere.

MiniMind's trainer computes with one of this kind. The weights' names are Hugging Face's, so it
takes ours. It is here to be measured, and knows nothing that saves work.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.data.packing import IGNORE_INDEX
from minimind.model.config import ModelConfig

# Shape letters: B rows, T tokens of a padded row, C hidden size, H heads, D head dimension.


class PaddedDecoder(nn.Module):
    """Embedding, layers, norm and head for rows of equal length; no biases."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
                "layers": nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers)),
                "norm": Norm(config.hidden_size, config.rms_norm_eps),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model["embed_tokens"].weight
        pairs = torch.arange(0, config.head_dim, 2).float() / config.head_dim
        angles = torch.outer(
            torch.arange(config.max_position_embeddings), config.rope_theta**-pairs
        )
        both = torch.cat([angles, angles], dim=-1)  # (positions, D)
        self.register_buffer("cos", both.cos(), persistent=False)
        self.register_buffer("sin", both.sin(), persistent=False)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
        """(B, T), (B, T), labels not yet shifted -> the mean loss of the supervised tokens"""
        x = self.model["embed_tokens"](input_ids)  # (B, T, C)
        cos, sin = self.cos[: x.size(1)], self.sin[: x.size(1)]
        for layer in self.model["layers"]:
            x = layer(x, cos, sin)
        logits = self.lm_head(self.model["norm"](x))
        shifted = labels[:, 1:].flatten()
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), shifted, ignore_index=IGNORE_INDEX)


class Norm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        exact = x.float()
        scale = torch.rsqrt(exact.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (exact * scale).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm, self.post_attention_layernorm = Norm(width, eps), Norm(width, eps)
        self.self_attn, self.mlp = Attention(config), MLP(width, config.intermediate_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Attention(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.head_dim = config.hidden_size, config.head_dim
        heads, shared = (
            count * self.head_dim
            for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        self.q_proj = nn.Linear(width, heads, bias=False)
        self.k_proj = nn.Linear(width, shared, bias=False)
        self.v_proj = nn.Linear(width, shared, bias=False)
        self.o_proj = nn.Linear(heads, width, bias=False)
        normed = config.qk_norm
        self.q_norm, self.k_norm = (
            Norm(self.head_dim, config.rms_norm_eps) if normed else nn.Identity() for _ in range(2)
        )
        self.copies = heads // shared  # of each key and value, one a query head

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        projections = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in projections)
        q, k = (norm(part).transpose(1, 2) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        q, k = (part * cos + _turned(part) * sin for part in (q, k))  # (B, H, T, D)
        k, v = (part.repeat_interleave(self.copies, dim=1) for part in (k, v.transpose(1, 2)))
        out = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        mixed: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return mixed


def _turned(x: Tensor) -> Tensor:
    """Each pair (a, b) as (-b, a); a head's first half holds the a's."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


class MLP(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, inner, bias=False)
        self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out
