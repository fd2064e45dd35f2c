from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from minimind.model.config import ModelConfig, RopeScaling
from minimind.model.rope import inverse_frequencies
from tests.support.checkpoints import rope_scalings


def config(scaling: RopeScaling | None = None, theta: float = 1e4, head_dim: int = 64):
    return ModelConfig(
        model_type="llama",
        vocab_size=8,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=2**20,
        rope_theta=theta,
        rope_scaling=scaling,
    )


def theirs(ours: ModelConfig) -> tuple[torch.Tensor, float]:
    written = ours.to_hf()
    known = {k: written[k] for k in ("head_dim", "max_position_embeddings", "rope_parameters")}
    rope = LlamaRotaryEmbedding(LlamaConfig(**known))
    return rope.inv_freq, rope.attention_scaling


def test_plain_frequencies_follow_the_formula() -> None:
    frequencies, scaling = inverse_frequencies(config(head_dim=4))
    assert frequencies.tolist() == pytest.approx([1.0, 1e4 ** (-2 / 4)])
    assert scaling == 1.0


@given(st.floats(1e3, 1e7), st.integers(1, 64))
def test_plain_frequencies_are_bit_for_bit_those_of_transformers(theta, pairs) -> None:
    ours = config(theta=theta, head_dim=2 * pairs)
    assert torch.equal(inverse_frequencies(ours)[0], theirs(ours)[0])


@given(rope_scalings, st.floats(1e3, 1e7), st.sampled_from([2, 4, 16, 64, 128]))
def test_stretched_frequencies_are_those_of_transformers(scaling, theta, head_dim) -> None:
    ours = config(scaling, theta, head_dim)
    frequencies, attention_scaling = inverse_frequencies(ours)
    expected, expected_scaling = theirs(ours)
    torch.testing.assert_close(frequencies, expected, rtol=1e-5, atol=0)
    assert attention_scaling == pytest.approx(expected_scaling, rel=1e-12)


def test_llama3_keeps_fast_pairs_and_slows_slow_ones() -> None:
    scaling = RopeScaling(
        rope_type="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )
    plain, _ = inverse_frequencies(config(theta=5e5))
    stretched, _ = inverse_frequencies(config(scaling, theta=5e5))
    turns = 8192 * plain / (2 * math.pi)
    assert torch.equal(stretched[turns > 4], plain[turns > 4])
    torch.testing.assert_close(stretched[turns < 1], plain[turns < 1] / 8)
    between = (turns > 1) & (turns < 4)
    assert between.any()
    assert ((stretched < plain) & (stretched > plain / 8))[between].all()


def test_frequencies_are_real_even_while_a_model_is_laid_out_on_the_meta_device() -> None:
    scaling = RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=128)
    for ours in (config(), config(scaling)):
        with torch.device("meta"):
            frequencies, _ = inverse_frequencies(ours)
        assert frequencies.device.type == "cpu"
        assert frequencies.dtype == torch.float32
