"""The training of filters that remove noise: what it draws, compares and refuses."""

from __future__ import annotations

import pytest
import torch

import upfeat
from tests.objectives.setups import tiny_backbone
from upfeat.errors import UnsupportedError
from upfeat.objectives import RestorationConfig, create_objective, noisy_image, restoration_terms


def filter_() -> upfeat.Upsampler:
    torch.manual_seed(0)
    return upfeat.create_upsampler("naf", dim=32, heads_attn=1, kernel_size=3)


def test_the_loss_is_that_of_the_noisy_image_filtered_by_itself() -> None:
    rgb, upsampler = upfeat.create_backbone("image/rgb"), filter_().eval()
    image = torch.rand(2, 3, 12, 20)
    objective = create_objective("restoration", deviation=(0.2, 0.2))
    objective.prepare(upsampler, rgb, (12, 20))
    terms = objective.step({"image": image}, rgb, upsampler, torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    torch.rand((), generator=generator, dtype=torch.float64)  # the deviation, drawn first
    noisy = image + 0.2 * torch.randn(image.shape, generator=generator)
    guidance = upsampler.guidance_image(noisy, rgb)
    expected = restoration_terms(upsampler(guidance, noisy, (12, 20)), image)
    for name, (_, value) in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-4)
    total = sum(weight * value.item() for weight, value in expected.values())
    assert float(terms["loss"].detach()) == pytest.approx(total, rel=1e-4)


def test_noise_has_the_amount_that_is_asked_for() -> None:
    image, draws = torch.full((3, 64, 64), 0.5), torch.Generator().manual_seed(0)
    noisy = noisy_image(image, "gaussian", 0.3, draws)
    assert float((noisy - image).std()) == pytest.approx(0.3, rel=0.05)
    noisy = noisy_image(image, "salt-pepper", 0.2, draws)
    assert float((noisy != image).float().mean()) == pytest.approx(0.2, abs=0.02)


def test_what_is_refused() -> None:
    objective = create_objective("restoration")
    with pytest.raises(UnsupportedError, match="name the backbone image/rgb"):
        objective.prepare(filter_(), tiny_backbone(dim=3))
    with pytest.raises(ValueError, match="0 <= low <= high"):
        RestorationConfig(deviation=(0.5, 0.1))
    with pytest.raises(ValueError, match="image/rgb has no weights"):
        upfeat.create_backbone("image/rgb", weights="file.pth")
