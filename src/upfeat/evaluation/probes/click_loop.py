"""One object segmented by clicks: crop, mirrored pass, next click.

The evaluation loop of interactive segmentation: Sofiiuk, Petrov, Konushin, arXiv 2102.06583,
section 4; Liu et al., "SimpleClick", arXiv 2210.11006. After each click the network sees the part
of the image around the object so far, with the last probabilities and all clicks.

Legend: ``H W`` image, ``S`` side of what the network sees, ``B`` 1, or 2 with the mirrored image.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.metrics import Click, click_maps, next_click, region_similarity

ClickNetwork = Callable[[Tensor, Tensor], Tensor]
"""Gives logits (B, 1, S, S) of an image (B, 3, S, S) in [0, 1] and of (B, 3, S, S): the last
probabilities, the map of positive and that of negative clicks."""


@dataclass(frozen=True)
class ClickRules:
    """How an object is clicked.

    Attributes:
        size: S.
        clicks: on each object, whatever it takes.
        flip: average the logits with those of the mirrored image.
        expansion: of the box around the object.
        smallest: side of a box in pixels of the image.
        kept_overlap: the last box is kept while it overlaps the one wanted so far.
        threshold: of the probability that is object.
        radius: of a click in the maps.
        encoding: of the maps.
    """

    size: int = 224
    clicks: int = 20
    flip: bool = True
    expansion: float = 1.4
    smallest: int = 200
    kept_overlap: float = 0.5
    threshold: float = 0.5
    radius: float = 5
    encoding: Literal["disk", "tanh"] = "disk"


class Box(NamedTuple):
    """First and last row and column of a part of an image."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top + 1, self.right - self.left + 1

    def cut(self, x: Tensor) -> Tensor:
        """Return this part of a map (..., H, W)."""
        return x[..., self.top : self.bottom + 1, self.left : self.right + 1]


class ClickStep(NamedTuple):
    """What came of one click: the box looked at, probabilities (H, W), IoU with the target."""

    click: Click
    box: Box
    probability: Tensor
    iou: float


def click_steps(
    network: ClickNetwork, image: Tensor, target: Tensor, rules: ClickRules
) -> Iterator[ClickStep]:
    """Yield what comes of each click; ends early only where nothing is left to click on.

    The image is (3, H, W) in [0, 1], the target (H, W): 1 object, 0 background, -1 not counted.

    Raises:
        ValueError: the target does not fit the image, or holds no object.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.click_loop import ClickRules, click_steps
        >>> target = torch.zeros(40, 60, dtype=torch.int64)
        >>> target[10:20, 10:30] = 1
        >>> rules = ClickRules(size=32, clicks=1)
        >>> steps = click_steps(
        ...     lambda image, maps: maps[:, 1:2] - 0.5, torch.rand(3, 40, 60), target, rules
        ... )
        >>> next(steps).click
        Click(row=14, col=14, positive=True)
    """
    size = (image.shape[1], image.shape[2])
    if target.shape != size or not (target == 1).any():
        raise ValueError(
            f"the target must mark an object with 1 on an image {shape_text(image)}, got "
            f"{shape_text(target)} with {sorted(target.unique().tolist())}"
        )
    probability = image.new_zeros(size)
    clicks: list[Click] = []
    box: Box | None = None
    for _ in range(rules.clicks):
        mask = probability > rules.threshold
        click = next_click(mask, target, clicks)
        if click is None:
            return
        clicks.append(click)
        box = _kept_or_new(box, object_box(mask, clicks, rules), clicks, rules)
        probability = _look(network, image, probability, clicks, box, rules)
        predicted = probability > rules.threshold
        iou = float(region_similarity(predicted, target == 1, target == -1))
        yield ClickStep(click, box, probability, iou)


def object_box(mask: Tensor, clicks: Sequence[Click], rules: ClickRules) -> Box:
    """Return the box around a mask (H, W) and the positive clicks, grown, within the image.

    The whole image where the mask is empty.
    """
    height, width = mask.shape
    if not mask.any():
        return Box(0, height - 1, 0, width - 1)
    mask = mask.clone()
    for click in clicks:
        if click.positive:
            mask[int(click.row), int(click.col)] = True
    (top, bottom), (left, right) = (
        _grown(mask.any(axis).nonzero()[:, 0], len(line), rules)
        for axis, line in ((1, mask), (0, mask[0]))
    )
    return Box(top, bottom, left, right)


def _grown(places: Tensor, length: int, rules: ClickRules) -> tuple[int, int]:
    first, last = int(places[0]), int(places[-1])
    centre = (first + last) / 2
    half = max(rules.expansion * (last - first + 1), rules.smallest) / 2
    # round() goes half to even, as the definition does
    return max(0, round(centre - half)), min(length - 1, round(centre + half))


def _kept_or_new(old: Box | None, new: Box, clicks: Sequence[Click], rules: ClickRules) -> Box:
    if old is None:
        return new
    inside = all(
        old.top <= click.row < old.bottom and old.left <= click.col < old.right
        for click in clicks
        if click.positive
    )
    overlap = _overlap(old[:2], new[:2]) * _overlap(old[2:], new[2:])
    return old if inside and overlap >= rules.kept_overlap else new


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Return the IoU of two intervals, both ends included."""
    shared = max(0, min(one[1], other[1]) - max(one[0], other[0]) + 1)
    return shared / (max(one[1], other[1]) - min(one[0], other[0]) + 1)


def _look(
    network: ClickNetwork,
    image: Tensor,
    probability: Tensor,
    clicks: Sequence[Click],
    box: Box,
    rules: ClickRules,
) -> Tensor:
    """Return the probabilities (H, W) that the network gives of a box; 0 outside."""
    both = torch.cat([image, probability[None]])[None]
    seen = _resized(box.cut(both), (rules.size, rules.size))  # (1, 4, S, S)
    points = _points(clicks, box, rules.size).to(seen)
    if rules.flip:
        mirrored = points.clone()
        used = points[..., 0] >= 0
        mirrored[..., 1] = torch.where(used, rules.size - 1 - points[..., 1], points[..., 1])
        seen, points = torch.cat([seen, seen.flip(-1)]), torch.cat([points, mirrored])
    maps = click_maps(points, (rules.size, rules.size), rules.radius, rules.encoding)
    logits = network(seen[:, :3], torch.cat([seen[:, 3:], maps], 1))
    if rules.flip:
        logits = (logits[:1] + logits[1:].flip(-1)) / 2
    result = torch.zeros_like(probability)
    box.cut(result).copy_(_resized(logits.sigmoid(), box.size)[0, 0])
    return result


def _points(clicks: Sequence[Click], box: Box, side: int) -> Tensor:
    """Return the clicks in what the network sees, (1, 2n, 2); -1 in slots that are not used."""
    count = len(clicks)
    points = torch.full((1, 2 * count, 2), -1.0)
    height, width = box.size
    for slot, click in enumerate(clicks):
        row, col = side * (click.row - box.top) / height, side * (click.col - box.left) / width
        points[0, slot if click.positive else count + slot] = torch.tensor([row, col])
    return points


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=True)
