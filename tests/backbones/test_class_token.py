"""The token that stands for the whole image."""

from __future__ import annotations

import pytest
import torch

from tests.tolerances import tolerance
from upfeat.backbones import CallableBackbone, create_backbone, large_image, strided
from upfeat.errors import UnsupportedError

IMAGE = (2, 3, 32, 48)


def test_it_is_the_networks_own() -> None:
    backbone = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=2)
    image = torch.rand(IMAGE)
    whole = backbone.get_submodule("model").forward_features(image)  # (B, 1 + h*w, C)
    torch.testing.assert_close(backbone.class_token(image), whole[:, 0], **tolerance(torch.float32))


def test_it_comes_before_registers() -> None:
    name = "timm/vit_small_patch14_reg4_dinov2"
    backbone = create_backbone(name, weights="random", depth=1, embed_dim=32, num_heads=2)
    image = torch.rand(1, 3, 28, 42)
    whole = backbone.get_submodule("model").forward_features(image)
    torch.testing.assert_close(backbone.class_token(image), whole[:, 0], **tolerance(torch.float32))


def test_wrappers_pass_it_on() -> None:
    backbone = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    image = torch.rand(IMAGE)
    large = torch.nn.functional.interpolate(image, (64, 96), mode="bilinear")
    token = large_image(backbone, 2).class_token(image)
    torch.testing.assert_close(token, backbone.class_token(large))
    assert strided(backbone, 8).class_token(image).shape == (2, 192)


def test_networks_without_one_say_so() -> None:
    pooling = CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8, name="pooling")
    with pytest.raises(UnsupportedError, match="pooling has no class token"):
        pooling.class_token(torch.rand(IMAGE))
    with pytest.raises(UnsupportedError, match="no class token"):
        create_backbone("timm/resnet18", weights="random").class_token(torch.rand(1, 3, 64, 64))
    for name in ("xcit_nano_12_p16_224", "cait_xxs24_224"):  # it joins after all blocks
        late = create_backbone(f"timm/{name}", weights="random", embed_dim=32, num_heads=2, depth=1)
        with pytest.raises(UnsupportedError, match=f"{name} has no class token"):
            late.class_token(torch.rand(1, 3, 224, 224))
    with pytest.raises(ValueError, match="multiples of 8"):
        pooling.class_token(torch.rand(1, 3, 33, 48))
