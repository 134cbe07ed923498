"""Training crops of interactive segmentation: an image, one object, the others.

The augmentation of iSegProbe (commit 16815f3), in its order: rescaling, flips, quarter turns,
slight shift and rotation, padding, crop, brightness and contrast, shift of the colours. A crop
without any object is drawn again, but for one in a hundred.

Legend: ``K`` objects, ``H W`` image, ``S`` side of the crop.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.objects import ObjectImage

__all__ = ["ObjectCrop", "augmented", "draw_crop"]

SCALES = (0.75, 1.25)
FLIP_CHANCE = TURN_CHANCE = 0.5
AFFINE_CHANCE, SHIFT, ROTATION = 0.75, 0.03, 3.0  # share of a side, degrees
CONTRAST_CHANCE, CONTRAST, BRIGHTNESS = 0.75, (-0.15, 0.4), (-0.25, 0.25)
COLOUR_CHANCE, COLOUR = 0.75, 10 / 255
EMPTY_CHANCE = 0.01  # that a crop without object is taken
SMALLEST = 80  # pixels of an object in the crop
MERGE_CHANCE = 0.15


class ObjectCrop(NamedTuple):
    """Image (3, S, S) in [0, 1], the object to be found and the other objects, bool (S, S)."""

    image: Tensor
    target: Tensor
    others: Tensor


def draw_crop(item: ObjectImage, size: int, generator: torch.Generator) -> ObjectCrop:
    """Draw a crop and the object in it, two objects as one in 15 of 100.

    Args:
        item: an image with its objects.
        size: S.
        generator: source of all draws.

    Example:
        >>> import torch
        >>> from upfeat.data.objects import ObjectImage
        >>> from upfeat.evaluation.probes.object_crops import draw_crop
        >>> labels = torch.zeros(64, 64, dtype=torch.int64)
        >>> labels[:, 20:40] = 1
        >>> crop = draw_crop(ObjectImage(torch.rand(3, 64, 64), labels), 48, torch.Generator())
        >>> crop.image.shape, bool(crop.others.any())
        (torch.Size([3, 48, 48]), False)
    """
    image, labels = augmented(item.image, item.objects, size, generator)
    has_object = bool((item.objects > 0).any())
    while has_object and not (labels > 0).any() and not _chance(EMPTY_CHANCE, generator):
        image, labels = augmented(item.image, item.objects, size, generator)
    numbers, areas = labels[labels > 0].unique(return_counts=True)
    numbers = numbers[areas >= SMALLEST]
    merged = _chance(MERGE_CHANCE, generator)
    order = torch.randperm(len(numbers), generator=generator)
    chosen = numbers[order[: 2 if merged else 1]]
    target = torch.isin(labels, chosen)
    return ObjectCrop(image, target, torch.isin(labels, numbers) & ~target)


def augmented(
    image: Tensor, labels: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random crop of an image, changed in geometry and colours, and its labels.

    Args:
        image: (3, H, W) in [0, 1].
        labels: (H, W) whole numbers; 0 outside the image.
        size: S.
        generator: source of all draws.

    Returns:
        (3, S, S) in [0, 1] and (S, S).
    """
    # As one map, so that both always get the same geometry.
    planes = torch.cat([image, labels[None].to(image)])
    planes = _rescaled(planes, _between(SCALES, generator))
    if _chance(FLIP_CHANCE, generator):
        planes = planes.flip(((1,), (2,), (1, 2))[_number(3, generator)])
    if _chance(TURN_CHANCE, generator):
        planes = planes.rot90(_number(4, generator), (1, 2))
    if _chance(AFFINE_CHANCE, generator):
        planes = _moved(planes, generator)
    planes = _random_crop(_padded(planes, size), size, generator)
    colours = planes[:3]
    if _chance(CONTRAST_CHANCE, generator):
        factor, offset = (_between(span, generator) for span in (CONTRAST, BRIGHTNESS))
        colours = (colours * (1 + factor) + offset).clamp(0, 1)
    if _chance(COLOUR_CHANCE, generator):
        shifts = [_between((-COLOUR, COLOUR), generator) for _ in range(3)]
        colours = (colours + colours.new_tensor(shifts)[:, None, None]).clamp(0, 1)
    return colours.contiguous(), planes[3].to(labels.dtype)


def _rescaled(planes: Tensor, factor: float) -> Tensor:
    """Resize colours bilinearly and labels, the last plane, to the nearest."""
    size = [max(1, round(side * factor)) for side in planes.shape[1:]]
    colours = F.interpolate(planes[None, :3], size, mode="bilinear")[0]
    labels = F.interpolate(planes[None, 3:], size, mode="nearest")[0]
    return torch.cat([colours, labels])


def _moved(planes: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 3 % of each side and rotate by up to 3 degrees about the middle."""
    height, width = planes.shape[1:]
    down, right = (_between((-SHIFT, SHIFT), generator) for _ in range(2))
    angle = math.radians(_between((-ROTATION, ROTATION), generator))
    cos, sin = math.cos(angle), math.sin(angle)
    # From a place in the result to one in the source, both in halves of a side from the middle.
    matrix = planes.new_tensor(
        [[cos, -sin * height / width, -2 * right], [sin * width / height, cos, -2 * down]]
    )
    grid = F.affine_grid(matrix[None], [1, 1, height, width], align_corners=False)
    colours = F.grid_sample(planes[None, :3], grid, mode="bilinear", align_corners=False)[0]
    labels = F.grid_sample(planes[None, 3:], grid, mode="nearest", align_corners=False)[0]
    return torch.cat([colours, labels])


def _padded(planes: Tensor, size: int) -> Tensor:
    """Pad with 0 on all sides until the map holds a crop."""
    missing = [max(0, size - side) for side in planes.shape[1:]]
    (above, left), (below, right) = zip(*((m // 2, m - m // 2) for m in missing), strict=True)
    return F.pad(planes, (left, right, above, below))


def _random_crop(planes: Tensor, size: int, generator: torch.Generator) -> Tensor:
    top, left = (_number(side - size + 1, generator) for side in planes.shape[1:])
    return planes[:, top : top + size, left : left + size]


def _number(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _between(span: tuple[float, float], generator: torch.Generator) -> float:
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    return span[0] + share * (span[1] - span[0])


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
