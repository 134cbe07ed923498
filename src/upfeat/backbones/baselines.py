"""Backbones of more features than a network gives by itself: the baselines of the papers.

"Large Image" computes the features of an enlarged image, as reported by JAFAR (Couairon et al.,
2025; x8 for probing, x2 for open vocabulary) and by LoftUp (Huang et al., 2025; x2 and x4).

"Strided" is a vision transformer whose patches overlap, as in JAFAR (patch 14, stride 6), after
Amir et al., "Deep ViT Features as Dense Visual Descriptors", 2021. The patch embedding slides by
``stride`` instead of by the patch, with unchanged weights; the position table is resampled to the
larger grid (bicubic with antialias, rows of prefix tokens kept). Rotary positions follow where they
are normalised by the grid (DINOv3, EVA-02).

"Shift and interleave" puts the features of shifted images between each other, after
shift-and-stitch of Long, Shelhamer, Darrell, "Fully Convolutional Networks for Semantic
Segmentation", CVPR 2015, arXiv 1411.4038, section 3.2.

Legend: ``B`` batch, ``C`` feature channels, ``H W`` image, ``h w`` feature grid, ``r`` factor.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.backbones.base import Backbone
from upfeat.errors import UnsupportedError


class _Derived(Backbone):
    """A backbone of another one's features, with another distance of theirs."""

    def __init__(self, source: Backbone, suffix: str, patch_size: int | float) -> None:
        super().__init__(
            name=f"{source.name}+{suffix}",
            dim=source.dim,
            patch_size=patch_size,
            image_mean=source.image_mean,
            image_std=source.image_std,
            size_multiple=source.size_multiple,
            layer=source.layer,
        )


class LargeImageBackbone(_Derived):
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
        whole = int(stride) if stride == int(stride) else stride
        super().__init__(backbone, f"large{factor}", whole)
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


class StridedBackbone(_Derived):
    """A transformer with overlapping patches; made by :func:`strided`."""

    def __init__(self, backbone: Backbone, stride: int) -> None:
        if isinstance(stride, bool) or not isinstance(stride, int) or stride < 1:
            raise ValueError(f"stride must be a positive whole number of pixels, got {stride!r}")
        patch = _check_supported(backbone)
        if stride > patch:
            raise ValueError(
                f"stride must be at most the patch ({patch} for {backbone.name}), got {stride}: a "
                "larger one leaves pixels out"
            )
        super().__init__(backbone, f"stride{stride}", stride)
        self.patch = patch
        self.backbone = _with_stride(backbone, stride)
        self.freeze()

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return ``(size - patch) // stride + 1`` per axis."""
        return _slide(image_size, patch=self.patch, stride=int(self.patch_size))

    def _extract(self, image: Tensor) -> Tensor:
        return self.backbone._extract(image)

    def _class_token(self, image: Tensor) -> Tensor:
        return self.backbone._class_token(image)


def strided(backbone: Backbone, stride: int) -> StridedBackbone:
    """Return a copy of a transformer backbone whose patches overlap.

    The grid has ``(size - patch) // stride + 1`` features per axis; the cost of attention grows
    with the square of their number. The copy reads the same weights from the same memory until one
    of the two is moved or cast; the given backbone is not changed.

    Args:
        backbone: a plain transformer (``timm/vit_*`` and the like).
        stride: distance of two patches in pixels, from 1 to the patch size.

    Returns:
        A backbone with ``patch_size`` = ``stride``. ``size_multiple`` stays the patch. The first
        feature lies at the centre of the first patch, so the grid does not quite span the image.

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
    reason = _obstacle(model)
    if model is None or reason is not None:
        raise UnsupportedError(
            f"strided() cannot be used with {backbone.name}: {reason}. Use a plain transformer "
            "(timm/vit_*), or large_image(backbone, factor)"
        )
    height, width = model.patch_embed.proj.kernel_size
    if height != width:
        raise UnsupportedError(
            f"strided() needs square patches, {backbone.name} has {height}x{width}"
        )
    return int(height)


def _obstacle(model: nn.Module | None) -> str | None:
    """Return why patches cannot overlap, or None."""
    embedding = getattr(model, "patch_embed", None)
    projection = getattr(embedding, "proj", None)
    from_pixels = isinstance(projection, nn.Conv2d) and projection.in_channels == 3
    if (
        not from_pixels
        or not hasattr(embedding, "dynamic_feat_size")
        or not hasattr(model, "blocks")
    ):
        return "it has no patch embedding by one convolution, followed by transformer blocks"
    if not getattr(model, "dynamic_img_size", False):
        return "its positions are tied to one image size"
    rope = getattr(model, "rope", None)
    # Angles must depend on where in the image a patch lies, not on how many are before it.
    by_image = (
        type(rope).__name__ == "RotaryEmbeddingDinoV3"
        or getattr(rope, "ref_feat_shape", None) is not None
    )
    if rope is not None and not by_image:
        return f"its rotary positions ({type(rope).__name__}) count patches that lie side by side"
    if rope is None and getattr(model, "pos_embed", None) is None:
        return "it has no positions that can be resampled"
    return None


def _with_stride(backbone: Backbone, stride: int) -> Backbone:
    """Copy the modules of a backbone, not its weights; the copy's patches slide by ``stride``."""
    # The copy's parameters are its own objects on the same memory: casting or moving one backbone
    # leaves the other as it is.
    memo: dict[int, Any] = {id(b): b.detach() for b in backbone.buffers()}
    memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in backbone.parameters()}
    clone = copy.deepcopy(backbone, memo)
    embedding: Any = clone.get_submodule("model.patch_embed")
    patch = embedding.proj.kernel_size[0]
    embedding.proj.stride = (stride, stride)
    embedding.dynamic_feat_size = functools.partial(_slide, patch=patch, stride=stride)
    return clone


