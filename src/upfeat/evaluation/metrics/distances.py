"""Distance transforms of masks: exact, and by sums of 5x5 steps.

Legend: ``B`` masks, ``H W`` their size. Pixels beyond the map are outside every mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text

__all__ = ["STEP_UNIT", "squared_distance", "step_distance"]

# The 5x5 steps of G. Borgefors, "Distance transformations in digital images", CVGIP 1986, with the
# weights 1, 1.4 and 2.1969 for a pixel to the side, along the diagonal and of a knight's move.
STEP_UNIT = 1 << 16
"""Steps to the side count so much in :func:`step_distance`, which adds whole numbers."""

SIDE, DIAGONAL, KNIGHT = (round(weight * STEP_UNIT) for weight in (1.0, 1.4, 2.1969))
_FAR = 1 << 40


def squared_distance(mask: Tensor) -> Tensor:
    """Return the squared Euclidean distance of each pixel to the nearest one outside the mask.

    Exact, in whole numbers: distances along the columns first, then for each row the smallest sum
    of the square of an offset and the squared distance there.

    Args:
        mask: (H, W), zero or not.

    Returns:
        (H, W) int64, 0 outside the mask.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import squared_distance
        >>> squared_distance(torch.ones(3, 5)).tolist()
        [[1, 1, 1, 1, 1], [1, 4, 4, 4, 1], [1, 1, 1, 1, 1]]
    """
    if mask.dim() != 2:
        raise ValueError(f"mask must be (H, W), got {shape_text(mask)}")
    mask = mask != 0
    result = torch.zeros_like(mask, dtype=torch.int64)
    rows, cols = (mask.any(axis).nonzero()[:, 0] for axis in (1, 0))
    if len(rows):
        # What lies around the bounding box of the mask is nearer than anything farther away.
        box = slice(int(rows[0]), int(rows[-1]) + 1), slice(int(cols[0]), int(cols[-1]) + 1)
        result[box] = _squared(F.pad(mask[box], (1, 1, 1, 1)))[1:-1, 1:-1]
    return result


def _squared(mask: Tensor) -> Tensor:
    """Return :func:`squared_distance` of a mask (H, W) whose first and last row are outside."""
    row = torch.arange(len(mask), device=mask.device)[:, None]
    above = torch.where(mask, 0, row).cummax(0).values
    below = torch.where(mask, len(mask), row).flip(0).cummin(0).values.flip(0)
    column = (row - above).minimum(below - row).square()  # (H, W)
    nearest = column.clone()
    offset = 1
    while offset**2 < int(nearest.max()):
        moved = column + offset**2
        torch.minimum(nearest[:, offset:], moved[:, :-offset], out=nearest[:, offset:])
        torch.minimum(nearest[:, :-offset], moved[:, offset:], out=nearest[:, :-offset])
        offset += 1
    return nearest


def step_distance(mask: Tensor) -> Tensor:
    """Return the length of the shortest way of 5x5 steps to a pixel outside the mask.

    A step to the side is 1 long, along the diagonal 1.4, a knight's move 2.1969: within 2 % of the
    Euclidean distance. It is the approximate transform with a 5x5 mask that the training clicks of
    interactive segmentation were published with.

    Args:
        mask: (B, H, W), zero or not.

    Returns:
        (B, H, W) int64, in units of 1 / ``STEP_UNIT`` pixel.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics.distances import STEP_UNIT, step_distance
        >>> (step_distance(torch.ones(1, 5, 5)) / STEP_UNIT)[0, 2].tolist()
        [1.0, 2.0, 3.0, 2.0, 1.0]
    """
    if mask.dim() != 3:
        raise ValueError(f"mask must be (B, H, W), got {shape_text(mask)}")
    # Two columns on each side and two rows: what the steps may look at.
    inside = F.pad(mask != 0, (2, 2, 2, 2))
    length = torch.where(inside, _FAR, 0)
    forward = _sweep(length)
    return _sweep(forward.flip(1, 2)).flip(1, 2)[:, 2:-2, 2:-2]


def _sweep(length: Tensor) -> Tensor:
    """Shorten the ways (B, H, W) by steps from above and from the left; the rim stays."""
    length = length.clone()
    width = length.shape[2]
    along = SIDE * torch.arange(width, device=length.device)
    for row in range(2, length.shape[1] - 2):
        two, one, own = length[:, row - 2], length[:, row - 1], length[:, row]
        steps = [
            (one, 0, SIDE),
            (one, -1, DIAGONAL),
            (one, 1, DIAGONAL),
            (one, -2, KNIGHT),
            (one, 2, KNIGHT),
            (two, -1, KNIGHT),
            (two, 1, KNIGHT),
        ]
        for source, shift, weight in steps:
            found = source[:, 2 + shift : width - 2 + shift] + weight
            torch.minimum(own[:, 2:-2], found, out=own[:, 2:-2])
        # Steps to the right: the smallest length less what the way there has cost.
        own.copy_((own - along).cummin(1).values + along)
    return length
