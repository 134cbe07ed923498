"""Linear layers by either library, with and without gradients."""

import pytest
import torch
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops.runtime import linear as libraries
from upfeat.ops.runtime.linear import add_product, linear, rows_product

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


@pytest.mark.parametrize("intel", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_both_makers_processors_get_the_same(
    monkeypatch: pytest.MonkeyPatch, intel: bool, bias: bool
) -> None:
    monkeypatch.setattr(libraries, "made_by_intel", lambda: intel)
    rows, weight = torch.randn(7, 32), torch.randn(24, 32) / 6
    shift = torch.randn(24) if bias else None
    expected = F.linear(rows, weight, shift)
    out = torch.empty(7, 24)
    rows_product(rows, weight, shift, out)
    torch.testing.assert_close(out, expected, **tolerance(torch.float32))
    add_product(out, rows, weight, shift)
    torch.testing.assert_close(out, 2 * expected, **tolerance(torch.float32))
