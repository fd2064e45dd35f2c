"""How many floating-point operations training takes: what the model asks for, and what is done.

*model*     6 per matrix weight (the head's too) and token, and causal attention: 2 products forward
            and 4 backward over the pairs of tokens that see each other. The same for everybody; the
            share of the machine's peak that it stands for is called MFU.
*executed*  what was computed in fact: less where work that leads nowhere is left out, more for
            padding and for the scores that flash attention computes again.

Norms, rotations and the softmax count nothing. Source for 6: Kaplan et al. 2020, 2001.08361.
"""

from __future__ import annotations

from collections.abc import Sequence

from minimind.data.packing import Batch
from minimind.model.config import ModelConfig

# Products over a pair of tokens: scores and values forward; their four gradients backward.
MODEL_ATTENTION = 6
FLASH_ATTENTION = 7  # flash attention computes the scores once more


def model_flops(config: ModelConfig, lengths: Sequence[int]) -> int:
    """Of one forward and backward pass over rows of these many tokens."""
    tokens = sum(lengths)
    matrices = config.num_hidden_layers * sum(_layer(config)) + _head(config)
    pairs = config.num_hidden_layers * sum(map(causal_pairs, lengths))
    return 6 * matrices * tokens + _attention(config, pairs, MODEL_ATTENTION)


def executed_flops(config: ModelConfig, batch: Batch) -> int:
    """Of our forward and backward pass over one batch.

    In the last layer what comes after attention, and then the head, reads supervised positions
    alone.
    """
    layers, tokens = config.num_hidden_layers, len(batch)
    attention, mlp = _layer(config)
    after = config.hidden_size * config.num_attention_heads * config.head_dim + mlp
    matrices = tokens * (layers * (attention + mlp) - after)
    matrices += batch.num_supervised * (after + _head(config))
    pairs = layers * sum(map(causal_pairs, batch.documents.lengths))
    return 6 * matrices + _attention(config, pairs, FLASH_ATTENTION)


def dense_flops(config: ModelConfig, rows: int, tokens: int) -> int:
    """What a plain implementation computes for `rows` rows padded to `tokens` each."""
    matrices = config.num_hidden_layers * sum(_layer(config)) + _head(config)
    pairs = config.num_hidden_layers * rows * causal_pairs(tokens)
    return 6 * matrices * rows * tokens + _attention(config, pairs, FLASH_ATTENTION)


def causal_pairs(tokens: int) -> int:
    """Pairs of a query and a key it sees."""
    return tokens * (tokens + 1) // 2


def _layer(config: ModelConfig) -> tuple[int, int]:
    """Matrix weights of one layer: of its attention, and of its MLP."""
    width, head_dim = config.hidden_size, config.head_dim
    heads = config.num_attention_heads + config.num_key_value_heads  # twice: q and o, k and v
    return 2 * width * heads * head_dim, 3 * width * config.intermediate_size


def _head(config: ModelConfig) -> int:
    return config.vocab_size * config.hidden_size


def _attention(config: ModelConfig, pairs: int, products: int) -> int:
    return 2 * products * config.num_attention_heads * config.head_dim * pairs
