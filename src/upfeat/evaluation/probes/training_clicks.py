"""Clicks that stand for a user's while a network learns interactive segmentation.

As released with iSegProbe (commit 16815f3), after Sofiiuk, Petrov, Konushin, arXiv 2102.06583,
section 3: first clicks drawn inside and outside the object, then corrective clicks drawn in the
largest error of the network so far.

Clicks are stored as in the released code: (2n, 3) rows, columns and orders, first ``n`` slots for
positive, then ``n`` for negative clicks, -1 where a slot is not used.

Legend: ``B`` batch, ``n`` slots, ``H W`` crop.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.evaluation.metrics.clicks import step_distance

__all__ = [
    "SLOTS",
    "click_count_chances",
    "corrective_candidates",
    "draw_clicks",
    "eroded",
    "place_corrective",
    "ring_around",
]

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
    """Return the probabilities of 0, 1, ... further clicks, each ``decay`` of the one before.

    Args:
        counts: how many counts there are.
        decay: see above.

    Returns:
        (counts,) float64, sum 1.

    Example:
        >>> from upfeat.evaluation.probes.training_clicks import click_count_chances
        >>> click_count_chances(2, 0.25).tolist()
        [0.8, 0.2]
    """
    chances = decay ** torch.arange(counts, dtype=torch.float64)
    return chances / chances.sum()


def eroded(mask: Tensor) -> Tensor:
    """Return masks less three layers of pixels, or as they are if 10 or fewer would be left.

    Pixels beyond the map erode nothing.

    Args:
        mask: (..., H, W) bool.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.training_clicks import eroded
        >>> mask = torch.zeros(20, 20, dtype=torch.bool)
        >>> mask[2:15, 2:15] = True
        >>> int(eroded(mask).sum())
        49
    """
    less = ~_dilated(~mask, EROSIONS)
    enough = less.sum((-2, -1), keepdim=True) > FEWEST
    return torch.where(enough, less, mask)


def ring_around(mask: Tensor) -> Tensor:
    """Return the pixels around a mask up to a tenth of the square root of its area away.

    Args:
        mask: (H, W) bool.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.training_clicks import ring_around
        >>> mask = torch.zeros(9, 9, dtype=torch.bool)
        >>> mask[3:6, 3:6] = True
        >>> int(ring_around(mask).sum())
        16
    """
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

    Args:
        target: (H, W) bool, the object.
        others: (H, W) bool, other objects.
        generator: source of all draws.

    Returns:
        (2n, 3) float32.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.training_clicks import draw_clicks
        >>> target = torch.zeros(32, 32, dtype=torch.bool)
        >>> target[8:24, 8:24] = True
        >>> points = draw_clicks(target, torch.zeros_like(target), torch.Generator().manual_seed(0))
        >>> row, col, _ = points[0].long().tolist()
        >>> bool(target[row, col])
        True
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

    Args:
        probability: (B, H, W) of the object.
        target: (B, H, W) bool.

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
    points: Tensor,
    candidates: Tensor,
    positive: Tensor,
    number: int,
    generator: torch.Generator,
) -> Tensor:
    """Return clicks with one corrective click more for each image that has a candidate.

    Args:
        points: (B, 2n, 3).
        candidates: (B, H, W) bool.
        positive: (B,) bool.
        number: of the corrective click, from 1; it takes the slot ``n - number`` of its half.
        generator: source of the draws.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.training_clicks import place_corrective
        >>> places = torch.zeros(1, 4, 4, dtype=torch.bool)
        >>> places[0, 2, 3] = True
        >>> points, positive = torch.full((1, 4, 3), -1.0), torch.tensor([False])
        >>> place_corrective(points, places, positive, 1, torch.Generator())[0, 3].tolist()
        [2.0, 3.0, 1.0]
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
