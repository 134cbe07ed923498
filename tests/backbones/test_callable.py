from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from upfeat.backbones import CallableBackbone


def test_function_is_called_with_the_image() -> None:
    backbone = CallableBackbone(lambda image: F.avg_pool2d(image, 4), dim=3, patch_size=4)
    image = torch.rand(2, 3, 8, 12, requires_grad=True)
    features = backbone(image)
    assert torch.equal(features, F.avg_pool2d(image, 4))
    features.sum().backward()
    assert image.grad is not None


def test_attributes() -> None:
    backbone = CallableBackbone(
        lambda image: F.avg_pool2d(image, 4),
        3,
        4,
        image_mean=(0.1, 0.2, 0.3),
        image_std=(1, 2, 3),
        size_multiple=8,
        layer=5,
    )
    assert (backbone.image_mean, backbone.image_std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert (backbone.size_multiple, backbone.layer) == (8, 5)
    assert backbone(torch.rand(1, 3, 16, 8)).shape == (1, 3, 4, 2)
    with pytest.raises(ValueError, match="multiples of 8"):
        backbone(torch.rand(1, 3, 12, 8))


def test_module_is_frozen_and_cast() -> None:
    conv = torch.nn.Conv2d(3, 5, 4, 4)
    backbone = CallableBackbone(conv, 5, 4).to(torch.float64)
    assert not conv.weight.requires_grad
    assert backbone(torch.rand(1, 3, 8, 8)).dtype == torch.float64


@pytest.mark.parametrize(
    ("function", "got"),
    [
        (lambda image: F.avg_pool2d(image, 8), "(1, 3, 2, 2)"),
        (lambda image: image[:, :2, ::4, ::4], "(1, 2, 4, 4)"),
        (lambda image: image[:, :, ::4, ::4].flatten(2).mT, "(1, 16, 3)"),
        (lambda image: [image], "list"),
    ],
)
def test_wrong_output_names_what_came_and_what_was_wanted(function: object, got: str) -> None:
    backbone = CallableBackbone(function, 3, 4, name="mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"mine must return .* \(1, 3, 4, 4\)") as caught:
        backbone(torch.rand(1, 3, 16, 16))
    assert got in str(caught.value)


def test_not_callable() -> None:
    with pytest.raises(ValueError, match="got int"):
        CallableBackbone(3, 3, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole number"):
        CallableBackbone(lambda image: image, 3, 3.5)  # type: ignore[arg-type]
