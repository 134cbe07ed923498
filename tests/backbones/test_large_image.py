from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.nets import build
from upfeat.backbones import create_backbone, large_image


@pytest.mark.parametrize("key", ["vit", "convnext"])
def test_equals_the_backbone_on_the_enlarged_image(key: str) -> None:
    backbone = build(key)
    multiple = backbone.size_multiple
    image = torch.rand(2, 3, 2 * multiple, 3 * multiple)
    large = large_image(backbone, 2)
    expected = backbone(F.interpolate(image, scale_factor=2, mode="bilinear", align_corners=False))
    assert torch.equal(large(image), expected)
    assert large.grid_size(image.shape[-2:]) == expected.shape[-2:] == (4, 6)
    assert (large.dim, large.layer) == (backbone.dim, backbone.layer)
    assert (large.image_mean, large.image_std) == (backbone.image_mean, backbone.image_std)


def test_attributes() -> None:
    backbone = build("dinov2_registers")
    two, four = large_image(backbone, 2), large_image(backbone, 4)
    assert (two.patch_size, two.size_multiple) == (7, 14)
    assert isinstance(two.patch_size, int)
    assert (four.patch_size, four.size_multiple) == (3.5, 14)
    assert four.name == f"{backbone.name}+large4"
    assert large_image(two, 2).grid_size((28, 14)) == four.grid_size((28, 14)) == (8, 4)
    with pytest.raises(ValueError, match="multiples of 14"):
        two(torch.rand(1, 3, 21, 14))


def test_gradient_reaches_the_image() -> None:
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    large_image(build("vit"), 2)(image).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().min() > 0


@pytest.mark.parametrize("factor", [1, 0, 2.5, True])
def test_bad_factor(factor: object) -> None:
    with pytest.raises(ValueError, match="factor must be a whole number of at least 2"):
        large_image(build("vit"), factor)  # type: ignore[arg-type]


def test_network_of_one_size_is_refused() -> None:
    fixed = create_backbone("timm/beit_base_patch16_224", weights="random", depth=1)
    with pytest.raises(ValueError, match=r"\(224, 224\) only"):
        large_image(fixed, 2)
