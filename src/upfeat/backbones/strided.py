"""The "Strided" baseline: a vision transformer whose patches overlap.

Source: the strided baseline of JAFAR (Couairon et al., 2025; patch 14, stride 6), after Amir et al., "Deep
ViT Features as Dense Visual Descriptors", 2021. The patch embedding slides by ``stride`` instead of by the
patch, with unchanged weights; the position table is resampled to the larger grid (bicubic with antialias,
rows of prefix tokens kept).

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid, ``p`` patch, ``s`` stride.
"""

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from upfeat.backbones.base import Backbone
from upfeat.errors import UnsupportedError

__all__ = ["StridedBackbone", "strided"]


class StridedBackbone(Backbone):
    """A transformer with overlapping patches; made by :func:`strided`."""

    def __init__(self, backbone: Backbone, stride: int) -> None:
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride must be a positive whole number of pixels, got {stride!r}")
        patch = _check_supported(backbone)
        if stride > patch:
            raise ValueError(
                f"stride must be at most the patch ({patch} for {backbone.name}), got {stride}: a larger "
                "one leaves pixels out"
            )
        super().__init__(
            name=f"{backbone.name}+stride{stride}",
            dim=backbone.dim,
            patch_size=stride,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            size_multiple=backbone.size_multiple,
            layer=backbone.layer,
        )
        self.patch = patch
        self.backbone = _with_stride(backbone, stride)
        self.freeze()

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return ``(size - patch) // stride + 1`` per axis."""
        height, width = ((n - self.patch) // int(self.patch_size) + 1 for n in image_size)
        return height, width

    def _extract(self, image: Tensor) -> Tensor:
        return self.backbone._extract(image)


def strided(backbone: Backbone, stride: int) -> StridedBackbone:
    """Return a copy of a transformer backbone whose patches overlap.

    The grid has ``(size - patch) // stride + 1`` features per axis; the cost of attention grows with its
    fourth power. Weights are shared with the given backbone, which is not changed.

    Args:
        backbone: a plain transformer (``timm/vit_*`` and the like) with a position table.
        stride: distance of two patches in pixels, from 1 to the patch size.

    Returns:
        A backbone with ``patch_size`` = ``stride``. ``size_multiple`` stays the patch. The first feature
        lies at the centre of the first patch, so the grid does not quite span the image.

    Raises:
        ValueError: ``stride`` is out of range.
        UnsupportedError: the network has no patch embedding that can slide, or takes one size only.

    Example:
        >>> import torch
        >>> from upfeat.backbones import create_backbone, strided
        >>> vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
        >>> strided(vit, 8)(torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 192, 7, 11])
    """
    return StridedBackbone(backbone, stride)


def _check_supported(backbone: Backbone) -> int:
    """Return the patch size of a backbone whose patches may overlap."""
    model = getattr(backbone, "model", None)
    embedding = getattr(model, "patch_embed", None)
    projection = getattr(embedding, "proj", None)
    reason = None
    if not isinstance(projection, nn.Conv2d) or not hasattr(embedding, "dynamic_feat_size"):
        reason = "it has no patch embedding by one convolution"
    elif getattr(model, "pos_embed", None) is None:
        reason = "it has no position table that can be resampled"
    elif not getattr(model, "dynamic_img_size", False):
        reason = "its position table is tied to one image size"
    elif (rope := getattr(model, "rope", None)) is not None:
        reason = f"its rotary positions ({type(rope).__name__}) belong to patches side by side"
    if reason is not None:
        raise UnsupportedError(
            f"strided() cannot be used with {backbone.name}: {reason}. Use a plain transformer with "
            "learned positions (timm/vit_*), or large_image(backbone, factor)"
        )
    height, width = projection.kernel_size
    if height != width:
        raise UnsupportedError(f"strided() needs square patches, {backbone.name} has {height}x{width}")
    return int(height)


def _with_stride(backbone: Backbone, stride: int) -> Backbone:
    """Copy the modules of a backbone, share its tensors, and let its patches slide by ``stride``."""
    shared = {id(t): t for t in (*backbone.parameters(), *backbone.buffers())}
    clone = copy.deepcopy(backbone, shared)
    embedding = clone.get_submodule("model.patch_embed")
    projection = embedding.get_submodule("proj")
    patch = projection.kernel_size[0]
    projection.stride = (stride, stride)

    def feature_size(image_size: Sequence[int]) -> tuple[int, int]:
        height, width = ((n - patch) // stride + 1 for n in image_size)
        return height, width

    embedding.dynamic_feat_size = feature_size
    return clone
