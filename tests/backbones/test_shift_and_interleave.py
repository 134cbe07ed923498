from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.backbones.nets import build
from upfeat.backbones import CallableBackbone, shift_and_interleave


def means(patch: int) -> CallableBackbone:
    """The mean colour of each patch."""
    return CallableBackbone(lambda image: F.avg_pool2d(image, patch), 3, patch, name="means")


def test_features_lie_where_their_cells_are() -> None:
    """Of a ramp, the mean of a patch is its centre: cells 4 pixels apart, on the finer grid."""
    row, col = torch.meshgrid(torch.arange(48.0), torch.arange(32.0), indexing="ij")
    image = torch.stack((row, col, row + col))[None]
    fine = shift_and_interleave(means(16), 4)(image)
    assert fine.shape == (1, 3, 12, 8)
    inner = fine[0, :, 2:-2, 2:-2]
    centres = (torch.arange(12) + 0.5) * 4 - 0.5
    torch.testing.assert_close(inner[0], centres[2:-2, None].expand(8, 4))
    torch.testing.assert_close(inner[1], centres[None, 2:6].expand(8, 4))


@pytest.mark.parametrize("key", ["vit", "convnext"])
def test_each_cell_is_one_pass(key: str) -> None:
    backbone = build(key)
    multiple = backbone.size_multiple
    image = torch.rand(2, 3, 2 * multiple, 3 * multiple)
    fine = shift_and_interleave(backbone, 2)
    step = backbone.patch_size // 4
    assert fine.shifts == [-step, step]
    down = torch.cat((image[:, :, step:], image[:, :, -1:].expand(-1, -1, step, -1)), dim=2)
    left = torch.cat((image[..., :1].expand(-1, -1, -1, step), image[..., :-step]), dim=3)
    moved = torch.cat((left[:, :, step:], left[:, :, -1:].expand(-1, -1, step, -1)), dim=2)
    assert down.shape == moved.shape == image.shape
    torch.testing.assert_close(fine(image)[:, :, 1::2, ::2], backbone(moved))
    assert fine.grid_size(image.shape[-2:]) == (4, 6)
    assert fine.name == f"{backbone.name}+shifted2"


def test_gradient_reaches_the_image() -> None:
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    shift_and_interleave(build("vit"), 2)(image).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().min() > 0


@pytest.mark.parametrize("factor", [1, 0, 2.5, True])
def test_bad_factor(factor: object) -> None:
    with pytest.raises(ValueError, match="factor must be a whole number of at least 2"):
        shift_and_interleave(means(8), factor)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="factor must divide the distance"):
        shift_and_interleave(means(8), 3)
