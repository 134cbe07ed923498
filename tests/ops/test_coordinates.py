"""Continuous positions: they agree with the pixel grids that they lie between."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from upfeat.ops.coordinates import (
    inclusive_grid,
    inclusive_places,
    pixel_centres,
    sample_around,
    sample_at,
)

SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@given(SIZES)
def test_samples_at_centres_are_the_pixels(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    coords = pixel_centres(size).expand(2, -1, -1)
    expected = image.flatten(2).transpose(1, 2)
    torch.testing.assert_close(sample_at(image, coords), expected, atol=1e-5, rtol=1e-5)


@given(SIZES)
def test_inclusive_places_of_centres_are_the_grid(size: tuple[int, int]) -> None:
    expected = inclusive_grid(size, torch.device("cpu")).flatten(1).T.double()
    actual = inclusive_places(pixel_centres(size, dtype=torch.float64), size)
    assert (actual - expected).abs().max() < 1e-12


@given(SIZES)
def test_patches_at_centres_are_those_of_a_convolution(size: tuple[int, int]) -> None:
    image = torch.randn(2, 3, *size)
    coords = pixel_centres(size).expand(2, -1, -1)
    samples, _, inside = sample_around(image, coords, 5)
    expected = torch.nn.functional.unfold(image, 5, padding=2).transpose(1, 2)  # (B, HW, C k k)
    actual = (samples * inside).flatten(1).view_as(expected)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def test_gradients_reach_positions() -> None:
    coords = (torch.rand(1, 6, 2, dtype=torch.float64) * 1.9 - 0.95).requires_grad_()
    image = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda c: sample_at(image, c), (coords,))
    assert torch.autograd.gradcheck(lambda c: inclusive_places(c, (4, 5)), (coords,))
