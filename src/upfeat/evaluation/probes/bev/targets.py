"""Target maps from boxes: occupied cells, visibility, centres, offsets.

Maps are drawn with axes (x, y) from the smallest coordinate, as the published code does, and turned
at the end, so that row 0 is the largest x and column 0 the largest y.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from upfeat.data.sets.nuscenes import Boxes
from upfeat.evaluation.probes.bev.grid import BevGrid
from upfeat.evaluation.probes.bev.losses import BevTargets

__all__ = ["BoxMaps", "bottom_corners", "draw_targets", "fill_quadrilateral", "flat_pose"]

Array = npt.NDArray[np.float64]

NO_BOX = 255
SIGMA = 3.0  # cells, of the Gaussian around a centre
FAINT = 0.1  # of an invisible vehicle's Gaussian: from here on its cells do not count
SHIFT = 16  # fractional bits of a span's ends


class BoxMaps(NamedTuple):
    """Target maps of one frame, float32 but for ``visibility``.

    Attributes:
        targets: (1, ., X, Y) each.
        visibility: (X, Y) uint8, 1 to 4 on vehicles, 255 elsewhere.
    """

    targets: BevTargets
    visibility: Tensor


def flat_pose(pose: Array) -> Array:
    """Return a pose (4, 4) without roll and pitch, as the targets' reference frame has it.

    Example:
        >>> import numpy as np
        >>> from upfeat.evaluation.probes.bev.targets import flat_pose
        >>> flat_pose(np.eye(4)).diagonal().tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
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
        >>> from upfeat.evaluation.probes.bev.grid import BevGrid
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
