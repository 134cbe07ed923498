"""Names, networks of timm and transformers, and functions as backbones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import upfeat
from upfeat._compat import ensure_torchvision_operators
from upfeat.backbones import CallableBackbone, as_backbone, create_backbone

VIT = "vit_tiny_patch16_224"


def timm_model(name: str, **options: Any) -> nn.Module:
    ensure_torchvision_operators()
    import timm

    model: nn.Module = timm.create_model(name, num_classes=0, **options).eval()
    return model


def test_backbones_and_names() -> None:
    encoder = create_backbone("upfeat/vit_compact_patch16")
    assert as_backbone(encoder) is encoder
    assert as_backbone("upfeat/vit_compact_patch16").name == encoder.name


def test_a_transformer_of_timm_takes_any_size_as_the_named_one_does() -> None:
    model = timm_model(VIT, depth=2)
    backbone = as_backbone(model)
    named = create_backbone(f"timm/{VIT}", weights="random", depth=2)
    named.model.load_state_dict(model.state_dict())  # type: ignore[operator, union-attr]
    assert backbone.name.startswith(f"timm/{VIT}")
    assert (backbone.image_mean, backbone.dim, backbone.patch_size) == (
        named.image_mean,
        named.dim,
        named.patch_size,
    )
    for size in ((224, 224), (48, 80)):
        image = torch.randn(1, 3, *size)
        torch.testing.assert_close(backbone(image), named(image))
    # The caller's network is not changed, and shares its weights.
    with pytest.raises(AssertionError, match="doesn't match model"):
        model(torch.randn(1, 3, 48, 80))
    assert next(backbone.parameters()) is next(model.parameters())


@pytest.mark.parametrize("name", ["resnet10t", "test_convnext"])
def test_a_convolutional_network_of_timm(name: str) -> None:
    model = timm_model(name)
    backbone = as_backbone(model)
    assert backbone(torch.randn(1, 3, 64, 96)).shape == (1, backbone.dim, 2, 3)


def test_a_network_of_timm_that_is_tied_to_a_size_says_so() -> None:
    backbone = as_backbone(timm_model("test_vit4"))  # rotary positions, made for one grid
    if backbone.fixed_size is not None:
        with pytest.raises(ValueError, match="takes images of"):
            backbone(torch.randn(1, 3, 64, 96))


def test_a_backbone_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=56
    )
    model = transformers.Dinov2Backbone(config).eval()
    pipe = upfeat.Pipeline(model, "kin.upfeat")
    assert (pipe.backbone.dim, pipe.backbone.patch_size) == (24, 14)
    assert pipe.backbone.image_mean == (0.485, 0.456, 0.406)
    image = torch.randn(1, 3, 28, 42)
    torch.testing.assert_close(pipe.backbone(image), model(image).feature_maps[-1])
    assert pipe(torch.rand(3, 30, 40)).high.shape == (24, 30, 40)
    with pytest.raises(ValueError, match="AutoBackbone"):
        as_backbone(transformers.Dinov2Model(config))


def test_functions_and_modules() -> None:
    def pooled(image: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(image, 7)

    backbone = as_backbone(pooled)
    assert (backbone.name, backbone.dim, backbone.patch_size) == ("pooled", 3, 7)
    module = nn.Sequential(nn.Conv2d(3, 5, 4, 4), nn.BatchNorm2d(5))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wrapped = as_backbone(module)
    assert (wrapped.dim, wrapped.patch_size) == (5, 4)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (3, "a function, got int"),
        (lambda image: image.mean(), r"wanted \(1, C, h, w\); give a function"),
        (lambda image: image[..., :100, :], "no whole stride"),
        (nn.Linear(3, 4), "does not take an image"),
    ],
)
def test_what_is_no_backbone(source: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        as_backbone(source)


# -- CallableBackbone ----------------------------------------------------------------------------


def test_function_is_called_with_the_image() -> None:
    backbone = CallableBackbone(lambda image: F.avg_pool2d(image, 4), dim=3, patch_size=4)
    image = torch.rand(2, 3, 8, 12, requires_grad=True)
    features = backbone(image)
    assert torch.equal(features, F.avg_pool2d(image, 4))
    features.sum().backward()
    assert image.grad is not None


def test_attributes_of_a_function() -> None:
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


def test_a_function_must_be_callable() -> None:
    with pytest.raises(ValueError, match="got int"):
        CallableBackbone(3, 3, 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="whole number"):
        CallableBackbone(lambda image: image, 3, 3.5)  # type: ignore[arg-type]
