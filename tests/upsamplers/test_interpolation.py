"""Nearest, bilinear, bicubic and area: torch's own semantics; Lanczos: Pillow's."""

import numpy as np
import pytest
import torch
from PIL import Image
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


class TestArea(UpsamplerContract):
    name = "area"
    guided = False


class TestLanczos(UpsamplerContract):
    name = "lanczos"
    guided = False


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic", "area"])
@pytest.mark.parametrize("size", [(3, 5), (16, 40), (13, 9), (1, 1)])
def test_equals_torch(mode: str, size: tuple[int, int]) -> None:
    image, features = torch.rand(2, 3, 20, 20), torch.randn(2, 6, 4, 5)
    upsampler = upfeat.create_upsampler(mode)
    expected = F.interpolate(features, size, mode=mode)
    assert torch.equal(upsampler(image, features, size), expected)
    tiles = torch.cat([t for _, t in upsampler.tiles(image, features, size, max_bytes=1)], 2)
    torch.testing.assert_close(tiles, expected)


@pytest.mark.parametrize("size", [(3, 5), (16, 40), (13, 9), (1, 1), (7, 11)])
def test_lanczos_equals_pillow(size: tuple[int, int]) -> None:
    image, features = torch.rand(1, 3, 20, 20), torch.randn(1, 2, 7, 11)
    upsampler = upfeat.create_upsampler("lanczos")
    actual = upsampler(image, features, size)
    for channel in range(2):
        picture = Image.fromarray(features[0, channel].numpy())
        expected = picture.resize((size[1], size[0]), Image.Resampling.LANCZOS)
        torch.testing.assert_close(actual[0, channel], torch.from_numpy(np.array(expected)))
    tiles = torch.cat([t for _, t in upsampler.tiles(image, features, size, max_bytes=1)], 2)
    torch.testing.assert_close(tiles, actual)


def test_lanczos_gradients() -> None:
    image = torch.rand(1, 3, 5, 7, dtype=torch.float64)
    features = torch.randn(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    upsampler = upfeat.create_upsampler("lanczos")
    assert torch.autograd.gradcheck(lambda x: upsampler(image, x), features)
