"""KIN: the contract, bands against the whole, and what its scores promise."""

from typing import Any, ClassVar

import torch

import upfeat
from tests.tolerances import tolerance
from tests.upsamplers.contract import UpsamplerContract
from upfeat.ops.coordinates import pixel_centres


class TestKIN(UpsamplerContract):
    name = "kin"
    config: ClassVar[dict[str, Any]] = {"dim": 8}


def inputs(height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(1, 3, height, width, generator=generator)
    return image, torch.randn(1, 12, 5, 7, generator=generator)


@torch.no_grad()
def test_inference_in_bands_equals_the_training_path() -> None:
    up = upfeat.create_upsampler("kin", dim=8).eval()
    image, features = inputs()
    banded = up(image, features, (33, 47))
    with torch.enable_grad():
        whole = up(image, features, (33, 47))
    torch.testing.assert_close(banded, whole.detach(), **tolerance(torch.float32))


@torch.no_grad()
def test_queries_at_pixel_centres_are_the_output() -> None:
    up = upfeat.create_upsampler("kin", dim=8).eval()
    image, features = inputs()
    asked = up.query(image, features, pixel_centres((40, 56))[None])
    torch.testing.assert_close(
        asked, up(image, features).flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_the_order_of_channels_does_not_matter() -> None:
    up = upfeat.create_upsampler("kin", dim=8).eval()
    image, features = inputs()
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        up(image, features[:, order]), up(image, features)[:, order], rtol=1e-4, atol=1e-5
    )


@torch.no_grad()
def test_each_output_stays_within_its_window() -> None:
    up = upfeat.create_upsampler("kin", dim=8, radius=1.0).eval()
    image, features = inputs()
    marked = torch.zeros(1, 1, 5, 7)
    marked[..., 0, 0] = 1
    out = up(image, features, values=marked)
    assert (out[..., :16, :16] > 0).any()
    assert (out[..., 16:, :] == 0).all()
    assert (out[..., :, 16:] == 0).all()