def _slide(image_size: Sequence[int], *, patch: int, stride: int) -> tuple[int, int]:
    return (image_size[0] - patch) // stride + 1, (image_size[1] - patch) // stride + 1


class ShiftedBackbone(_Derived):
    """A backbone on ``factor ** 2`` shifted images; made by :func:`shift_and_interleave`."""

    def __init__(self, backbone: Backbone, factor: int) -> None:
        if isinstance(factor, bool) or not isinstance(factor, int) or factor < 2:
            raise ValueError(f"factor must be a whole number of at least 2, got {factor!r}")
        if backbone.patch_size % factor:
            raise ValueError(
                f"factor must divide the distance of two features, {backbone.patch_size} pixels "
                f"for {backbone.name}, got {factor}: shifts are whole pixels"
            )
        super().__init__(backbone, f"shifted{factor}", int(backbone.patch_size) // factor)
        self.fixed_size = backbone.fixed_size
        self.backbone = backbone
        self.factor = factor
        # Of a fine cell's centre from the coarse one's: whole steps, as near to the middle as can.
        step = int(self.patch_size)
        self.shifts = [step * i - step * (factor - 1) // 2 for i in range(factor)]
        self.freeze()

    def grid_size(self, image_size: Sequence[int]) -> tuple[int, int]:
        """Return ``factor`` times the backbone's grid."""
        height, width = self.backbone.grid_size(image_size)
        return self.factor * height, self.factor * width

    def _extract(self, image: Tensor) -> Tensor:
        rows = [self._along(image, axis=2, shift=shift) for shift in self.shifts]
        found = [
            self.backbone(self._along(row, axis=3, shift=shift))
            for row in rows
            for shift in self.shifts
        ]
        batch, channels, height, width = found[0].shape
        cells = torch.stack(found).unflatten(0, (self.factor, self.factor))  # (r, r, B, C, h, w)
        cells = cells.permute(2, 3, 4, 0, 5, 1)  # (B, C, h, r, w, r)
        return cells.reshape(batch, channels, self.factor * height, self.factor * width)

    def _class_token(self, image: Tensor) -> Tensor:
        return self.backbone.class_token(image)

    def _along(self, image: Tensor, axis: int, shift: int) -> Tensor:
        """Move the image by ``-shift`` pixels along an axis; its border is repeated."""
        place = torch.arange(image.shape[axis], device=image.device) + shift
        return image.index_select(axis, place.clamp(0, image.shape[axis] - 1))


def shift_and_interleave(backbone: Backbone, factor: int) -> ShiftedBackbone:
    """Return a backbone that sees shifted copies of the image and interleaves their features.

    The image is shifted by multiples of a ``factor``-th of a cell along both axes, and each copy's
    features go between the others', where their cells' centres lie. The grid is ``factor`` times
    larger per axis, at ``factor ** 2`` passes of the backbone. Nothing but whole pixels is moved:
    the network sees the image at the size that it knows. The backbone is wrapped, not copied.

    Args:
        backbone: any backbone with a whole stride.
        factor: whole number, at least 2, that divides the stride.

    Returns:
        A backbone for images of the same sizes. Where the step is odd and ``factor`` even, all
        centres lie half a pixel from those of the finer grid.

    Raises:
        ValueError: ``factor`` is no whole number above 1, or does not divide the stride.

    Example:
        >>> import torch
        >>> from upfeat.backbones import create_backbone, shift_and_interleave
        >>> vit = create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
        >>> fine = shift_and_interleave(vit, 2)
        >>> fine(torch.rand(1, 3, 64, 48)).shape, fine.patch_size
        (torch.Size([1, 192, 8, 6]), 8)
    """
    return ShiftedBackbone(backbone, factor)
