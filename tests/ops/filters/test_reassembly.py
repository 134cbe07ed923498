"""Reassembly of windows: the products of tiles against the definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerances import tolerance
from upfeat.ops import reference
from upfeat.ops.filters.reassembly import (
    window_products,
    window_reassembly,
)


def inputs(
    cells: tuple[int, int],
    scale: tuple[int, int],
    kernel_size: int = 3,
    groups: int = 1,
    channels: int = 4,
    batch: int = 2,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    border = kernel_size - 1
    pixels = (cells[0] * scale[0], cells[1] * scale[1])
    features = torch.randn(batch, channels, cells[0] + border, cells[1] + border)
    weights = torch.randn(batch, groups, kernel_size**2, *pixels)
    kwargs = {"dtype": torch.float64, **kwargs}
    return features.to(**kwargs).requires_grad_(), weights.to(**kwargs).requires_grad_()


def compare(
    features: Tensor, weights: Tensor, kernel_size: int, limit: dict[str, float], **options: int
) -> None:
    ours = window_reassembly(features, weights, kernel_size, **options)
    plain = reference.window_reassembly(features, weights, kernel_size)
    assert ours.dtype == features.dtype
    torch.testing.assert_close(ours, plain, **limit)
    grad = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, (features, weights), grad),
        torch.autograd.grad(plain, (features, weights), grad),
        strict=True,
    ):
        scaled = {**limit, "atol": limit["atol"] * max(1.0, float(wanted.abs().max()))}
        torch.testing.assert_close(got, wanted, **scaled)


@given(
    cells=st.tuples(st.integers(1, 19), st.integers(1, 19)),
    scale=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel_size=st.integers(1, 5),
    groups=st.integers(1, 3),
    max_bytes=st.sampled_from([1, 30_000, None]),
)
def test_any_size(
    cells: tuple[int, int],
    scale: tuple[int, int],
    kernel_size: int,
    groups: int,
    max_bytes: int | None,
) -> None:
    features, weights = inputs(cells, scale, kernel_size, groups, channels=2 * groups)
    options = {} if max_bytes is None else {"max_bytes": max_bytes}
    compare(features, weights, kernel_size, tolerance(torch.float64), **options)


def test_every_type(device: torch.device, dtype: torch.dtype) -> None:
    features, weights = inputs((5, 7), (2, 2), 5, groups=2, device=device, dtype=dtype)
    compare(features, weights, 5, tolerance(dtype))


@pytest.mark.parametrize(("scale", "kernel_size"), [((2, 2), 5), ((14, 14), 4)])
def test_size_of_production(scale: tuple[int, int], kernel_size: int) -> None:
    features, weights = inputs((32, 33), scale, kernel_size, channels=16, dtype=torch.float32)
    compare(features, weights.detach().softmax(2).requires_grad_(), kernel_size, {
        "atol": 1e-5, "rtol": 1e-4,
    })  # fmt: skip


@given(
    cells=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    scale=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.integers(1, 5),
    max_bytes=st.sampled_from([1, 30_000, None]),
)
def test_products_of_any_size(
    cells: tuple[int, int], scale: tuple[int, int], kernel_size: int, max_bytes: int | None
) -> None:
    bordered, _ = inputs(cells, scale, kernel_size)
    pixels = (cells[0] * scale[0], cells[1] * scale[1])
    query = torch.randn(2, 4, *pixels, dtype=torch.float64, requires_grad=True)
    ours = window_products(query, bordered, kernel_size, max_bytes=max_bytes)
    plain = reference.window_products(query, bordered, kernel_size)
    torch.testing.assert_close(ours, plain)
    grad = torch.randn_like(plain)
    torch.testing.assert_close(
        torch.autograd.grad(ours, (query, bordered), grad),
        torch.autograd.grad(plain, (query, bordered), grad),
    )


def test_gradcheck() -> None:
    features, weights = inputs((2, 3), (2, 1), 3, groups=2, batch=1)
    assert torch.autograd.gradcheck(lambda f, w: window_reassembly(f, w, 3), (features, weights))


def test_one_gradient_alone() -> None:
    features, weights = inputs((3, 4), (2, 2))
    both = torch.autograd.grad(window_reassembly(features, weights, 3).sum(), (features, weights))
    first = torch.autograd.grad(window_reassembly(features, weights.detach(), 3).sum(), features)
    second = torch.autograd.grad(window_reassembly(features.detach(), weights, 3).sum(), weights)
    torch.testing.assert_close((*first, *second), both)


def test_inputs_of_any_stride() -> None:
    features, weights = inputs((4, 5), (2, 2))
    wanted = window_reassembly(features, weights, 3)
    last = features.contiguous(memory_format=torch.channels_last)
    turned = weights.transpose(2, 4).contiguous().transpose(2, 4)
    torch.testing.assert_close(window_reassembly(last, turned, 3), wanted)


@pytest.mark.compile
def test_compile_without_graph_breaks() -> None:
    features, weights = inputs((4, 5), (2, 2), dtype=torch.float32)
    compiled = torch.compile(window_reassembly, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(features, weights, 3),
        window_reassembly(features, weights, 3),
        **tolerance(torch.float32),
    )


@pytest.mark.parametrize(
    ("features", "weights", "match"),
    [
        ((1, 4, 6, 6), (1, 9, 8, 8), "are wanted"),
        ((1, 4, 6, 6), (1, 1, 4, 8, 8), "9 taps"),
        ((1, 4, 2, 6), (1, 1, 9, 8, 8), "border of 2"),
        ((2, 4, 6, 6), (1, 1, 9, 8, 8), "one batch"),
        ((1, 4, 6, 6), (1, 3, 9, 8, 8), "3 groups"),
        ((1, 4, 6, 6), (1, 1, 9, 8, 7), "whole multiple"),
    ],
)
def test_refuses_what_does_not_fit(
    features: tuple[int, ...], weights: tuple[int, ...], match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        window_reassembly(torch.zeros(features), torch.zeros(weights), 3)
    with pytest.raises(ValueError, match="max_bytes"):
        window_reassembly(torch.zeros(1, 4, 6, 6), torch.zeros(1, 1, 9, 8, 8), 3, max_bytes=0)


def test_products_refuse_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="same channels"):
        window_products(torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 6, 6), 3)
    with pytest.raises(ValueError, match="whole multiple"):
        window_products(torch.zeros(1, 4, 8, 7), torch.zeros(1, 4, 6, 6), 3)
