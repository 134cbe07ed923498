"""KIN: the contract, bands against the whole, and what its scores promise."""

import copy
import math
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import upfeat
from tests.tolerances import tolerance
from tests.upsamplers.contract import UpsamplerContract
from upfeat.ops.coordinates import pixel_centres
from upfeat.ops.images import average_areas, normalize
from upfeat.upsamplers.base import IMAGENET_MEAN, IMAGENET_STD


class TestKIN(UpsamplerContract):
    name = "kin"
    config: ClassVar[dict[str, Any]] = {"dim": 8}


class TestKINWithDetail(UpsamplerContract):
    name = "kin"
    config: ClassVar[dict[str, Any]] = {"dim": 8, "detail": 1.0, "sigma": 1.5}


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


@torch.no_grad()
def test_detail_is_nothing_for_a_constant_map_and_grows_in_proportion() -> None:
    image, features = inputs()
    up = upfeat.create_upsampler("kin", dim=8).eval()
    plain = up(image, features)
    differences = []
    for detail in (0.5, 1.0):
        with_detail = upfeat.create_upsampler("kin", dim=8, detail=detail).eval()
        with_detail.load_state_dict(up.state_dict())
        differences.append(with_detail(image, features) - plain)
        constant = with_detail(image, features, values=torch.ones(1, 1, 5, 7))
        torch.testing.assert_close(constant, torch.ones_like(constant))
    assert differences[0].abs().max() > 0.1
    torch.testing.assert_close(2 * differences[0], differences[1], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_detail_is_linear_in_colours_less_the_mixture_of_the_cells_colours() -> None:
    image, features = inputs()
    up = upfeat.create_upsampler("kin", dim=8).eval()
    detailed = upfeat.create_upsampler("kin", dim=8, detail=1.0).eval()
    detailed.load_state_dict(up.state_dict())
    mixed = up(image, features, values=average_areas(image, (5, 7)))
    beyond = (image - mixed)[0].flatten(1).mT  # (H W, 3)
    added = (detailed(image, features) - up(image, features))[0].flatten(1).mT  # (H W, C)
    slopes = torch.linalg.lstsq(beyond, added).solution  # (3, C)
    assert added.abs().max() > 0.1
    torch.testing.assert_close(beyond @ slopes, added, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_detail_follows_colours_that_explain_the_features() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 40, 56, generator=generator)
    red = torch.nn.functional.adaptive_avg_pool2d(image, (5, 7))[:, :1]
    guidance = normalize(image, IMAGENET_MEAN, IMAGENET_STD)
    errors = []
    for detail in (0.0, 1.0):
        up = upfeat.create_upsampler("kin.upfeat", detail=detail)
        errors.append(float((up(guidance, red) - image[:, :1]).square().mean()))
    assert errors[1] < errors[0] / 4


@torch.no_grad()
def test_a_given_sigma_takes_the_place_of_the_learned_one() -> None:
    learned = upfeat.create_upsampler("kin", dim=8).eval()
    learned.log_nearness.fill_(-math.log(2.0))  # type: ignore[operator]
    given = upfeat.create_upsampler("kin", dim=8, sigma=2.0).eval()
    given.load_state_dict(learned.state_dict())
    image, features = inputs()
    torch.testing.assert_close(given(image, features), learned(image, features))
    given.log_nearness.fill_(3.0)  # type: ignore[operator]
    torch.testing.assert_close(given(image, features), learned(image, features))
    assert "log_nearness" not in dict(given.named_parameters())


def test_a_larger_sigma_mixes_more_cells() -> None:
    image, features = inputs()
    nearest = []
    for sigma in (0.5, 1.0, 2.0):
        up = upfeat.create_upsampler("kin", dim=8, sigma=sigma).eval()
        with torch.no_grad():
            shares = up(image, features, (5, 7), values=torch.eye(35).view(1, 35, 5, 7))
        nearest.append(float(shares.flatten(2)[0].diagonal().mean()))
    assert nearest[0] > nearest[1] > nearest[2]


@pytest.mark.parametrize("sigma", [0.0, -1.0, float("nan")])
def test_sigma_must_be_positive(sigma: float) -> None:
    with pytest.raises(ValueError, match="sigma must be positive or None"):
        upfeat.create_upsampler("kin", sigma=sigma)


def test_detail_must_not_be_negative() -> None:
    with pytest.raises(ValueError, match="detail must not be negative"):
        upfeat.create_upsampler("kin", detail=-1.0)


def test_changed_options_are_saved(tmp_path: Path) -> None:
    up = upfeat.create_upsampler("kin.upfeat")
    copied = copy.copy(up)
    up.detail, up.sigma = 2.0, 0.9
    assert (up.config["detail"], up.config["sigma"]) == (2.0, 0.9)
    assert copied.config["detail"] == 0.75
    up.save_pretrained(tmp_path)
    loaded = upfeat.Upsampler.from_pretrained(tmp_path)
    image, features = torch.randn(1, 3, 32, 48), torch.randn(1, 5, 2, 3)
    with torch.no_grad():
        torch.testing.assert_close(loaded(image, features), up(image, features))
