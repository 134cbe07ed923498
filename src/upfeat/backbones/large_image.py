"""The "Large Image" baseline: features of an enlarged image.

Reported by JAFAR (Couairon et al., 2025; x8 for probing, x2 for open vocabulary) and by LoftUp
(Huang et al., 2025; x2 and x4).

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid, ``r`` factor.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from upfeat.backbones.base import Backbone

__all__ = ["LargeImageBackbone", "large_image"]


class LargeImageBackbone(Backbone):
    """A backbone that sees the image enlarged ``factor`` times; made by :func:`large_image`."""

    def __init__(self, backbone: Backbone, factor: int) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
            raise ValueError(f"factor must be a whole number of at least 2, got {factor!r}")
        if backbone.fixed_size is not None:
            raise ValueError(
                f"{backbone.name} takes images of {backbone.fixed_size} only, so it cannot see an "
                "enlarged one; choose a backbone that takes any size"
            )
        stride = backbone.patch_size / factor
        super().__init__(
            name=f"{backbone.name}+large{factor}",
            dim=backbone.dim,
            patch_size=int(stride) if stride == int(stride) else stride,
            image_mean=backbone.image_mean,
            image_std=backbone.image_std,
            size_multiple=backbone.size_multiple,
            layer=backbone.layer,
        )
        self.backbone = backbone
        self.factor = factor
        self.freeze()

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return the grid (h, w) of the enlarged image."""
        return self.backbone.grid_size((image_size[0] * self.factor, image_size[1] * self.factor))

    def _extract(self, image: Tensor) -> Tensor:
        # (B, 3, H, W) -> (B, 3, r H, r W) -> (B, C, r h, r w)
        return self.backbone(self._enlarge(image))

    def _class_token(self, image: Tensor) -> Tensor:
        return self.backbone.class_token(self._enlarge(image))

    def _enlarge(self, image: Tensor) -> Tensor:
        size = (image.shape[-2] * self.factor, image.shape[-1] * self.factor)
        return F.interpolate(image, size=size, mode="bilinear", align_corners=False)


def large_image(backbone: Backbone, factor: int) -> LargeImageBackbone:
    """Return a backbone that enlarges the image bilinearly before it computes the features.

    The grid is ``factor`` times larger per axis, the cost grows with ``factor ** 2`` (attention:
    with ``factor ** 4``). The given backbone is wrapped, not copied: moving or casting one moves
    both.

    Args:
        backbone: any backbone that takes images of any size.
        factor: whole number, at least 2.

    Returns:
        A backbone for images of the original size. ``size_multiple`` is that of ``backbone``;
        ``patch_size`` is the distance of two features in pixels of the original image: a whole
        number (int) where ``factor`` divides the stride, else a fraction (float; 14 / 4 = 3.5). Use
        ``grid_size`` for exact sizes.

    Raises:
        ValueError: ``factor`` is no whole number above 1, or the backbone takes one size only.

    Example:
        >>> import torch
        >>> from upfeat.backbones import create_backbone, large_image
        >>> vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
        >>> large = large_image(vit, 4)
        >>> large(torch.rand(1, 3, 64, 48)).shape, large.patch_size
        (torch.Size([1, 192, 16, 12]), 4)
    """
    return LargeImageBackbone(backbone, factor)
