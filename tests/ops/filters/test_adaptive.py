"""Adaptive convolution and window similarity: the bounded versions against the definitions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops import reference
from upfeat.ops.filters.adaptive import (
    adaptive_convolution,
    window_similarity,
)


def make(size, k, ratio, batch=2, channels=5, dtype=torch.float64):
    rows, cols = (-(-n // ratio) + k - 1 for n in size)
    source = torch.randn(batch, channels, rows, cols, dtype=dtype, requires_grad=True)
    kernel = torch.randn(batch, *size, k, k, dtype=dtype, requires_grad=True)
    return source, kernel


def compare_with_reference(fast, plain, inputs):
    one, two = fast(*inputs), plain(*inputs)
    assert one.shape == two.shape
    assert one.dtype == two.dtype
    torch.testing.assert_close(one, two, **tolerance(one.dtype))
    grad = torch.randn_like(two)
    for mine, theirs in zip(
        torch.autograd.grad(one, inputs, grad), torch.autograd.grad(two, inputs, grad), strict=True
    ):
        assert mine.dtype == theirs.dtype
        torch.testing.assert_close(mine, theirs, **tolerance(mine.dtype))


@settings(max_examples=30)
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    k=st.sampled_from([1, 3, 5, 7]),
    ratio=st.sampled_from([1, 2, 4]),
    max_bytes=st.sampled_from([1, 50_000, 1 << 24]),
)
def test_adaptive_convolution_is_the_definition(size, k, ratio, max_bytes) -> None:
    compare_with_reference(
        lambda s, w: adaptive_convolution(s, w, ratio, max_bytes=max_bytes),
        lambda s, w: reference.adaptive_convolution(s, w, ratio),
        make(size, k, ratio),
    )


@settings(max_examples=20)
@given(
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    k=st.sampled_from([1, 3, 7]),
    max_bytes=st.sampled_from([1, 1 << 24]),
)
def test_window_similarity_is_the_definition(size, k, max_bytes) -> None:
    source, _ = make(size, k, 1)
    query = torch.randn(2, 5, *size, dtype=torch.float64, requires_grad=True)
    compare_with_reference(
        lambda q, s: window_similarity(q, s, k, max_bytes=max_bytes),
        lambda q, s: reference.window_similarity(q, s, k),
        (query, source),
    )


def test_gradcheck() -> None:
    inputs = make((5, 6), 3, 2, batch=1, channels=2)
    assert torch.autograd.gradcheck(lambda s, w: adaptive_convolution(s, w, 2), inputs)
    source, _ = make((5, 6), 3, 1, batch=1, channels=2)
    query = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, s: window_similarity(q, s, 3), (query, source))


def test_dtypes_and_devices(dtype: torch.dtype, device: torch.device) -> None:
    source, kernel = (t.detach().to(device, dtype) for t in make((9, 10), 3, 1))
    kernel = kernel.abs().float().flatten(3).softmax(-1).view_as(kernel).to(dtype)
    actual = adaptive_convolution(source, kernel)
    expected = reference.adaptive_convolution(source.double(), kernel.double())
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, **tolerance(dtype))


def test_every_tap_receives_its_gradient() -> None:
    """FeatUp's CUDA extension leaves 42 of the 49 taps without one."""
    source, kernel = make((6, 6), 7, 1, batch=1)
    adaptive_convolution(source, kernel).sum().backward()
    expected = F.unfold(source.detach().sum(1, keepdim=True), 7)  # (1, 49, 36)
    torch.testing.assert_close(kernel.grad.flatten(3).flatten(1, 2).mT, expected)
    assert (kernel.grad.abs().sum((0, 1, 2)) > 0).all()


def test_several_threads_agree_with_one() -> None:
    source, kernel = make((33, 30), 7, 2, channels=8)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            out = adaptive_convolution(source, kernel, 2)
            results.append((out, *torch.autograd.grad(out.square().sum(), (source, kernel))))
    finally:
        torch.set_num_threads(threads)
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def test_second_derivatives_are_refused() -> None:
    source, kernel = make((4, 4), 3, 1)
    out = adaptive_convolution(source, kernel)
    (grad,) = torch.autograd.grad(out.square().sum(), source, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("source", "kernel", "ratio", "message"),
    [
        ((1, 2, 6), (1, 4, 4, 3, 3), 1, "must be"),
        ((1, 2, 5, 6), (1, 4, 4, 3, 3), 1, "size"),
        ((2, 2, 6, 6), (1, 4, 4, 3, 3), 1, "batch"),
        ((1, 2, 6, 6), (1, 4, 4, 3, 3), 3, "ratio"),
        ((1, 2, 5, 5), (1, 4, 4, 2, 2), 1, "odd"),
    ],
)
def test_errors(source, kernel, ratio, message) -> None:
    with pytest.raises(ValueError, match=message):
        adaptive_convolution(torch.rand(source), torch.rand(kernel), ratio)


def test_similarity_errors() -> None:
    with pytest.raises(ValueError, match="needs a source"):
        window_similarity(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 5, 6), 3)
    with pytest.raises(ValueError, match="floating point"):
        window_similarity(torch.rand(1, 2, 4, 4), torch.ones(1, 2, 6, 6).long(), 3)
    with pytest.raises(ValueError, match="max_bytes"):
        window_similarity(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 6, 6), 3, max_bytes=0)
