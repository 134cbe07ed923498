"""Nearest, bilinear and bicubic: torch's own semantics."""

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.upsamplers.contract import UpsamplerContract


class TestNearest(UpsamplerContract):
    name = "nearest"
    guided = False


class TestBilinear(UpsamplerContract):
    name = "bilinear"
    guided = False


class TestBicubic(UpsamplerContract):
    name = "bicubic"
    guided = False


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 5), (16, 40), (13, 9), (1, 1)])
def test_equals_torch(mode: str, size: tuple[int, int]) -> None:
    image, features = torch.rand(2, 3, 20, 20), torch.randn(2, 6, 4, 5)
    upsampler = upfeat.create_upsampler(mode)
    expected = F.interpolate(features, size, mode=mode)
    assert torch.equal(upsampler(image, features, size), expected)
    tiles = torch.cat([t for _, _, t in upsampler.tiles(image, features, size, max_bytes=1)], 2)
    torch.testing.assert_close(tiles, expected)
