from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.documents import Documents
from minimind.model.cache import KVCache
from minimind.model.config import ModelConfig, RopeScaling
from minimind.model.transformer import Transformer

TOLERANCE = 1e-5
QWEN3 = ModelConfig(
    model_type="qwen3",
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    qk_norm=True,
    tie_word_embeddings=True,
)
QWEN2 = replace(QWEN3, model_type="qwen2", qk_norm=False, qkv_bias=True, num_key_value_heads=4)
LLAMA = replace(
    QWEN3,
    model_type="llama",
    qk_norm=False,
    qkv_bias=True,
    o_bias=True,
    mlp_bias=True,
    num_key_value_heads=1,
    tie_word_embeddings=False,
    rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
)
SMOLLM3 = replace(QWEN3, model_type="smollm3", qk_norm=False, layers_without_rope=(1,))
every_family = pytest.mark.parametrize(
    "config", [QWEN3, QWEN2, LLAMA, SMOLLM3], ids=lambda config: config.model_type
)


def random_model(config: ModelConfig) -> Transformer:
    """Every parameter random, biases too, and large enough that attention isn't flat."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)
    return model


def random_documents(lengths: list[int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(QWEN3.vocab_size, (length,), generator=generator) for length in lengths]


def packed_states(
    model: Transformer,
    documents: list[Tensor],
    keep: Tensor | None = None,
    activation_checkpointing: bool = False,
) -> Tensor:
    lengths = [len(document) for document in documents]
    positions = torch.cat([torch.arange(length) for length in lengths])
    return model.hidden_states(
        torch.cat(documents),
        positions,
        Documents.of(lengths),
        keep,
        activation_checkpointing=activation_checkpointing,
    )


def packed_logits(model: Transformer, documents: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return F.linear(packed_states(model, documents), model.head_weight)


def full_logits(model: Transformer, document: Tensor) -> Tensor:
    """(tokens, V), of one document on its own."""
    with torch.no_grad():
        return model(document[None])[0]


def assert_near(actual: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1  # logits that could differ
    torch.testing.assert_close(actual, expected, atol=TOLERANCE, rtol=0)


def test_a_run_of_ids_without_rows_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"input_ids: their shape is \[3\]; give \(batch, tokens\)"
    ):
        random_model(QWEN3)(torch.tensor([1, 2, 3]))


# The cache


@every_family
@pytest.mark.parametrize("lengths", [[7], [5, 5, 5], [1, 9, 4, 30]], ids=str)
@torch.inference_mode()
def test_cached_logits_are_the_full_ones(config, lengths) -> None:
    model = random_model(config)
    new_tokens = 12
    documents = random_documents([length + new_tokens for length in lengths])
    expected = [full_logits(model, document) for document in documents]

    cache = KVCache(config, len(lengths), max(lengths) + new_tokens)
    prompts = [doc[:length] for doc, length in zip(documents, lengths, strict=True)]
    logits = model.prefill(prompts, cache)
    for step in range(new_tokens):
        last = [length + step - 1 for length in lengths]
        rows = [full[index] for full, index in zip(expected, last, strict=True)]
        assert_near(logits, torch.stack(rows))
        tokens = [document[index + 1] for document, index in zip(documents, last, strict=True)]
        logits = model.decode(torch.stack(tokens), cache)
    assert cache.lengths == [length + new_tokens for length in lengths]


@every_family
@torch.inference_mode()
def test_rows_that_leave_the_cache_change_nothing_for_those_that_stay(config) -> None:
    model = random_model(config)
    documents = random_documents([8, 20, 15, 20])
    cache = KVCache(config, 4, 20)
    model.prefill([document[:-2] for document in documents], cache)
    cache.keep([3, 1])  # these are equally long
    for index in (-2, -1):
        logits = model.decode(torch.stack([documents[3][index], documents[1][index]]), cache)
        expected = [full_logits(model, documents[row])[index] for row in (3, 1)]
        assert_near(logits, torch.stack(expected))


@torch.inference_mode()
def test_a_half_precision_cache_serves_a_float32_model() -> None:
    model = random_model(QWEN3)
    (document,) = random_documents([10])
    cache = KVCache(QWEN3, 1, 10, dtype=torch.bfloat16)
    model.prefill([document[:-1]], cache)
    logits = model.decode(document[-1:], cache)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits[0], full_logits(model, document)[-1], atol=0.3, rtol=0)


# Packing


@every_family
def test_packed_documents_get_the_logits_that_each_gets_alone(config) -> None:
    model = random_model(config)
    documents = random_documents([1, 17, 5, 33, 1, 40])
    alone = torch.cat([full_logits(model, document) for document in documents])
    assert_near(packed_logits(model, documents), alone)


@every_family
def test_editing_one_document_changes_no_other_by_a_bit(config) -> None:
    model = random_model(config)
    documents = random_documents([6, 11, 9])
    before = packed_logits(model, documents).split([6, 11, 9])
    edited = [documents[0], (documents[1] + 1) % config.vocab_size, documents[2]]
    after = packed_logits(model, edited).split([6, 11, 9])
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert torch.equal(before[2], after[2])


@every_family
def test_editing_a_token_changes_no_earlier_one_by_a_bit(config) -> None:
    model = random_model(config)
    (document,) = random_documents([20])
    edited = document.clone()
    edited[12] = (edited[12] + 1) % config.vocab_size
    before, after = full_logits(model, document), full_logits(model, edited)
    assert torch.equal(before[:12], after[:12])
    assert ((before[12:] - after[12:]).abs().amax(-1) > 1e-4).all()


@every_family
def test_a_rectangular_batch_gets_the_logits_of_its_rows(config) -> None:
    model = random_model(config)
    rows = torch.stack(random_documents([14, 14, 14]))
    with torch.no_grad():
        logits = model(rows)
    assert_near(logits, torch.stack([full_logits(model, row) for row in rows]))


@every_family
@pytest.mark.parametrize("keep", [[0, 5, 6, 20, 25], [5, 16, 25], [3, 5, 6, 16, 18, 19]])
def test_kept_states_and_their_gradients_are_those_of_all(config, keep) -> None:
    documents, keep = random_documents([6, 11, 9]), torch.tensor(keep)
    results = []
    for states_of in (
        lambda model: packed_states(model, documents, keep),
        lambda model: packed_states(model, documents)[keep],
    ):
        model = random_model(config)
        states = states_of(model)
        F.linear(states, model.head_weight).logsumexp(-1).sum().backward()
        results.append([states, *(parameter.grad for parameter in model.parameters())])
    for some, all_of_them in zip(*results, strict=True):
        torch.testing.assert_close(some, all_of_them)


# Gradients


@every_family
def test_activation_checkpointing_changes_no_gradient_by_a_bit(config) -> None:
    documents = random_documents([6, 11, 9])
    keep = torch.tensor([3, 10, 11, 25])
    results = []
    for activation_checkpointing in (False, True):
        model = random_model(config)
        states = packed_states(model, documents, keep, activation_checkpointing)
        loss = F.linear(states, model.head_weight).logsumexp(-1).sum()
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        assert all(gradient is not None for gradient in gradients)
        results.append([loss.detach(), *gradients])
    assert all(map(torch.equal, *results))


# Fresh weights


def test_a_seed_decides_the_fresh_weights() -> None:
    first, same, other = (Transformer(LLAMA).initialize(seed) for seed in (1, 1, 2))
    assert torch.equal(first.head_weight, same.head_weight)
    assert not torch.equal(first.head_weight, other.head_weight)


def test_fresh_biases_are_0_norms_are_1_and_output_projections_smaller_by_depth() -> None:
    weights = Transformer(replace(LLAMA, hidden_size=256)).initialize(std=0.05).state_dict()
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any()
        elif "norm" in name:
            assert (weight == 1).all()
        else:
            expected = 0.05 / 6**0.5 if "o_proj" in name or "down_proj" in name else 0.05
            assert weight.std().item() == pytest.approx(expected, rel=0.1), name
