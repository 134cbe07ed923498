"""Target maps of the heads from boxes, and the losses of the heads with learned weights.

Maps are drawn with axes (x, y) from the smallest coordinate, as the published code does, and turned
at the end, so that row 0 is the largest x and column 0 the largest y.

PointBeV's losses (:class:`BevLoss`) are the protocol's. SimpleBeV's own differ in the centre and
offset terms and are here for comparison. Kendall et al., "Multi-task learning using uncertainty",
CVPR 2018, arXiv 1705.07115: a term ``L`` with the learned scalar ``s`` counts as
``exp(-s) L + s``.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upfeat.data.sets.nuscenes import Boxes
from upfeat.evaluation.probes.bev.lifting import BevGrid

POSITIVE_WEIGHT = 2.13
"""Weight of a vehicle's cells in the cross-entropy."""
IGNORED_OFFSET = 255
EPSILON = 1e-6
# Factor of exp(-s) L and of s, in the order of the heads.
FACTORS = {"binimg": (10.0, 0.5), "centerness": (0.5, 0.5), "offsets": (0.5, 0.5)}

Array = npt.NDArray[np.float64]

NO_BOX = 255
SIGMA = 3.0  # cells, of the Gaussian around a centre
FAINT = 0.1  # of an invisible vehicle's Gaussian: from here on its cells do not count
SHIFT = 16  # fractional bits of a span's ends


# -- losses ---------------------------------------------------------------------------------------


class BevTargets(NamedTuple):
    """Targets of the heads, for B frames.

    Attributes:
        binimg: (B, 1, X, Y), 1 where a vehicle is.
        valid: (B, 1, X, Y), 0 where a vehicle is too little visible to count.
        centerness: (B, 1, X, Y), 1 at a vehicle's centre.
        valid_centerness: (B, 1, X, Y).
        offsets: (B, 2, X, Y), rows and columns to the centre; 255 where no vehicle is.
    """

    binimg: Tensor
    valid: Tensor
    centerness: Tensor
    valid_centerness: Tensor
    offsets: Tensor


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (mask.sum() + EPSILON)


