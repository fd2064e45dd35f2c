from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from minimind.model.linear import FEW_ROWS, Linear, linear
from minimind.sampler import SampleConfig, generate_batch
from tests.test_transformer import every_family, random_documents, random_model


def random_layer(inputs: int, outputs: int, bias: bool = True) -> Linear:
    torch.manual_seed(0)
    return Linear(inputs, outputs, bias=bias)


@pytest.mark.parametrize("rows", [0, 1, 2, 8, FEW_ROWS, FEW_ROWS + 1])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 97), (64, 96), (33, 1408), (512, 576)])
@pytest.mark.parametrize("bias", [False, True])
@torch.inference_mode()
def test_a_product_in_blocks_is_the_product(rows, inputs, outputs, bias) -> None:
    layer = random_layer(inputs, outputs, bias)
    x = torch.randn(rows, inputs)
    expected = F.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    torch.testing.assert_close(layer(x).double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@torch.inference_mode()
def test_other_dtypes_take_the_usual_product(dtype) -> None:
    layer = random_layer(32, 64).to(dtype)
    x = torch.randn(1, 32, dtype=dtype)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_training_takes_the_usual_product_to_the_bit() -> None:
    layer = random_layer(32, 64)
    x = torch.randn(1, 32, requires_grad=True)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0, keepdim=True))


@torch.inference_mode()
def test_a_weight_that_is_not_contiguous_is_served_too() -> None:
    weight = torch.randn(32, 64).t()
    x = torch.randn(1, 32)
    torch.testing.assert_close(linear(x, weight), x @ weight.t())


# Generation: the tokens that training's product, F.linear, finds likeliest


@every_family
@pytest.mark.parametrize("rows", [1, 8])
def test_greedy_tokens_are_the_likeliest_of_the_usual_product(config, rows) -> None:
    config = replace(config, vocab_size=104)  # in blocks, too
    model = random_model(config)
    prompts = random_documents([5, 9, 1, 30, 12, 9, 100, 2][:rows])  # one ends with the context
    greedy = SampleConfig(temperature=0, max_new_tokens=60)
    answers = generate_batch(model, prompts, greedy, stop_ids=range(3))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = torch.cat([prompt, torch.tensor(answer)])
        logits = model(ids[None, :-1])[0, len(prompt) - 1 :]  # with gradients
        assert logits.argmax(-1).tolist() == answer
    assert len({len(answer) for answer in answers}) > 1 or rows == 1  # some ended before others
