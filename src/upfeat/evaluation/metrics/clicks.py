"""Interactive segmentation: where a user would click, click maps, and scores by number of clicks.

The next click lies farthest from the end of a region: distance transforms stand here, too, exact
and by sums of 5x5 steps. Pixels beyond a map are outside every mask.

Source: Sofiiuk, Petrov, Konushin, "Reviving iterative training with mask guidance for interactive
segmentation", arXiv 2102.06583; Liu et al., "SimpleClick", arXiv 2210.11006.

Legend: ``B`` batch, ``n`` slots for clicks of one kind, ``H W`` image, ``T`` clicks. Labels are 1
on the object, 0 on the background, -1 where nothing counts.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric

# The 5x5 steps of G. Borgefors, "Distance transformations in digital images", CVGIP 1986, with the
# weights 1, 1.4 and 2.1969 for a pixel to the side, along the diagonal and of a knight's move.
STEP_UNIT = 1 << 16
"""Steps to the side count so much in :func:`step_distance`, which adds whole numbers."""

SIDE, DIAGONAL, KNIGHT = (round(weight * STEP_UNIT) for weight in (1.0, 1.4, 2.1969))
_FAR = 1 << 40
_NO_CLICK = 1e6  # squared distance to the nearest of no clicks


class Click(NamedTuple):
    """A pixel, perhaps between pixels after resizing, and whether it is on the object."""

    row: float
    col: float
    positive: bool


def next_click(prediction: Tensor, target: Tensor, clicked: Sequence[Click] = ()) -> Click | None:
    """Return the middle of the largest error: the pixel farthest from the end of its region.

    Missing object and surplus object are looked at apart; the click is positive only if it is
    strictly farther inside the missing one. Of equal pixels the first in reading order counts.

    Args:
        prediction: (H, W), zero or not.
        target: (H, W), labels.
        clicked: earlier clicks, whose pixels are not clicked again.

    Returns:
        The click, or None where no pixel is wrong but clicked ones.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import next_click
        >>> target = torch.zeros(5, 7, dtype=torch.int64)
        >>> target[1:4, 1:4] = 1
        >>> next_click(torch.zeros(5, 7), target)
        Click(row=2, col=2, positive=True)
    """
    if prediction.shape != target.shape or target.dim() != 2:
        raise ValueError(
            f"prediction and target must be (H, W), got {shape_text(prediction)} and "
            f"{shape_text(target)}"
        )
    predicted = prediction != 0
    missing = squared_distance((target == 1) & ~predicted)
    surplus = squared_distance((target == 0) & predicted)
    for click in clicked:
        missing[int(click.row), int(click.col)] = surplus[int(click.row), int(click.col)] = 0
    positive = bool(missing.max() > surplus.max())
    distance = missing if positive else surplus
    if not distance.any():
        return None
    place = int((distance == distance.max()).flatten().nonzero()[0])
    return Click(*divmod(place, target.shape[1]), positive)


def click_maps(
    points: Tensor,
    size: tuple[int, int],
    radius: float = 5,
    encoding: Literal["disk", "tanh"] = "disk",
) -> Tensor:
    """Draw clicks as maps.

    ``disk``: 1 within ``radius`` of a click, else 0. ``tanh``: tanh(2 d / radius) of the distance d
    to the nearest click, 1 without clicks.

    Args:
        points: (B, 2n, 2 or more): row and column, first n positive, then n negative clicks; may
            be fractional; below 0 where a slot is not used.
        size: (H, W).
        radius: in pixels.
        encoding: see above.

    Returns:
        (B, 2, H, W) of the type of ``points``: positive, negative.
    """
    if points.dim() != 3 or points.shape[1] % 2:
        raise ValueError(f"points must be (B, 2n, 2 or more), got {shape_text(points)}")
    batch, slots = len(points), points.shape[1] // 2
    rows, cols = (torch.arange(side, device=points.device).to(points) for side in size)
    nearest = points.new_full((batch, 2, *size), _NO_CLICK)
    places = points[..., :2].reshape(batch, 2, slots, 2)  # (B, 2n, 2) -> (B, 2, n, 2)
    used = places.amax(-1) >= 0  # (B, 2, n)
    for slot in used.any(0).any(0).nonzero()[:, 0].tolist():
        row, col = places[:, :, slot].unbind(-1)  # (B, 2)
        # (B, 2, H, 1) + (B, 2, 1, W)
        square = (rows - row[..., None]).square()[..., None]
        square = square + (cols - col[..., None]).square()[..., None, :]
        square.masked_fill_(~used[:, :, slot, None, None], _NO_CLICK)
        nearest = nearest.minimum(square)
    if encoding == "disk":
        return (nearest <= radius**2).to(points)
    return torch.tanh(2 * nearest.sqrt() / radius)


def clicks_needed(ious: Sequence[float], threshold: float, never: int = 20) -> int:
    """Return the number of the first click with which the IoU reaches a threshold (NoC).

    Args:
        ious: after each click.
        threshold: in [0, 1].
        never: what counts if it is never reached.
    """
    return next((i for i, iou in enumerate(ious, 1) if iou >= threshold), never)


class ClickMetric(Metric):
    """Scores over objects: IoU after the first click, clicks needed, objects never done.

    Args:
        clicks: T, made on each object, and counted where a threshold is never reached.
        thresholds: IoUs to be reached, in percent.

    Example:
        >>> from upfeat.evaluation.metrics import ClickMetric
        >>> metric = ClickMetric(clicks=2, thresholds=(80,))
        >>> metric.add([0.5, 0.9])
        >>> metric.compute()
        {'iou_1': 0.5, 'noc_80': 2.0, 'missed_80': 0.0}
    """

    def __init__(self, clicks: int = 20, thresholds: Sequence[int] = (80, 85, 90)) -> None:
        self.clicks, self.thresholds = clicks, tuple(thresholds)
        # Sums over objects: of the IoU after each click, the clicks needed, those never done.
        self.ious = torch.zeros(clicks, dtype=torch.float64)
        self.needed = torch.zeros(len(self.thresholds), dtype=torch.int64)
        self.missed = torch.zeros_like(self.needed)
        self.objects = torch.zeros(1, dtype=torch.int64)

    def add(self, ious: Sequence[float]) -> None:
        """Add an object with its IoUs (T,) in [0, 1], after each click.

        Raises:
            ValueError: there are more or fewer than T.
        """
        if len(ious) != self.clicks:
            raise ValueError(f"an object needs the IoU after {self.clicks} clicks, got {len(ious)}")
        self.ious += torch.tensor(ious, dtype=torch.float64)
        for i, threshold in enumerate(self.thresholds):
            self.needed[i] += clicks_needed(ious, threshold / 100, self.clicks)
            self.missed[i] += max(ious) < threshold / 100
        self.objects += 1

    def totals(self) -> tuple[Tensor, ...]:
        """Return all sums."""
        return self.ious, self.needed, self.missed, self.objects

    def curve(self) -> list[float]:
        """Return the mean IoU after each click; NaN without objects."""
        return (self.ious / self.objects).tolist()

    def compute(self) -> dict[str, float]:
        """Return ``iou_1``, and ``noc_80``, ``missed_80`` of each threshold; NaN without objects.

        ``noc``: mean number of clicks needed. ``missed``: share of objects that never got there.
        """
        scores = {"iou_1": self.curve()[0]}
        for name, sums in (("noc", self.needed), ("missed", self.missed)):
            means = (sums.double() / self.objects).tolist()
            pairs = zip(self.thresholds, means, strict=True)
            scores |= {f"{name}_{threshold}": mean for threshold, mean in pairs}
        return scores


# -- distance transforms -------------------------------------------------------------------------


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
