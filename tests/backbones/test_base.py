from __future__ import annotations

import pytest
import torch

from tests.backbones.nets import build
from upfeat.backbones import (
    Backbone,
    CallableBackbone,
    create_backbone,
    list_backbones,
    register_provider,
)
from upfeat.errors import UnknownNameError


@pytest.fixture(scope="module")
def vit() -> Backbone:
    return build("vit")


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (torch.rand(3, 32, 32), ["4 dimensions", "(3, 32, 32)", "tensor[None]"]),
        (torch.rand(1, 4, 32, 32), ["3 channels", "(1, 4, 32, 32)", "RGB"]),
        (torch.rand(1, 32, 32, 3), ["3 channels", "permute"]),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["floating point", "torch.uint8"]),
        (torch.rand(0, 3, 32, 32), ["empty", "(0, 3, 32, 32)"]),
        (torch.rand(1, 3, 0, 32), ["empty", "(1, 3, 0, 32)"]),
        (torch.rand(1, 3, 40, 32), ["multiples of 16", "(32, 32)", "(48, 32)", "(40, 32)"]),
        (torch.rand(1, 3, 8, 8), ["multiples of 16", "(16, 16) would work"]),
        ("photo.jpg", ["str", "Pipeline"]),
    ],
)
def test_bad_images_say_what_to_do(vit: Backbone, image: object, words: list[str]) -> None:
    with pytest.raises(ValueError, match="image") as caught:
        vit(image)
    for word in words:
        assert word in str(caught.value)


def test_mixed_devices_are_refused(vit: Backbone) -> None:
    with pytest.raises(ValueError, match=r"on cpu, the image is on meta; move one"):
        vit(torch.rand(1, 3, 32, 32, device="meta"))


def test_frozen_also_inside_a_model_in_training() -> None:
    backbone = build("resnet")
    parent = torch.nn.Sequential(backbone, torch.nn.Dropout()).train()
    assert parent[1].training
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    backbone(torch.rand(2, 3, 64, 64))
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, before[key]), f"{key} changed in a forward pass"


def test_image_is_cast_to_the_dtype_of_the_weights(vit: Backbone) -> None:
    assert vit(torch.rand(1, 3, 32, 32, dtype=torch.float64)).dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": (0.5,)},
        {"image_std": (0.5, 0.0, 0.5)},
        {"dim": 0},
        {"patch_size": 0},
        {"size_multiple": 0},
    ],
)
def test_impossible_attributes_are_refused(options: dict[str, object]) -> None:
    arguments = {"dim": 3, "patch_size": 8, **options}
    with pytest.raises(ValueError, match="must"):
        CallableBackbone(lambda image: image, **arguments)  # type: ignore[arg-type]


def test_unknown_names_list_close_ones() -> None:
    with pytest.raises(UnknownNameError, match="timm/vit_tiny_patch16_224"):
        create_backbone("timm/vit_tinny_patch16_224")
    with pytest.raises(UnknownNameError, match=r"timm/<name>"):
        create_backbone("vit_tiny_patch16_224")
    with pytest.raises(UnknownNameError, match=r"timm/resnet18"):
        create_backbone("tim/resnet18")
    with pytest.raises(UnknownNameError, match="augreg_in21k_ft_in1k"):
        create_backbone("timm/vit_tiny_patch16_224.augreg_in21k_ft")


def test_register_provider_and_list() -> None:
    @register_provider(
        "test-provider", names=lambda pretrained: ["a"] if pretrained else ["a", "b"]
    )
    def make(name: str, weights: object = None, *, dim: int = 3) -> Backbone:
        return CallableBackbone(lambda image: image, dim, 1, name=f"{name}:{weights}")

    backbone = create_backbone("test-provider/a/b", "file", dim=7)
    assert (backbone.name, backbone.dim) == ("a/b:file", 7)
    assert list_backbones("test-provider/*") == ["test-provider/a", "test-provider/b"]
    assert list_backbones("test-provider/*", pretrained=True) == ["test-provider/a"]
    with pytest.raises(TypeError, match="nonsense"):
        create_backbone("test-provider/a", nonsense=1)
    with pytest.raises(ValueError, match="taken"):
        register_provider("test-provider", names=lambda pretrained: [])(build)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="slash"):
        register_provider("a/b", names=lambda pretrained: [])


def test_list_backbones_takes_wildcards() -> None:
    assert "timm/resnet18" in list_backbones("timm/resnet1*")
    assert list_backbones("timm/no-such-*") == []
    tagged = list_backbones("timm/resnet18*", pretrained=True)
    assert "timm/resnet18.a1_in1k" in tagged
    assert "timm/resnet18" not in tagged


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("resnet18", "timm/resnet18"),
        ("ResNet18", "timm/resnet18"),
        ("vit_small_patch14_dinov2.lvd142m", r"timm/vit_small_patch14_dinov2\.lvd142m"),
        ("vit_compact_patch16", "upfeat/vit_compact_patch16"),
        ("TIMM/resnet18", "timm/resnet18"),
    ],
)
def test_names_without_their_provider_or_in_another_case(written: str, meant: str) -> None:
    with pytest.raises(UnknownNameError, match=f"did you mean '{meant}'"):
        create_backbone(written)
