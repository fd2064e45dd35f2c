"""How many tokens a device's memory holds at once while it trains."""

from __future__ import annotations

import torch

from minimind.model.transformer import Transformer

CPU_TOKENS = 4096  # on a CPU, fine-tuning is no faster with more tokens at once
USED = (
    0.45  # of a GPU's memory, at most: a graph holds its activations, another batch needs as many
)
STATE_BYTES = 18  # of a parameter: float32 weight, gradient and two moments, half-precision copy


def tokens_that_fit(model: Transformer, device: torch.device) -> int:
    """The default of `--tokens-per-batch`: how many tokens of activations fit beside the weights.

    On CUDA by the GPU's size, so that the same card always gives the same number.
    """
    if device.type != "cuda":
        return CPU_TOKENS
    total = torch.cuda.get_device_properties(device).total_memory
    states = STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())
    return max(CPU_TOKENS, int((USED * total - states) / bytes_per_token(model)))


def bytes_per_token(model: Transformer) -> int:
    """What a token's activations take from its forward to its backward pass, in half precision.

    Fitted to the peaks measured on an H100 at 26M, 135M and 0.6B (commit 94a8f45, docs/gpus.md),
    before there were CUDA graphs; it is within 7% of each.
    """
    c = model.config
    heads = c.num_attention_heads + 2 * c.num_key_value_heads
    per_layer = 16 * c.hidden_size + 8 * c.intermediate_size + 4 * heads * c.head_dim
    return c.num_hidden_layers * per_layer
