"""Sizes of images: what a size argument means, resizing, extending, putting pieces together.

Sizes are ``(height, width)``; images are (B, 3, H, W) in [0, 1].
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from upfeat.errors import MOST_PIXELS, check_size, keep_aspect
from upfeat.ops.images import Size, resize_antialiased
from upfeat.ops.runtime import check_fits

__all__ = [
    "Canvas",
    "Frame",
    "Size",
    "SizeRequest",
    "fit_multiple",
    "mirror_to",
    "resample",
    "resize",
    "resolve_size",
]


SizeRequest: TypeAlias = int | float | Sequence[int] | None


class Frame(NamedTuple):
    """Sizes of one image on its way through a pipeline: as read, as resized, with padding."""

    own: Size
    input: Size
    padded: Size


def resolve_size(request: SizeRequest, own: Size, name: str = "output_size") -> Size:
    """Return the (height, width) that a size argument means for an image of size ``own``.

    Args:
        request: None for the own size, an int for the shorter side (the other keeps the aspect
            ratio, rounded), a float for a factor on both sides, or a pair (height, width).
        own: (H, W).
        name: the argument's name, for messages.

    Raises:
        ValueError: not a positive size.

    Example:
        >>> from upfeat.data.sizes import resolve_size
        >>> resolve_size(240, (480, 640)), resolve_size(0.5, (480, 640)), resolve_size(None, (3, 4))
        ((240, 320), (240, 320), (3, 4))
    """
    if request is None:
        return own
    if isinstance(request, bool) or (
        isinstance(request, int | float) and not 0 < request < math.inf
    ):
        raise ValueError(
            f"{name} must be None, a positive int (shorter side), a positive float (factor) or a "
            f"pair (height, width), got {request!r}"
        )
    if isinstance(request, int):
        return keep_aspect(own, request, name)
    if isinstance(request, float):
        sides = (min(side * request, MOST_PIXELS + 1) for side in own)
        height, width = (max(1, math.floor(side + 0.5)) for side in sides)
        return check_size((height, width), name)
    return check_size(request, name)


def fit_multiple(size: Size, multiple: int, *, pad: bool) -> tuple[Size, Size]:
    """Return (size to resize to, size to pad to) so that the latter holds whole multiples.

    Args:
        size: (H, W).
        multiple: of both sides.
        pad: keep ``size`` and pad it up; else resize to the nearest multiples and pad nothing.

    Example:
        >>> from upfeat.data.sizes import fit_multiple
        >>> fit_multiple((45, 64), 16, pad=True), fit_multiple((40, 61), 16, pad=False)
        (((45, 64), (48, 64)), ((48, 64), (48, 64)))
    """
    if pad:
        height, width = (-(-side // multiple) * multiple for side in size)
        return size, (height, width)
    height, width = (max(1, math.floor(side / multiple + 0.5)) * multiple for side in size)
    return (height, width), (height, width)


def resample(x: Tensor, dim: int, window: float, size: int) -> Tensor:
    """Resample the first ``window`` pixels (a fraction counts) along ``dim`` linearly to ``size``.

    ``window / size`` should be close to 1: nothing is averaged.
    """
    centers = (torch.arange(size, device=x.device, dtype=torch.float64) + 0.5) * (
        window / size
    ) - 0.5
    centers = centers.clamp(0, x.shape[dim] - 1)
    below = centers.floor().long()
    above = (below + 1).clamp(max=x.shape[dim] - 1)
    shape = [1] * x.dim()
    shape[dim] = size
    weight = (centers - below).to(x.dtype).reshape(shape)
    return torch.lerp(x.index_select(dim, below), x.index_select(dim, above), weight)


def resize(image: Tensor, size: Size) -> Tensor:
    """Resize (B, 3, H, W) in [0, 1]; what the bicubic kernel overshoots is cut off."""
    if image.shape[-2:] == size:
        return image
    check_fits((*image.shape[:2], *size), image, "the resized image", "ask for a smaller size")
    return resize_antialiased(image, size, "bicubic").clamp(0, 1)


def mirror_to(image: Tensor, size: Size) -> Tensor:
    """Extend (B, 3, H, W) to the right and bottom by mirroring at the edge pixel, repeatedly."""
    for dim in (2, 3):
        length, target = image.shape[dim], size[dim - 2]
        if length < target:
            period = max(2 * length - 2, 1)
            index = torch.arange(target, device=image.device) % period
            image = image.index_select(dim, torch.where(index < length, index, period - index))
    return image


class Canvas:
    """Collects pieces of a padded output grid and returns the part that covers the image.

    Where the image ends on a whole pixel, pieces are cut as they come and nothing else is kept.
    Else (an output size that does not divide the padded one evenly) the whole grid is collected
    and resampled linearly at a scale close to 1, so that the result still covers exactly the image.

    Args:
        size: output size (H', W').
        padded: size of the grid that the pieces are given on.
        window: part of that grid that the image covers, from the top left, in pixels.
    """

    def __init__(self, size: Size, padded: Size, window: tuple[float, float]) -> None:
        self.size = size
        self.padded = padded
        self.window = window
        self.exact = window == size
        self.grid = size if self.exact else padded
        self.data: Tensor | None = None

    def put(self, rows: slice, tile: Tensor) -> None:
        """Store some rows, cut to the grid."""
        if self.data is None:
            self.data = tile.new_empty(*tile.shape[:2], *self.grid)
        target = self.data[:, :, rows]
        target.copy_(tile[:, :, : target.shape[2], : target.shape[3]])

    def below(self, rows: slice) -> bool:
        """Whether these rows and all that follow hold only padding: pieces come top to bottom."""
        return rows.start >= self.grid[0]

    def result(self) -> Tensor:
        """Return (B, K, H', W')."""
        if self.data is None:
            raise RuntimeError("the upsampler returned no pieces")
        if self.exact:
            return self.data
        result = self.data.new_empty(*self.data.shape[:2], *self.size)
        # A few channels at a time: the temporaries stay small beside the two maps.
        for source, target in zip(self.data.split(8, 1), result.split(8, 1), strict=True):
            rows = resample(source, 2, self.window[0], self.size[0])
            target.copy_(resample(rows, 3, self.window[1], self.size[1]))
        return result
