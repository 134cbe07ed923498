"""What a network learns interactive segmentation from: crops, and clicks that stand for a user's.

As released with iSegProbe (commit 16815f3). Clicks, after Sofiiuk, Petrov, Konushin, arXiv
2102.06583, section 3: first ones drawn inside and outside the object, then corrective ones drawn in
the largest error of the network so far. They are stored as in the released code: (2n, 3) rows,
columns and orders, first ``n`` slots for positive, then ``n`` for negative clicks, -1 where a slot
is not used. Crops: rescaling, flips, quarter turns, slight shift and rotation, padding, crop,
brightness and contrast, shift of the colours, in this order; a crop without any object is drawn
again, but for one in a hundred.

Legend: ``B`` batch, ``n`` slots, ``H W`` crop or image, ``S`` side of the crop.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.objects import ObjectImage
from upfeat.evaluation.metrics.clicks import step_distance

SLOTS = 24
"""n, the most first clicks of each kind."""

ERODED_CHANCE = 0.9
EROSIONS = 3
FEWEST = 10  # an object that keeps no more pixels is not eroded
COUNT_DECAY = 0.8
BACKGROUND, OTHERS, RING = 0.1, 0.4, 0.5  # where negative clicks are drawn
RING_SHARE = 0.1
CORRECTED = 0.49  # of the probability; above it a pixel is predicted as object
DRAWN = 100.0  # the order of clicks that were drawn at once


def click_count_chances(counts: int, decay: float = COUNT_DECAY) -> Tensor:
    """Return the probabilities of 0, 1, ... further clicks, each ``decay`` of the one before."""
    chances = decay ** torch.arange(counts, dtype=torch.float64)
    return chances / chances.sum()


def eroded(mask: Tensor) -> Tensor:
    """Return masks less three layers of pixels, or as they are if 10 or fewer would be left.

    Pixels beyond the map (..., H, W) erode nothing.
    """
    less = ~_dilated(~mask, EROSIONS)
    enough = less.sum((-2, -1), keepdim=True) > FEWEST
    return torch.where(enough, less, mask)


def ring_around(mask: Tensor) -> Tensor:
    """Return the pixels around a mask up to a tenth of the square root of its area away."""
    layers = math.ceil(RING_SHARE * math.sqrt(int(mask.sum())))
    return _dilated(mask, layers) & ~mask


def _dilated(mask: Tensor, layers: int) -> Tensor:
    """Return masks (..., H, W) with so many layers of 3x3 neighbours."""
    planes = mask.reshape(-1, 1, *mask.shape[-2:]).float()  # (..., H, W) -> (B, 1, H, W)
    grown = F.max_pool2d(planes, (2 * layers + 1, 1), 1, (layers, 0))
    grown = F.max_pool2d(grown, (1, 2 * layers + 1), 1, (0, layers))
    return (grown > 0).reshape(mask.shape)


def draw_clicks(target: Tensor, others: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the first clicks of a crop.

    Positive ones, 1 to 24, in the object or what is left of it after an erosion; negative ones, 0
    to 24, in a ring around it, in other objects or anywhere outside. Without an object there are
    negative clicks only.

    The object ``target`` and ``others`` are (H, W) bool, the clicks (2n, 3) float32.
    """
    points = torch.full((2 * SLOTS, 3), -1.0)
    inner = eroded(target).nonzero()
    whole = target.nonzero()
    if len(whole):
        count = 1 + _draw(click_count_chances(SLOTS), generator)
        for slot in range(count):
            places = inner if _chance(ERODED_CHANCE, generator) else whole
            points[slot] = _drawn_from(places, generator)
    outside = ~target
    sources = [outside, others & outside, ring_around(target)]
    places_of = [source.nonzero() for source in sources]
    if not others.any():
        places_of[1] = places_of[0]
    if not len(whole):
        places_of = [places_of[0]] * 3
    weights = torch.tensor([BACKGROUND, OTHERS, RING])
    for slot in range(_draw(click_count_chances(SLOTS + 1), generator)):
        places = places_of[_draw(weights, generator)]
        if len(places):
            points[SLOTS + slot] = _drawn_from(places, generator)
    return points


def corrective_candidates(probability: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return where corrective clicks may fall: the inner half of the larger error.

    Distances are those of :func:`upfeat.evaluation.metrics.step_distance`; the missing object
    counts only if it reaches strictly deeper than the surplus one.

    Returns:
        Candidates (B, H, W) bool, none where nothing is wrong, and (B,) bool, whether they are on
        the object.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.training_clicks import corrective_candidates
        >>> target = torch.zeros(1, 5, 7, dtype=torch.bool)
        >>> target[:, 1:4, 1:4] = True
        >>> places, positive = corrective_candidates(torch.zeros(1, 5, 7), target)
        >>> places.nonzero().tolist(), positive.tolist()
        ([[0, 2, 2]], [True])
    """
    wrong = [target & (probability < CORRECTED), ~target & (probability > CORRECTED)]
    both = step_distance(torch.cat(wrong))
    missing, surplus = both[: len(target)], both[len(target) :]
    positive = missing.flatten(1).amax(1) > surplus.flatten(1).amax(1)  # (B,)
    distance = torch.where(positive[:, None, None], missing, surplus)
    return 2 * distance > distance.amax((1, 2), keepdim=True), positive


def place_corrective(
    points: Tensor, candidates: Tensor, positive: Tensor, number: int, generator: torch.Generator
) -> Tensor:
    """Return clicks with one corrective click more for each image that has a candidate.

    Of points (B, 2n, 3), the corrective click of a ``number`` from 1 takes the slot ``n - number``
    of its half; candidates (B, H, W) and positive (B,) are :func:`corrective_candidates`.
    """
    points, half = points.clone(), points.shape[1] // 2
    for index, places in enumerate(candidates):
        found = places.nonzero()
        if len(found):
            slot = half - number + (0 if positive[index] else half)
            points[index, slot] = _drawn_from(found, generator).to(points)
            points[index, slot, 2] = number
    return points


def _drawn_from(places: Tensor, generator: torch.Generator) -> Tensor:
    """Return row, column and order of one of some pixels (P, 2)."""
    chosen = int(torch.randint(len(places), (), generator=generator))
    row, col = places[chosen].tolist()
    return torch.tensor([row, col, DRAWN])


def _draw(weights: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(weights, 1, generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability


# -- crops ---------------------------------------------------------------------------------------

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
    """Draw a crop of side S and the object in it, two objects as one in 15 of 100."""
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
    """Return a random crop (3, S, S) of an image, changed in geometry and colours, and its labels.

    Labels (H, W) are whole numbers, 0 outside the image.
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
    planes = _padded(planes, size)
    top, left = (_number(side - size + 1, generator) for side in planes.shape[1:])
    planes = planes[:, top : top + size, left : left + size]
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


def _number(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))


def _between(span: tuple[float, float], generator: torch.Generator) -> float:
    share = float(torch.rand((), generator=generator, dtype=torch.float64))
    return span[0] + share * (span[1] - span[0])
