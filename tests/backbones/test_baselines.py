"""Features of an enlarged image, and of overlapping patches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backbones.nets import build
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.backbones import CallableBackbone, create_backbone, large_image, strided
from upfeat.backbones.timm_backbone import TimmBackbone
from upfeat.errors import UnsupportedError


@pytest.mark.golden
@pytest.mark.parametrize("case", ["p14_stride6", "p14_stride14"])
def test_golden(case: str, golden_dir: Path) -> None:
    from timm.models.vision_transformer import VisionTransformer

    tensors, meta = load_golden(golden_dir / "strided_vit" / f"{case}.safetensors")
    sizes = meta["arguments"]
    model = VisionTransformer(
        img_size=sizes["img_size"],
        patch_size=sizes["patch"],
        embed_dim=sizes["dim"],
        depth=sizes["depth"],
        num_heads=sizes["heads"],
        init_values=1e-5,
        num_classes=0,
        dynamic_img_size=True,
    )
    model.load_state_dict(golden_state(tensors, "model."))
    plain = TimmBackbone(model, name=case, image_mean=(0.5,) * 3, image_std=(0.5,) * 3)
    backbone = strided(plain, sizes["stride"])
    difference = max_abs_difference(backbone(tensors["input.image"]), tensors["output"])
    # Shown by pytest -s: the figure itself is asked for beside the verdict.
    assert difference <= GOLDEN_ATOL


@pytest.mark.parametrize("key", ["vit", "dinov2_registers", "siglip", "deit3", "eva02", "dinov3"])
def test_stride_of_the_patch_changes_nothing(key: str) -> None:
    backbone = build(key)
    patch = int(backbone.patch_size)
    image = torch.rand(1, 3, 2 * patch, 3 * patch)
    torch.testing.assert_close(strided(backbone, patch)(image), backbone(image))


@pytest.mark.parametrize("key", ["vit", "dinov2_registers", "siglip", "deit3", "eva02", "dinov3"])
def test_given_backbone_is_not_changed(key: str) -> None:
    backbone = build(key)
    patch = int(backbone.patch_size)
    image = torch.rand(1, 3, 3 * patch, 2 * patch)
    before = backbone(image)
    overlapping = strided(backbone, patch // 2)
    assert overlapping(image).shape == (1, backbone.dim, 5, 3)
    overlapping.to(torch.bfloat16)
    after = backbone(image)
    assert after.dtype == torch.float32
    assert torch.equal(after, before)


def test_memory_of_the_weights_is_shared() -> None:
    backbone = build("vit")
    overlapping = strided(backbone, 8)
    ours = {parameter.data_ptr() for parameter in backbone.parameters()}
    assert {parameter.data_ptr() for parameter in overlapping.parameters()} == ours
    assert not any(parameter.requires_grad for parameter in overlapping.parameters())


@given(height=st.integers(1, 4), width=st.integers(1, 4), stride=st.integers(3, 14))
@settings(max_examples=12)
def test_grid(height: int, width: int, stride: int) -> None:
    overlapping = strided(_VIT14, stride)
    size = (14 * height, 14 * width)
    grid = tuple((n - 14) // stride + 1 for n in size)
    assert overlapping.grid_size(size) == grid
    assert overlapping(torch.rand(1, 3, *size)).shape == (1, 48, *grid)


_VIT14 = build("dinov2_registers")


def test_attributes_and_nesting() -> None:
    backbone = build("vit")
    overlapping = strided(backbone, 4)
    assert (overlapping.patch_size, overlapping.size_multiple) == (4, 16)
    assert (overlapping.layer, overlapping.dim) == (1, 192)
    assert overlapping.name == f"{backbone.name}+stride4"
    with pytest.raises(ValueError, match="multiples of 16"):
        overlapping(torch.rand(1, 3, 36, 32))
    assert large_image(overlapping, 2)(torch.rand(1, 3, 16, 32)).shape == (1, 192, 5, 13)


def test_gradient_reaches_the_image() -> None:
    image = torch.rand(1, 3, 32, 32, requires_grad=True)
    strided(build("vit"), 8)(image).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().min() > 0


@pytest.mark.parametrize("stride", [0, -1, 2.0, True])
def test_bad_stride(stride: object) -> None:
    with pytest.raises(ValueError, match="positive whole number"):
        strided(build("vit"), stride)  # type: ignore[arg-type]


def test_stride_beyond_the_patch() -> None:
    with pytest.raises(ValueError, match=r"at most the patch \(16 for .*leaves pixels out"):
        strided(build("vit"), 17)


@pytest.mark.parametrize("key", ["resnet", "convnext", "swin"])
def test_networks_without_a_sliding_patch_are_refused(key: str) -> None:
    with pytest.raises(UnsupportedError, match=r"strided\(\) cannot be used with timm/.*vit_"):
        strided(build(key), 2)


def test_other_backbones_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="patch embedding"):
        strided(CallableBackbone(lambda image: image, 3, 1), 1)
    mixed = create_backbone("timm/vit_small_patch16_rope_mixed_224", weights="random", depth=1)
    with pytest.raises(UnsupportedError, match="rotary positions"):
        strided(mixed, 8)
    tied = create_backbone("timm/beit_base_patch16_224", weights="random", depth=1)
    with pytest.raises(UnsupportedError, match="tied to one image size"):
        strided(tied, 8)


# -- large_image ---------------------------------------------------------------------------------


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


def test_attributes_of_large_images() -> None:
    backbone = build("dinov2_registers")
    two, four = large_image(backbone, 2), large_image(backbone, 4)
    assert (two.patch_size, two.size_multiple) == (7, 14)
    assert isinstance(two.patch_size, int)
    assert (four.patch_size, four.size_multiple) == (3.5, 14)
    assert four.name == f"{backbone.name}+large4"
    assert large_image(two, 2).grid_size((28, 14)) == four.grid_size((28, 14)) == (8, 4)
    with pytest.raises(ValueError, match="multiples of 14"):
        two(torch.rand(1, 3, 21, 14))


def test_gradient_reaches_the_image_before_it_is_enlarged() -> None:
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
