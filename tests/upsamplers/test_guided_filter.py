"""The guided filter as an upsampler."""

from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.upsamplers.contract import UpsamplerContract
from upfeat.ops import guided_filter


class TestColor(UpsamplerContract):
    name = "guided_filter"
    config: ClassVar = {"eps": 0.1}


class TestGray(UpsamplerContract):
    name = "guided_filter"
    config: ClassVar = {"eps": 0.1, "guide": "gray", "radius": 1}


def test_at_the_grids_own_size_it_is_the_filter() -> None:
    image = torch.rand(1, 1, 8, 9, dtype=torch.float64).expand(1, 3, 8, 9)
    values = torch.randn(1, 2, 8, 9, dtype=torch.float64)
    up = upfeat.create_upsampler("guided_filter", radius=2, eps=0.01, guide="gray")
    expected = guided_filter(image[:, :1].expand(1, 2, 8, 9), values, 2, 0.01)
    torch.testing.assert_close(up(image, values), expected)


def test_recovers_what_is_linear_in_the_colours() -> None:
    """Features that are colours come back sharp, where bilinear blurs them."""
    image = torch.zeros(1, 3, 32, 32)
    image[:, 0, :, 15:] = 1.0
    image[:, 1, 9:] = 0.5
    features = 2 * F.adaptive_avg_pool2d(image, (4, 4)) - 1
    errors = {
        name: (up(image, features) - (2 * image - 1)).abs().mean().item()
        for name, up in (
            ("guided", upfeat.create_upsampler("guided_filter", eps=1e-5)),
            ("bilinear", upfeat.create_upsampler("bilinear")),
        )
    }
    assert errors["guided"] < 0.1 * errors["bilinear"]


@pytest.mark.parametrize(
    ("message", "arguments"),
    [("radius", {"radius": 0}), ("eps", {"eps": 0.0}), ("guide", {"guide": "rgb"})],
)
def test_parameters_out_of_range(message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=message):
        upfeat.create_upsampler("guided_filter", **arguments)
