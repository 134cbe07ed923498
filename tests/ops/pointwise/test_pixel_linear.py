"""A linear layer on large maps against torch's, forward and backward."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops.pointwise import pixel_linear as module
from upfeat.ops.pointwise.pixel_linear import pixel_linear


@pytest.fixture(autouse=True)
def _everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGE", 1)


def inputs(dtype: torch.dtype, with_bias: bool) -> list[Tensor]:
    shapes = [(2, 5, 7, 3), (4, 3), (4,)][: 2 + with_bias]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_torch_and_its_gradients(
    with_bias: bool, dtype: torch.dtype, device: torch.device
) -> None:
    leaves = [leaf.detach().to(device).requires_grad_() for leaf in inputs(dtype, with_bias)]
    upstream = torch.randn(2, 5, 7, 4, dtype=dtype, device=device)
    results = []
    for function in (pixel_linear, F.linear):
        out = function(*leaves)
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for actual, expected in zip(*results, strict=True):
        assert actual.dtype == dtype
        torch.testing.assert_close(actual, expected, **tolerance(dtype))


def test_gradcheck() -> None:
    assert torch.autograd.gradcheck(pixel_linear, inputs(torch.float64, True))


def test_strided_pixels_and_a_gradient_for_some() -> None:
    image = torch.randn(2, 3, 5, 7)
    weight = torch.randn(4, 3, requires_grad=True)
    out = pixel_linear(image.permute(0, 2, 3, 1), weight)
    expected = torch.einsum("bchw,dc->bhwd", image, weight)
    torch.testing.assert_close(out, expected)
    (gradient,) = torch.autograd.grad(out.square().sum(), weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.square().sum(), weight)[0])
    assert image.grad is None


def test_autocast() -> None:
    x, weight, bias = inputs(torch.float32, True)
    with torch.autocast("cpu", torch.bfloat16):
        out = pixel_linear(x, weight, bias)
        expected = F.linear(x, weight, bias)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, expected, **tolerance(torch.bfloat16))
    out.sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
