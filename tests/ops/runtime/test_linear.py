"""Linear layers by either library, with and without gradients."""

import pytest
import torch
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops.runtime.linear import linear, rows_product

SHAPES = [(32, 48), (16, 16), (3, 32), (32, 1)]


@pytest.mark.parametrize(("width", "outputs"), SHAPES)
@pytest.mark.parametrize("shape", [(), (7,), (2, 5), (0, 4)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_frameworks(
    dtype: torch.dtype, width: int, outputs: int, shape: tuple[int, ...], bias: bool
) -> None:
    x, weight = torch.randn(*shape, width).to(dtype), (torch.randn(outputs, width) / 6).to(dtype)
    shift = torch.randn(outputs).to(dtype) if bias else None
    expected = F.linear(x, weight, shift)
    actual = linear(x, weight, shift)
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected, **tolerance(dtype))


def test_rows_of_any_strides_give_contiguous_rows() -> None:
    rows, weight = torch.randn(32, 9).T[::2], torch.randn(64, 24).T[:, ::2]
    out = rows_product(rows, weight)
    assert out.is_contiguous()
    torch.testing.assert_close(out, rows @ weight.T, **tolerance(torch.float32))


def test_gradients_flow_twice() -> None:
    x = torch.randn(3, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(16, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(linear, (x, weight))
    x, weight = x.detach().float(), weight.detach().float().requires_grad_()
    linear(x, weight).sum().backward()
    assert weight.grad is not None


def test_autocast_chooses_the_type() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert linear(torch.randn(3, 32), torch.randn(32, 32)).dtype == torch.bfloat16
