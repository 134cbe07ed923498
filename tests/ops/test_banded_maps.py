"""Operators that read a map in row bands, against the framework's on the whole map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops import stream
from upfeat.ops.coordinates import inclusive_grid
from upfeat.ops.pointwise.positions import fourier_features, grid_turn, rotary_code, rotate_pairs
from upfeat.ops.stream.nodes import pool_columns, pooling_span, pooling_weights


@given(length=st.integers(1, 14), width=st.integers(1, 9), cells=st.integers(1, 17))
def test_pooling(length: int, width: int, cells: int) -> None:
    rows = torch.randn(length, width, 3)
    weights = pooling_weights(length, cells)
    columns = pool_columns(rows, 3)
    actual = torch.einsum("ah,hwc->caw", weights, columns.double()).float()
    expected = F.adaptive_avg_pool2d(rows.permute(2, 0, 1), (cells, 3))
    torch.testing.assert_close(actual, expected, **tolerance(torch.float32))
    for cell in range(cells):
        first, stop = pooling_span(cell, cell + 1, length, cells)
        assert weights[cell].nonzero().flatten().tolist() == list(range(first, stop))


def test_fourier_features_written_out() -> None:
    inputs, phases = torch.randn(3, 2, 2), torch.randn(2, 3, 4)
    actual = fourier_features(inputs, phases)
    frequencies = torch.linspace(-2, 10, 4).exp()
    for step in range(4):
        for i in range(3):
            channel = step * 3 + i
            angle = frequencies[step] * inputs[i]
            sine = (angle + phases[0].flatten()[channel]).sin()
            cosine = (angle + phases[1].flatten()[channel]).cos()
            assert torch.equal(actual[channel], sine)
            assert torch.equal(actual[12 + channel], cosine)


def test_inclusive_grid() -> None:
    grid = inclusive_grid((3, 1), torch.device("cpu"))
    assert grid[0].flatten().tolist() == [-1, 0, 1]
    assert grid[1].flatten().tolist() == [-1, -1, -1]
    assert torch.equal(
        inclusive_grid((3, 4), torch.device("cpu"), slice(1, 3)),
        inclusive_grid((3, 4), torch.device("cpu"))[:, 1:],
    )


def test_rotary_code_keeps_inner_products_of_shifted_pairs() -> None:
    """A rotation keeps norms, and inner products depend on the distance of two positions only."""
    x = torch.randn(16)
    cos, sin = (wave[0] for wave in grid_turn((1, 9), torch.tensor([0.7, 3.0])))  # (W', 4) each
    turned = rotate_pairs(x.expand(1, 9, 16), (cos[None], sin[None]), num_heads=2)[0]  # (9, 16)
    products = turned @ turned.T
    for shift in range(9):
        diagonal = products.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


@pytest.mark.parametrize("size", [(7, 5), (3, 1)])
def test_rotary_code_by_rows(size: tuple[int, int]) -> None:
    x, periods = torch.randn(1, 24, *size), torch.tensor([0.7, 3.0])
    expected = rotary_code(x, periods, num_heads=3, factor=1.3)
    with torch.no_grad(), stream.bounded(0):
        rows = rotary_code(stream.lazy(x), periods, num_heads=3, factor=1.3)
        actual = torch.cat([rows[:, :, :1], rows[:, :, 1:]], dim=2)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float32))
