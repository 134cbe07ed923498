"""Convolutions of row strips, against the framework's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.tolerances import tolerance
from upfeat.ops.runtime import Buffers
from upfeat.ops.stream.convolution import convolve_rows, prepare


def _rounding(winograd: bool) -> int:
    """Winograd's sums of rounded inputs with small factors, beside the framework's."""
    return 6 if winograd else 1


@given(rows=st.integers(1, 13), cols=st.integers(1, 12), size=st.sampled_from([1, 3, 5]))
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("winograd", [False, True])
def test_sizes(winograd: bool, bias: bool, rows: int, cols: int, size: int) -> None:
    image = torch.randn(1, 18, rows + size - 1, cols + size - 1)
    weight, shift = torch.randn(17, 18, size, size) / 9, torch.randn(17) if bias else None
    kernel = prepare(weight, shift, image.dtype, winograd)
    strip, out = image[0].permute(1, 2, 0).contiguous(), torch.empty(rows, cols, 17)
    actual = convolve_rows(strip, kernel, out, Buffers()).permute(2, 0, 1)[None]
    expected = F.conv2d(image, weight, shift)
    limits = {key: _rounding(winograd) * one for key, one in tolerance(torch.float32).items()}
    torch.testing.assert_close(actual, expected, **limits)


@pytest.mark.parametrize("winograd", [False, True])
def test_every_dtype(dtype: torch.dtype, winograd: bool) -> None:
    image, weight, bias = torch.randn(1, 8, 10, 12), torch.randn(6, 8, 3, 3) / 9, torch.randn(6)
    kernel = prepare(weight, bias, dtype, winograd)
    strip = image[0].permute(1, 2, 0).to(dtype).contiguous()
    actual = convolve_rows(strip, kernel, torch.empty(8, 10, 6, dtype=dtype), Buffers())
    expected = F.conv2d(image.double(), weight.double(), bias.double())[0].permute(1, 2, 0)
    limits = tolerance(dtype) if dtype != torch.float64 else {"atol": 1e-6, "rtol": 1e-6}
    limits = {key: _rounding(winograd) * value for key, value in limits.items()}
    torch.testing.assert_close(actual.double(), expected, **limits)


def test_winograd_is_chosen_for_wide_float32_only() -> None:
    def chosen(width: int, dtype: torch.dtype) -> bool:
        return prepare(torch.zeros(width, width, 3, 3), None, dtype).winograd

    assert chosen(192, torch.float32)
    assert not chosen(64, torch.float32)
    assert not chosen(192, torch.bfloat16)


@pytest.mark.parametrize(("size", "winograd"), [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("bias", [False, True])
def test_a_scale_and_a_shift_are_folded_in(size: int, winograd: bool, bias: bool) -> None:
    image, weight = torch.randn(1, 5, 8, 9), torch.randn(7, 5, size, size)
    shift, scale, more = torch.randn(7) if bias else None, torch.randn(7), torch.randn(7)
    kernel = prepare(weight, shift, image.dtype, winograd).scaled(scale, more)
    strip, side = image[0].permute(1, 2, 0), size - 1
    out = torch.empty(8 - side, 9 - side, 7)
    actual = convolve_rows(strip, kernel, out, Buffers())
    expected = F.conv2d(image, weight, shift)[0].permute(1, 2, 0) * scale + more
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_buffers_are_used_again() -> None:
    kernel = prepare(torch.randn(16, 16, 3, 3), None, torch.float32, winograd=True)
    buffers, strip = Buffers(), torch.randn(12, 11, 16)
    convolve_rows(strip, kernel, torch.empty(10, 9, 16), buffers)
    places = {flat.data_ptr() for flat in buffers.free}
    convolve_rows(strip, kernel, torch.empty(10, 9, 16), buffers)
    assert not buffers.taken
    assert places == {flat.data_ptr() for flat in buffers.free}
