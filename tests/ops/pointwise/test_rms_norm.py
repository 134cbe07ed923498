"""Root-mean-square normalisation against PyTorch's, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerances import tolerance
from upfeat.ops import reference
from upfeat.ops.pointwise.rms_norm import rms_norm
from upfeat.ops.stream import moments as group_moments


def compare(x: Tensor, weight: Tensor, limit: dict[str, float]) -> None:
    inputs = [x.requires_grad_(), weight.requires_grad_()]
    ours, plain = rms_norm(x, weight, 1e-6), reference.rms_norm(x, weight, 1e-6)
    assert ours.dtype == x.dtype
    torch.testing.assert_close(ours, plain, **limit)
    grad = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, inputs, grad),
        torch.autograd.grad(plain, inputs, grad),
        strict=True,
    ):
        scaled = {**limit, "atol": limit["atol"] * max(1.0, float(wanted.abs().max()))}
        torch.testing.assert_close(got, wanted, **scaled)


@given(shape=st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_any_shape(shape: list[int]) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    compare(x, torch.randn(shape[-1], dtype=torch.float64), tolerance(torch.float64))


def test_bands_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_moments, "block_bytes", lambda _: 7 * 16 * 8)
    x = torch.randn(2, 31, 16, dtype=torch.float64)
    compare(x, torch.randn(16, dtype=torch.float64), tolerance(torch.float64))


def test_strided_input(device: torch.device) -> None:
    x = torch.randn(2, 16, 9, device=device, dtype=torch.float64).transpose(1, 2)
    compare(x, torch.randn(16, device=device, dtype=torch.float64), tolerance(torch.float64))


def test_gradients_by_finite_differences() -> None:
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-6), (x, weight))


def test_zeros_stay_zero() -> None:
    x = torch.zeros(3, 8, requires_grad=True)
    out = rms_norm(x, torch.ones(8), 1e-6)
    out.sum().backward()
    assert out.eq(0).all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(4, dtype=torch.float64)])
def test_refuses_what_does_not_fit(weight: Tensor) -> None:
    with pytest.raises(ValueError, match=r"weight must be \(4,\)"):
        rms_norm(torch.ones(2, 4), weight, 1e-6)
