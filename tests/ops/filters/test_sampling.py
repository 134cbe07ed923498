"""Sampling at positions against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerances import tolerance
from upfeat.ops.filters.sampling import grouped_sampling, grouped_sampling_reference


def inputs(
    size: tuple[int, int],
    groups: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    features = torch.randn(2, 2 * groups, *size).to(device, dtype)
    span = torch.tensor([size[1] + 1.0, size[0] + 1.0])[:, None, None]
    positions = torch.rand(2, groups, 2, 6, 7) * span - 1  # also beyond the map
    # Half precision would put positions on pixels, where the derivative jumps.
    positions = positions.to(device, torch.promote_types(dtype, torch.float32))
    return [features.requires_grad_(), positions.requires_grad_()]


def compare(tensors: list[Tensor], limit: dict[str, float]) -> None:
    ours, plain = grouped_sampling(*tensors), grouped_sampling_reference(*tensors)
    assert ours.dtype == tensors[0].dtype
    torch.testing.assert_close(ours, plain, **limit)
    grad = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, tensors, grad),
        torch.autograd.grad(plain, tensors, grad),
        strict=True,
    ):
        scaled = {**limit, "atol": limit["atol"] * max(1.0, float(wanted.abs().max()))}
        torch.testing.assert_close(got, wanted, **scaled)


@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), groups=st.integers(1, 3))
def test_any_size(size: tuple[int, int], groups: int) -> None:
    compare(inputs(size, groups), tolerance(torch.float64))


def test_every_type(device: torch.device, dtype: torch.dtype) -> None:
    compare(inputs((5, 6), 2, device=device, dtype=dtype), tolerance(dtype))


@pytest.mark.parametrize(
    ("features", "positions", "match"),
    [
        ((1, 4, 5), (1, 2, 2, 3, 3), "are wanted"),
        ((1, 4, 5, 5), (1, 3, 2, 3, 3), "divide the channels"),
        ((2, 4, 5, 5), (1, 2, 2, 3, 3), "one batch"),
    ],
)
def test_refuses_what_does_not_fit(
    features: tuple[int, ...], positions: tuple[int, ...], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        grouped_sampling(torch.zeros(features), torch.zeros(positions))
