"""The passes written out by hand are PyTorch's formulas, forward and backward."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.model.elementwise import rms_norm, rotate


def draw(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = function(*inputs)
    upstream = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("shape", [(7, 12), (5, 3, 8), (1, 4)])
def test_rms_norm_is_pytorchs(shape: tuple[int, ...]) -> None:
    inputs = draw(shape, shape[-1:])
    ours = gradients(lambda x, w: rms_norm(x, w, 1e-5), inputs)
    theirs = gradients(lambda x, w: F.rms_norm(x, w.shape, w, 1e-5), inputs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


def test_rms_norm_takes_a_gradient_that_lies_in_another_order() -> None:
    x, weight, upstream = draw((6, 4), (4,), (4, 6))
    x.requires_grad_()
    (ours,) = torch.autograd.grad(rms_norm(x, weight, 1e-6), x, upstream.t())
    (theirs,) = torch.autograd.grad(F.rms_norm(x, (4,), weight, 1e-6), x, upstream.t())
    torch.testing.assert_close(ours, theirs)


def test_a_row_of_zeros_has_finite_gradients() -> None:
    x = torch.zeros(2, 4, requires_grad=True)
    rms_norm(x, torch.ones(4), 1e-6).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_a_rotation_has_the_gradient_of_its_formula() -> None:
    x, angles = draw((5, 3, 8), (5, 1, 4))
    x.requires_grad_()
    assert torch.autograd.gradcheck(rotate, (x, angles.cos(), angles.sin()))


def test_a_rotation_turns_each_pair_by_its_angle() -> None:
    x = torch.tensor([[[1.0, 0.0, 0.0, 2.0]]])  # the pairs (1, 0) and (0, 2)
    angles = torch.tensor([[[torch.pi / 2, torch.pi]]])
    turned = rotate(x, angles.cos(), angles.sin())
    torch.testing.assert_close(turned, torch.tensor([[[0.0, 0.0, 1.0, -2.0]]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_half(dtype: torch.dtype) -> None:
    x, weight = (part.to(dtype) for part in draw((6, 2, 8), (8,)))
    angles = torch.ones(6, 1, 4)
    assert rms_norm(x, weight, 1e-6).dtype == dtype
    assert rotate(x, angles.cos(), angles.sin()).dtype == dtype
