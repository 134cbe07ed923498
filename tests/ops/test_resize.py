"""The bilinear resize: the quick version is the plain one, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tolerances import tolerance
from upfeat.ops.resize import FEW, resize_bilinear, resize_bilinear_reference


@given(
    channels=st.sampled_from([1, FEW, FEW + 1, 40]),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)
def test_fast_is_the_reference(channels, grid, size) -> None:
    x = torch.randn(2, channels, *grid, dtype=torch.float64)
    torch.testing.assert_close(resize_bilinear(x, size), resize_bilinear_reference(x, size))


@pytest.mark.parametrize("channels", [FEW, 40])
def test_types_and_layouts(channels, device, dtype) -> None:
    x = torch.randn(2, 5, 7, channels, device=device).to(dtype).permute(0, 3, 1, 2)
    out = resize_bilinear(x, (11, 9))
    assert out.shape == (2, channels, 11, 9)
    assert out.dtype == dtype
    torch.testing.assert_close(out, resize_bilinear_reference(x, (11, 9)), **tolerance(dtype))


def test_gradients_flow() -> None:
    x = torch.randn(1, 40, 3, 4, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(1, 40, 8, 8, dtype=torch.float64)
    ours, plain = (
        torch.autograd.grad(resize(x, (8, 8)), x, grad)[0]
        for resize in (resize_bilinear, resize_bilinear_reference)
    )
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        assert not resize_bilinear(x, (8, 8)).requires_grad


def test_traced_as_the_plain_operator() -> None:
    class Resize(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return resize_bilinear(x, (8, 8))

    x = torch.randn(1, 40, 3, 4)
    program = torch.export.export(Resize(), (x,))
    torch.testing.assert_close(program.module()(x), resize_bilinear_reference(x, (8, 8)))
