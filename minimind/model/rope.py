"""Rotary frequencies: plain, llama3 and yarn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minimind.model.config import ModelConfig, RopeScaling

# D is head_dim; a head is rotated as D/2 pairs, pair i by the angle position * frequency[i].


def inverse_frequencies(config: ModelConfig) -> tuple[Tensor, float]:
    """How fast each pair of a head turns, in radians per position.

        pair        0        1      ...      D/2 - 1
        frequency   1   theta^(-2/D)  ...  theta^(-(D-2)/D)      fast and local -> slow and global

    Returns:
        The D/2 frequencies, float32 and on the CPU (even inside `torch.device("meta")`: they are
        computed, never loaded), and the factor that cos and sin are multiplied by.

    Source: RoFormer (Su et al. 2021, arXiv:2104.09864); the stretched forms are named below.
    """
    # In float32 step by step, like the checkpoints' own training code: double precision would be
    # closer to the formula and further from the weights.
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device="cpu")
    plain = 1.0 / config.rope_theta ** (exponents / config.head_dim)  # (D/2,)
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling.rope_type == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(plain, scaling, config), _yarn_attention_factor(scaling)


def _llama3(plain: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow pairs are slowed by `factor`, fast ones kept, those between blended (Llama 3.1).

    A pair is fast or slow by its turns over the original context.
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None
    assert high is not None  # RopeScaling checked both
    turns = scaling.original_max_position_embeddings / (2 * math.pi / plain)
    kept = ((turns - low) / (high - low)).clamp(0, 1)  # 0 is slow, 1 is fast
    return (1 - kept) * plain / scaling.factor + kept * plain


def _yarn(plain: Tensor, scaling: RopeScaling, config: ModelConfig) -> Tensor:
    """As llama3, but blended linearly over the pair's index (Peng et al. 2023, section 3.2)."""
    pairs = config.head_dim // 2

    def index_turning(turns: float) -> float:
        """The pair, as a fraction, that makes so many turns over the original context."""
        length = scaling.original_max_position_embeddings
        return pairs * math.log(length / (turns * 2 * math.pi)) / math.log(config.rope_theta)

    first = index_turning(scaling.beta_fast or 32.0)
    last = index_turning(scaling.beta_slow or 1.0)
    if scaling.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    # The bound is D - 1, not D/2 - 1: that is what the published checkpoints were tuned with.
    first, last = max(first, 0), min(last, config.head_dim - 1)
    width = last - first or 0.001
    index = torch.arange(pairs, dtype=torch.float32, device="cpu")
    slowed = ((index - first) / width).clamp(0, 1)
    return slowed * (plain / scaling.factor) + (1 - slowed) * plain


def _yarn_attention_factor(scaling: RopeScaling) -> float:
    """Sharper attention for longer contexts: 0.1 ln(factor) + 1 (Peng et al., section 3.4)."""
    if scaling.attention_factor is not None:
        return scaling.attention_factor

    def sharpness(mscale: float) -> float:
        return 0.1 * mscale * math.log(scaling.factor) + 1.0

    if scaling.mscale and scaling.mscale_all_dim:
        return sharpness(scaling.mscale) / sharpness(scaling.mscale_all_dim)
    return sharpness(1.0)