def weighted_bce(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy of a mask's cells, positives counting 2.13 times.

    Args:
        logits: (B, 1, X, Y).
        target: the same shape, 0 or 1.
        mask: the same shape, 1 where a cell counts.
    """
    weight = logits.new_tensor(POSITIVE_WEIGHT)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)
    return _mean(each, mask)


class BevLoss(nn.Module):
    """Cross-entropy, squared error of the centre map, absolute error of the offsets.

    Args:
        heads: which terms count.
    """

    def __init__(self, heads: tuple[str, ...] = tuple(FACTORS)) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in heads})

    def forward(
        self, found: Mapping[str, Tensor], target: BevTargets, sampled: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the terms.

        Args:
            found: of the heads; centerness in 0 to 1.
            target: the ground truth.
            sampled: (B, 1, X, Y), cells that count at all; None for all.
        """
        terms = self.terms(found, target, sampled)
        total = torch.stack(
            [
                FACTORS[name][0] * torch.exp(-scale) * terms[name] + FACTORS[name][1] * scale
                for name, scale in self.weights.items()
            ]
        )
        return total.mean(), terms

    def terms(
        self, found: Mapping[str, Tensor], target: BevTargets, sampled: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each head's loss, 0 where no cell counts."""
        valid, centres = target.valid.to(target.binimg), target.valid_centerness.to(target.binimg)
        if sampled is not None:
            valid, centres = valid * sampled, centres * sampled
        inside = (target.offsets != IGNORED_OFFSET).to(valid) * valid  # (B, 2, X, Y)
        all_terms = {
            "binimg": lambda: weighted_bce(found["binimg"], target.binimg, valid),
            "centerness": lambda: _mean(
                (found["centerness"] - target.centerness).square(), centres
            ),
            "offsets": lambda: _mean((found["offsets"] - target.offsets).abs(), inside),
        }
        return {name: all_terms[name]() for name in self.weights}


def simplebev_losses(
    found: Mapping[str, Tensor], target: BevTargets, scales: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return SimpleBeV's own total and terms.

    The centre map's error is balanced between cells above and below 0.5, the offsets' is summed
    over its two channels, and the total is a sum.

    Args:
        found: of the heads.
        target: the ground truth; offsets are 0 outside vehicles.
        scales: learned scalars of the terms.
    """
    error = (found["centerness"] - target.centerness).square()
    near, far = (target.centerness > 0.5).to(error), (target.centerness < 0.5).to(error)
    offsets = (found["offsets"] - target.offsets).abs().sum(1, keepdim=True)
    terms = {
        "binimg": weighted_bce(found["binimg"], target.binimg, target.valid),
        "centerness": 0.5 * (_mean(error, near) + _mean(error, far)),
        "offsets": _mean(offsets, target.binimg * target.valid),
    }
    total = torch.stack(
        [
            FACTORS[name][0] * torch.exp(-scales[name]) * term + FACTORS[name][1] * scales[name]
            for name, term in terms.items()
        ]
    )
    return total.sum(), terms


# -- targets --------------------------------------------------------------------------------------


class BoxMaps(NamedTuple):
    """Target maps of one frame, float32 but for ``visibility``.

    Attributes:
        targets: (1, ., X, Y) each.
        visibility: (X, Y) uint8, 1 to 4 on vehicles, 255 elsewhere.
    """

    targets: BevTargets
    visibility: Tensor


def flat_pose(pose: Array) -> Array:
    """Return a pose (4, 4) without roll and pitch, as the targets' reference frame has it."""
    yaw = np.arctan2(-pose[0, 1], pose[0, 0])
    flat = np.eye(4)
    flat[:2, :2] = [[np.cos(yaw), -np.sin(yaw)], [np.sin(yaw), np.cos(yaw)]]
    flat[:3, 3] = pose[:3, 3]
    return flat


def bottom_corners(boxes: Boxes, pose: Array) -> Array:
    """Return the corners of the boxes' bottoms (M, 4, 2), x and y in the flat ego frame.

    Args:
        boxes: M, in the global frame.
        pose: (4, 4), ego to global; roll and pitch are dropped.
    """
    width, length, height = boxes.sizes.T[:, :, None]
    corners = np.stack(
        [
            length / 2 * np.array([1, 1, -1, -1]),
            width / 2 * np.array([-1, 1, 1, -1]),
            height / 2 * np.array([-1, -1, -1, -1]),
        ],
        axis=1,
    )  # (M, 3, 4)
    placed = boxes.rotations @ corners + boxes.centres[:, :, None]
    flat = flat_pose(pose)
    seen = flat[:3, :3].T @ (placed - flat[:3, 3:])  # (M, 3, 4)
    return seen[:, :2].transpose(0, 2, 1)


def draw_targets(
    corners: Array,
    visibility: Sequence[int],
    grid: BevGrid,
    *,
    min_visibility: int = 1,
    motion: Array | None = None,
) -> BoxMaps:
    """Draw boxes in their order; later ones overwrite earlier ones.

    Args:
        corners: (M, 4, 2) of :func:`bottom_corners`.
        visibility: of each box, 1 (0 to 40 % visible) to 4 (80 to 100 %).
        grid: of the maps.
        min_visibility: less visible boxes are ignored, though their cells remain 1 in ``binimg``.
        motion: (4, 4) of the augmentation; None for none.

    Example:
        >>> import numpy as np
        >>> from upfeat.evaluation.probes.bev.lifting import BevGrid
        >>> from upfeat.evaluation.probes.bev.targets import draw_targets
        >>> box = np.array([[[2.0, -1.0], [2.0, 1.0], [-2.0, 1.0], [-2.0, -1.0]]])
        >>> maps = draw_targets(box, [4], BevGrid.around((40, 40), 1, extent=10.0))
        >>> int(maps.targets.binimg.sum())  # 4 m x 2 m, with both borders
        45
    """
    if motion is not None:
        corners = (corners - motion[:2, 3]) @ motion[:2, :2]
    cells = (corners - np.array(grid.corner)) / np.array(grid.cell)
    seen = np.full(grid.size, NO_BOX, np.uint8)
    instance = np.zeros(grid.size, np.int64)
    offsets = np.full((2, *grid.size), NO_BOX, np.float32)
    near = np.zeros(grid.size)
    valid_centres = np.ones(grid.size, np.float32)
    px, py = np.arange(grid.size[0])[:, None], np.arange(grid.size[1])[None]
    for number, (box, token) in enumerate(zip(cells, visibility, strict=True), 1):
        centre = box.mean(0)
        away = (centre[0] - px) ** 2 + (centre[1] - py) ** 2
        gaussian = np.exp(-away / (2 * SIGMA**2))
        near = np.maximum(near, gaussian)
        if token < min_visibility:
            valid_centres[gaussian >= FAINT] = 0
        # Pixels of the drawing: columns are x, rows are y.
        painted = fill_quadrilateral(np.round(box).astype(int), (grid.size[1], grid.size[0])).T
        seen[painted], instance[painted] = token, number
        x, y = np.nonzero(instance == number)
        offsets[0, x, y], offsets[1, x, y] = np.round(x - centre[0]), np.round(y - centre[1])

    def turned(values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values[..., ::-1, ::-1]))

    targets = BevTargets(
        binimg=turned((seen != NO_BOX).astype(np.float32))[None, None],
        valid=turned((seen >= min_visibility).astype(np.float32))[None, None],
        centerness=turned(near.astype(np.float32))[None, None],
        valid_centerness=turned(valid_centres)[None, None],
        offsets=turned(offsets)[None],
    )
    return BoxMaps(targets, turned(seen))


# -- filling -------------------------------------------------------------------------------------


def fill_quadrilateral(points: npt.NDArray[np.integer], size: tuple[int, int]) -> npt.NDArray:
    """Return the cells that a quadrilateral paints: its outline and what lies between.

    It paints what OpenCV's ``fillConvexPoly`` does, cell by cell.

    Args:
        points: (4, 2) whole columns and rows of the corners, in order.
        size: rows and columns of the map; corners may lie outside.

    Returns:
        (rows, columns) bool.

    Example:
        >>> import numpy as np
        >>> from upfeat.evaluation.probes.bev.targets import fill_quadrilateral
        >>> square = np.array([[1, 1], [3, 1], [3, 2], [1, 2]])
        >>> fill_quadrilateral(square, (4, 5)).astype(int).tolist()
        [[0, 0, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]
    """
    painted = np.zeros(size, bool)
    vertices = [(int(column), int(row)) for column, row in points]
    for previous, vertex in zip([vertices[-1], *vertices[:-1]], vertices, strict=True):
        clipped = _clip(previous, vertex, size)
        if clipped is not None:
            _draw_line(painted, *clipped)
    _fill_spans(painted, vertices)
    return painted


Point = tuple[int, int]  # column, row


def _clip(first: Point, second: Point, size: tuple[int, int]) -> tuple[Point, Point] | None:
    """Return the part of an edge inside the map, or None; rows first, then columns."""
    ends = [list(first), list(second)]
    for axis, last in ((1, size[0] - 1), (0, size[1] - 1)):
        other = 1 - axis
        if max(ends[0][axis], ends[1][axis]) < 0 or min(ends[0][axis], ends[1][axis]) > last:
            return None
        for this, that in ((ends[0], ends[1]), (ends[1], ends[0])):
            if 0 <= this[axis] <= last:
                continue
            border = 0 if this[axis] < 0 else last
            slope = (that[other] - this[other]) / (that[axis] - this[axis])
            this[other] += int((border - this[axis]) * slope)
            this[axis] = border
    return (ends[0][0], ends[0][1]), (ends[1][0], ends[1][1])


def _draw_line(painted: npt.NDArray, first: Point, second: Point) -> None:
    """Paint an edge with 8-connected cells, from the smaller column."""
    if second[0] < first[0]:
        first, second = second, first
    dx, dy = second[0] - first[0], second[1] - first[1]
    major, minor = max(dx, abs(dy)), min(dx, abs(dy))
    steps = np.arange(major + 1)
    # ceil(t * minor / major - 1/2), in whole numbers
    aside = -((major - 2 * steps * minor) // (2 * major)) if major else steps
    sign = 1 if dy >= 0 else -1
    if abs(dy) <= dx:
        painted[first[1] + sign * aside, first[0] + steps] = True
    else:
        painted[first[1] + sign * steps, first[0] + aside] = True


class _Chain:
    """One side of a polygon, walked down from its top; ``x`` has 16 fractional bits."""

    def __init__(self, start: int, step: int, row: int) -> None:
        self.index, self.step, self.end = start, step, row
        self.x, self.slope = -(1 << SHIFT), 0

    def at(self, row: int, vertices: Sequence[Point]) -> int:
        """Take the next edge where the last one has ended; return x, then move it on."""
        if self.end <= row:
            for _ in vertices:
                start = vertices[self.index]
                self.index = (self.index + self.step) % len(vertices)
                column, end = vertices[self.index]
                if end > row:
                    self.end, rows = end, end - row
                    twice = 2 * ((column << SHIFT) - (start[0] << SHIFT)) + rows
                    # rounded towards zero
                    self.slope = int(np.fix(twice / (2 * rows)))
                    self.x = start[0] << SHIFT
                    break
        found, self.x = self.x, self.x + self.slope
        return found


def _fill_spans(painted: npt.NDArray, vertices: Sequence[Point]) -> None:
    rows, columns = painted.shape
    top = min(range(len(vertices)), key=lambda index: vertices[index][1])
    first, last = vertices[top][1], max(row for _, row in vertices)
    chains = (_Chain(top, 1, first), _Chain(top, -1, first))
    half = 1 << (SHIFT - 1)
    for row in range(first, min(last, rows - 1) + 1):
        left, right = sorted(chain.at(row, vertices) for chain in chains)
        start, stop = (left + half) >> SHIFT, (right + half) >> SHIFT
        if row >= 0 and stop >= 0 and start < columns:
            painted[row, max(start, 0) : stop + 1] = True
