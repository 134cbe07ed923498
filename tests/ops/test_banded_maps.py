"""Operators that read a map in row bands, against the framework's on the whole map."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops import stream
from upfeat.ops._dispatch import Scratch
from upfeat.ops.banded_convolution import (
    ConvolvedRows,
    convolve_rows,
    fold_batch_norm,
    prepare_kernel,
)
from upfeat.ops.banded_pooling import pool_columns, pooling_span, pooling_weights
from upfeat.ops.cross_attention import cross_attention_reference, prepare_layer
from upfeat.ops.fourier_features import fourier_features, inclusive_grid
from upfeat.ops.rotary_code import grid_turn, rotary_code, rotate_pairs


def read_all(read, height: int, step: int) -> Tensor:
    bands = [read(i, min(i + step, height)).clone() for i in range(0, height, step)]
    return torch.cat(bands).permute(2, 0, 1)[None]  # (1, K, H, W)


def padded(x: Tensor, border: str) -> Tensor:
    return F.pad(x, (1, 1, 1, 1), mode="reflect" if border == "reflect" else "constant")


@pytest.mark.parametrize("winograd", [False, True])
@pytest.mark.parametrize("border", ["zeros", "reflect"])
@given(height=st.integers(2, 13), width=st.integers(2, 12), step=st.integers(1, 14))
def test_stack_of_convolutions(
    winograd: bool, border: str, height: int, width: int, step: int
) -> None:
    x = torch.randn(1, 3, height, width)
    weights = [torch.randn(5, 3, 3, 3) / 5, torch.randn(4, 5, 3, 3) / 7, torch.randn(6, 4, 1, 1)]
    weights.append(torch.randn(2, 6, 1, 1))
    biases = [torch.randn(len(weight)) for weight in weights]
    expected = x
    for weight, bias in zip(weights, biases, strict=True):
        wide = padded(expected, border) if weight.shape[-1] == 3 else expected
        expected = F.conv2d(wide, weight, bias)
    scratch = Scratch(x, x.dtype)
    rows = x[0].permute(1, 2, 0)
    read = lambda start, stop: rows[start:stop]  # noqa: E731
    for weight, bias in zip(weights, biases, strict=True):
        kernel = prepare_kernel(weight, bias, winograd if weight.shape[-1] == 3 else None)
        read = ConvolvedRows(read, kernel, (height, width), border, scratch).read
    actual = read_all(read, height, step)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float32))


@pytest.mark.parametrize("winograd", [False, True])
def test_convolution_in_every_dtype(dtype: torch.dtype, winograd: bool) -> None:
    x = torch.randn(1, 8, 10, 12)
    weight, bias = torch.randn(6, 8, 3, 3) / 9, torch.randn(6)
    kernel = prepare_kernel(weight.to(dtype), bias.to(dtype), winograd)
    rows = x[0].permute(1, 2, 0).to(dtype).contiguous()
    actual = convolve_rows(rows, kernel, Scratch(rows, dtype))
    expected = F.conv2d(x.double(), weight.double(), bias.double())[0].permute(1, 2, 0)
    limits = tolerance(dtype) if dtype != torch.float64 else {"atol": 1e-6, "rtol": 1e-6}
    if dtype == torch.float64:
        expected = F.conv2d(x.double(), weight.double(), bias.double())[0].permute(1, 2, 0)
    factor = 4 if winograd else 1  # sums of four rounded inputs
    limits = {key: factor * value for key, value in limits.items()}
    torch.testing.assert_close(actual.double(), expected, **limits)


def test_winograd_is_chosen_for_wide_float32_only() -> None:
    def chosen(width: int, dtype: torch.dtype) -> bool:
        weight = torch.zeros(width, width, 3, 3, dtype=dtype)
        return prepare_kernel(weight, weight[0, 0, 0]).winograd

    assert chosen(192, torch.float32)
    assert not chosen(64, torch.float32)
    assert not chosen(192, torch.bfloat16)


def test_convolution_errors() -> None:
    with pytest.raises(ValueError, match="weight must be"):
        prepare_kernel(torch.zeros(1, 1, 5, 5), torch.zeros(1))
    kernel = prepare_kernel(torch.zeros(1, 1, 3, 3), torch.zeros(1))
    scratch = Scratch(torch.zeros(1), torch.float32)
    with pytest.raises(ValueError, match="reflected"):
        ConvolvedRows(lambda a, b: torch.zeros(b - a, 4, 1), kernel, (1, 4), "reflect", scratch)
    stream = ConvolvedRows(lambda a, b: torch.zeros(b - a, 4, 1), kernel, (6, 4), "zeros", scratch)
    stream.read(0, 2)
    with pytest.raises(ValueError, match="in order"):
        stream.read(0, 2)


def test_batch_norm_is_folded() -> None:
    conv, norm = torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.2, 4)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(1, 3, 6, 7)
    affine = (norm.weight, norm.bias)
    folded = fold_batch_norm(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, affine, norm.eps
    )
    torch.testing.assert_close(F.conv2d(x, *folded), norm(conv(x)), **tolerance(torch.float32))


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


@pytest.mark.parametrize("width", [16, 20, 101])
def test_cross_attention_layer(width: int) -> None:
    heads, channels = 2, 2 * width
    attention = torch.nn.MultiheadAttention(channels, heads, batch_first=True)
    layer = torch.nn.ModuleDict(
        {
            "norm_query": torch.nn.LayerNorm(channels),
            "norm_tokens": torch.nn.LayerNorm(channels),
            "attention": attention,
            "norm": torch.nn.LayerNorm(channels),
            "expand": torch.nn.Linear(channels, 24),
            "reduce": torch.nn.Linear(24, channels),
        }
    )
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    queries, tokens = torch.randn(50, channels), torch.randn(9, channels)
    with torch.no_grad():
        normed, memory = layer["norm_query"](queries), layer["norm_tokens"](tokens)
        projected = [
            F.linear(x, weight, bias)
            for x, weight, bias in zip(
                (normed, memory, memory),
                attention.in_proj_weight.chunk(3),
                attention.in_proj_bias.chunk(3),
                strict=True,
            )
        ]
        expected = queries + attention.out_proj(cross_attention_reference(*projected, heads))
        expected = expected + layer["reduce"](F.gelu(layer["expand"](layer["norm"](expected))))
        prepared = prepare_layer(dict(layer.named_parameters()), heads)
        assert prepared.query[0].shape[0] % (8 * heads) == 0
        prepared.apply_(queries, *prepared.keys_values(tokens))
    torch.testing.assert_close(queries, expected, atol=1e-4, rtol=1e-4)


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
    rows = grid_turn((6, 4), torch.tensor([0.7]), rows=slice(2, 5))
    for part, whole in zip(rows, grid_turn((6, 4), torch.tensor([0.7])), strict=True):
        assert torch.equal(part, whole[2:5])


@pytest.mark.parametrize("size", [(7, 5), (3, 1)])
def test_rotary_code_by_rows(size: tuple[int, int]) -> None:
    x, periods = torch.randn(1, 24, *size), torch.tensor([0.7, 3.0])
    expected = rotary_code(x, periods, num_heads=3, factor=1.3)
    with torch.no_grad(), stream.bounded(0):
        rows = rotary_code(stream.lazy(x), periods, num_heads=3, factor=1.3)
        actual = torch.cat([rows[:, :, :1], rows[:, :, 1:]], dim=2)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float32))
