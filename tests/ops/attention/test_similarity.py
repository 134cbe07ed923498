"""Attention to windows with a border of zeros against its definition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.tolerances import tolerance
from upfeat.ops.attention.similarity import similarity_attention, similarity_attention_reference


def inputs(
    cells: tuple[int, int], scale: tuple[int, int], batch: int = 2, **kwargs: object
) -> list[Tensor]:
    pixels = (cells[0] * scale[0], cells[1] * scale[1])
    shapes = [(batch, 6, *pixels), (batch, 6, *cells), (batch, 5, *cells)]
    kwargs = {"dtype": torch.float64, **kwargs}
    return [torch.randn(shape).to(**kwargs).requires_grad_() for shape in shapes]


def compare(tensors: list[Tensor], kernel_size: int, limit: dict[str, float]) -> None:
    ours = similarity_attention(*tensors, kernel_size)
    plain = similarity_attention_reference(*tensors, kernel_size)
    assert ours.dtype == tensors[2].dtype
    torch.testing.assert_close(ours, plain, **limit)
    grad = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, tensors, grad),
        torch.autograd.grad(plain, tensors, grad),
        strict=True,
    ):
        scaled = {**limit, "atol": limit["atol"] * max(1.0, float(wanted.abs().max()))}
        torch.testing.assert_close(got, wanted, **scaled)


@given(
    cells=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    scale=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel_size=st.sampled_from([1, 3, 5]),
)
def test_any_size(cells: tuple[int, int], scale: tuple[int, int], kernel_size: int) -> None:
    compare(inputs(cells, scale), kernel_size, tolerance(torch.float64))


def test_every_type(device: torch.device, dtype: torch.dtype) -> None:
    compare(inputs((5, 7), (2, 2), device=device, dtype=dtype), 5, tolerance(dtype))


def test_taps_outside_weigh_but_give_nothing() -> None:
    query, key = torch.zeros(1, 3, 8, 8), torch.randn(1, 3, 4, 4)
    out = similarity_attention(query, key, torch.ones(1, 1, 4, 4), 3)[0, 0]
    assert out[0, 0].item() == pytest.approx(4 / 9)
    assert out[0, 3].item() == pytest.approx(6 / 9)
    assert out[4, 4].item() == pytest.approx(1)


@pytest.mark.compile
def test_compile_without_graph_breaks() -> None:
    tensors = inputs((4, 5), (2, 2), dtype=torch.float32)
    compiled = torch.compile(similarity_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(
        compiled(*tensors, 3), similarity_attention(*tensors, 3), **tolerance(torch.float32)
    )


@pytest.mark.parametrize(
    ("shapes", "kernel_size", "match"),
    [
        (((1, 2, 8, 8), (1, 2, 4, 4), (1, 4, 4)), 3, "four axes"),
        (((1, 2, 8, 8), (1, 2, 4, 4), (1, 3, 4, 4)), 4, "odd"),
        (((1, 2, 8, 8), (1, 3, 4, 4), (1, 3, 4, 4)), 3, "same number"),
        (((1, 2, 8, 8), (1, 2, 4, 4), (1, 3, 4, 3)), 3, "share the grid"),
        (((1, 2, 8, 7), (1, 2, 4, 4), (1, 3, 4, 4)), 3, "whole multiple"),
        (((2, 2, 8, 8), (1, 2, 4, 4), (1, 3, 4, 4)), 3, "batch sizes differ"),
    ],
)
def test_refuses_what_does_not_fit(
    shapes: tuple[tuple[int, ...], ...], kernel_size: int, match: str
) -> None:
    with pytest.raises(ValueError, match=match):
        similarity_attention(*(torch.zeros(shape) for shape in shapes), kernel_size)
