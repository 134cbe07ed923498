"""Residual blocks, position code and their bounded versions against the plain definitions."""

import math

import pytest
import torch

from tests.tolerances import tolerance
from upfeat.ops import reference
from upfeat.ops.pointwise import positions as position_code
from upfeat.ops.pointwise.residual import (
    BlockWeights,
    pointwise_residual,
)
from upfeat.ops.stream import moments as group_moments
from upfeat.ops.stream.moments import GroupMoments


@pytest.fixture(autouse=True)
def _narrow_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make even tiny maps take several bands."""
    monkeypatch.setattr(group_moments, "block_bytes", lambda _: 1500)
    monkeypatch.setattr(position_code, "BAND_PIXELS", 12)


def block(channels: int, width: int, dtype: torch.dtype = torch.float64) -> BlockWeights:
    """Random weights of a block, all of them with an influence."""
    shapes = ((channels,), (channels,), (width, channels), (width,), (width,), (width, width))
    weights = [torch.randn(shape, dtype=dtype) for shape in shapes]
    weights[2] /= math.sqrt(channels)
    weights[5] /= math.sqrt(width)
    shortcut = None if channels == width else torch.randn(width, channels, dtype=dtype)
    return BlockWeights(*weights, shortcut)


@pytest.mark.parametrize("width", [8, 16])
def test_residual_equals_the_definition_and_its_gradients(width: int) -> None:
    x = torch.randn(2, 8, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = BlockWeights(*(None if w is None else w.requires_grad_() for w in block(8, width)))
    leaves = [x, *(w for w in weights if w is not None)]
    upstream = torch.randn(2, width, 5, 7, dtype=torch.float64)
    results = []
    for function in (pointwise_residual, reference.pointwise_residual):
        out = function(x, weights, 4, 1e-5)
        results.append([out, *torch.autograd.grad(out, leaves, upstream)])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, **tolerance(torch.float64))


def test_residual_gradcheck() -> None:
    x = torch.randn(1, 4, 3, 2, dtype=torch.float64, requires_grad=True)
    leaves = [w.requires_grad_() for w in block(4, 8) if w is not None]

    def function(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
        return pointwise_residual(x, BlockWeights(*weights), 2, 1e-5)

    assert torch.autograd.gradcheck(function, (x, *leaves))


@pytest.mark.parametrize("channels_last", [False, True])
def test_residual_in_every_dtype(dtype: torch.dtype, channels_last: bool) -> None:
    x = torch.randn(2, 16, 6, 5)
    weights = block(16, 16, torch.float32)
    expected = reference.pointwise_residual(x, weights, 8, 1e-5)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = x.to(dtype).contiguous(memory_format=layout)
    before = x.clone()
    half = BlockWeights(*(None if w is None else w.to(dtype) for w in weights))
    actual = pointwise_residual(x, half, 8, 1e-5)
    assert actual.dtype == dtype
    assert torch.equal(x, before)
    error = (actual.float() - expected).abs().mean() / expected.std()
    assert error < {torch.bfloat16: 2e-2, torch.float16: 2e-3}.get(dtype, 1e-6)


def test_residual_under_autocast() -> None:
    x = torch.randn(1, 8, 6, 5)
    weights = block(8, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        actual = pointwise_residual(x, weights, 4, 1e-5)
    assert actual.dtype == torch.bfloat16
    expected = reference.pointwise_residual(x, weights, 4, 1e-5)
    assert (actual - expected).abs().mean() / expected.std() < 2e-2


def test_residual_says_what_does_not_fit() -> None:
    x = torch.randn(1, 8, 2, 2)
    for message, call in (
        (r"must be \(B, 16", (x, block(16, 16, torch.float32), 4)),
        ("groups do not divide", (x, block(8, 8, torch.float32), 3)),
        ("no shortcut", (x, block(8, 16, torch.float32)._replace(shortcut=None), 4)),
    ):
        with pytest.raises(ValueError, match=message):
            pointwise_residual(*call, 1e-5)


def test_moments_survive_a_large_mean_and_many_bands() -> None:
    pixels = torch.randn(4000, 8) * 0.1 + 100
    moments = GroupMoments(2, 1e-5)
    for band in pixels.split(37):
        moments.add(band)
    mean, rstd = moments.statistics()
    groups = pixels.double().unflatten(1, (2, 4))
    exact = groups.mean((0, 2)), (groups.var((0, 2), correction=0) + 1e-5).rsqrt()
    torch.testing.assert_close(mean[::4].double(), exact[0], atol=0, rtol=1e-6)
    torch.testing.assert_close(rstd[::4].double(), exact[1], atol=0, rtol=1e-5)
    with pytest.raises(ValueError, match="no band"):
        GroupMoments(2, 1e-5).statistics()


def test_position_code_and_its_gradients() -> None:
    x = torch.randn(2, 8, 5, 4, dtype=torch.float64, requires_grad=True)
    freqs = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    actual = position_code.position_code(x, freqs)
    torch.testing.assert_close(actual, reference.position_code(x, freqs))
    assert torch.autograd.gradcheck(position_code.position_code, (x, freqs))


def test_position_code_of_one_pixel_and_odd_widths() -> None:
    x = torch.randn(1, 4, 1, 1)
    assert torch.equal(position_code.position_code(x, torch.ones(2, 4)), x)
    with pytest.raises(ValueError, match="even number"):
        position_code.position_code(torch.randn(1, 3, 2, 2), torch.ones(2, 3))


def test_position_code_of_half_precision_keeps_its_coordinates() -> None:
    """The angles are those of float32, not of 448 coordinates rounded to bfloat16."""
    x = torch.ones(1, 4, 2, 448)
    freqs = torch.full((2, 4), 600.0)
    exact = position_code.position_code(x, freqs)
    half = position_code.position_code(x.bfloat16(), freqs.bfloat16())
    assert (half - exact).abs().max() < 2e-2
