"""The photometric augmentation, held against Pillow where Pillow has the operation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from upfeat.objectives import augment

EIGHT_BITS = 1 / 255


def photo() -> Tensor:
    blocks = torch.rand(1, 3, 8, 8) * 0.7 + 0.1
    return torch.nn.functional.interpolate(blocks, (32, 40), mode="bicubic")[0].clamp(0, 1)


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def from_pil(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255


PILLOW: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Image.Image], Image.Image]]] = {
    "grayscale": (augment.grayscale, lambda x: x.convert("L").convert("RGB")),
    "contrast": (
        lambda x: augment.adjust_contrast(x, 1.4),
        lambda x: ImageEnhance.Contrast(x).enhance(1.4),
    ),
    "saturation": (
        lambda x: augment.adjust_saturation(x, 0.6),
        lambda x: ImageEnhance.Color(x).enhance(0.6),
    ),
    "sharpness": (
        lambda x: augment.adjust_sharpness(x, 1.5),
        lambda x: ImageEnhance.Sharpness(x).enhance(1.5),
    ),
    "autocontrast": (augment.autocontrast, ImageOps.autocontrast),
    "posterize": (lambda x: augment.posterize(x, 5), lambda x: ImageOps.posterize(x, 5)),
    "solarize": (lambda x: augment.solarize(x, 0.5), lambda x: ImageOps.solarize(x, 128)),
}


@pytest.mark.parametrize("name", PILLOW)
def test_agrees_with_pillow(name: str) -> None:
    ours, theirs = PILLOW[name]
    image = (photo() * 255).round() / 255
    difference = (ours(image) - from_pil(theirs(to_pil(image)))).abs()
    assert difference.max() <= 2.5 * EIGHT_BITS  # Pillow rounds in between


def test_equalize_agrees_with_pillow() -> None:
    image = (photo() * 255).round() / 255
    difference = (augment.equalize(image) - from_pil(ImageOps.equalize(to_pil(image)))).abs()
    assert difference.mean() < 3 * EIGHT_BITS
    constant = torch.full((3, 4, 4), 0.4)
    assert augment.equalize(constant).equal(constant)


def test_hue_agrees_with_colorsys() -> None:
    import colorsys

    image = torch.rand(3, 3, 3)
    image[:, 0, 0] = 0.5
    turned = augment.adjust_hue(image, 0.2)
    for row in range(3):
        for column in range(3):
            hue, saturation, value = colorsys.rgb_to_hsv(*image[:, row, column].tolist())
            expected = colorsys.hsv_to_rgb((hue + 0.2) % 1, saturation, value)
            torch.testing.assert_close(turned[:, row, column], torch.tensor(expected))


def test_jpeg_gets_worse_with_lower_quality() -> None:
    image = photo()
    errors = [(augment.jpeg(image, quality) - image).abs().mean() for quality in (95, 40)]
    assert errors[0] < errors[1] < 0.1


def test_keeps_range_place_and_input() -> None:
    generator = torch.Generator().manual_seed(0)
    image = photo()
    kept = image.clone()
    outs = [augment.augment_image(image, generator) for _ in range(60)]
    assert image.equal(kept)
    assert all(out.shape == image.shape and out.min() >= 0 and out.max() <= 1 for out in outs)
    distances = torch.stack([(out - image).abs().mean() for out in outs])
    assert distances.min() > 0.001
    assert distances.median() < 0.2
    assert distances.std() > 0.01


def test_strength_and_generator() -> None:
    image = photo()
    one, two = (
        augment.augment_image(image, torch.Generator().manual_seed(3), strength=2.0) for _ in "12"
    )
    assert one.equal(two)
    with pytest.raises(ValueError, match="strength must be positive"):
        augment.augment_image(image, torch.Generator(), strength=0)

    def mean_change(strength: float) -> float:
        generator = torch.Generator().manual_seed(1)
        outs = [augment.augment_image(image, generator, strength) for _ in range(40)]
        return float(torch.stack([(out - image).abs().mean() for out in outs]).mean())

    assert mean_change(4.0) > mean_change(0.5)
