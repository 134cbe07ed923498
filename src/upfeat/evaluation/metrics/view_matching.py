"""Correspondence of two posed views: matches by features, judged by their points in space.

Probe3D (arXiv 2404.08636) matches the cells of one view to those of another by cosine, keeps the
matches whose nearest neighbour is clearest (ratio test) and measures how far the matched points lie
apart, in metres and in pixels. ViT-Up matches visible points on a lattice instead, all of them.

Points are in a camera's frame, x right, y down, z forward, metres; a cell without a point has
``z = 0``. Legend: ``C`` channels, ``H W`` grid of points, ``N`` points, ``M`` matches.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.ops import unit_vectors

LEAST_DISTANCE = 1e-9  # of a cosine distance in the ratio test, and of a depth in a projection
VISIBLE_DEPTH = 0.02  # metres between a moved point and the surface that it falls on
LATTICE_STEPS = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)


class Matches(NamedTuple):
    """M matches: rows of the sources, rows of the targets, weights; clearest first."""

    source: Tensor
    target: Tensor
    weight: Tensor


class MatchErrors(NamedTuple):
    """Distances (M,) of matched points: in metres and in pixels of the second view."""

    metres: Tensor
    pixels: Tensor


def cell_features(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map (C, h, w) at the points' grid as (H * W, C): bicubic, not antialiased."""
    return F.interpolate(features[None], size, mode="bicubic")[0].flatten(1).T


def ratio_matches(sources: Tensor, targets: Tensor, count: int = 1000) -> Matches:
    """Match each source to the target of least cosine distance; keep the clearest matches.

    With the two least distances ``d1 <= d2`` the weight is ``1 - d1 / d2``; the largest are kept.

    Args:
        sources: (N, C).
        targets: (N', C), two at least.
        count: at most so many matches.

    Raises:
        ValueError: there are fewer than two targets.
    """
    if len(targets) < 2:
        raise ValueError(f"two targets are needed, got {shape_text(targets)}")
    sources, targets = unit_vectors(sources), unit_vectors(targets)
    # A few sources at a time: all cosines of two 128 x 128 grids are a gigabyte.
    found = [(1 - part @ targets.T).topk(2, largest=False) for part in sources.split(1024)]
    distances = torch.cat([each.values for each in found]).clamp(min=LEAST_DISTANCE)  # (N, 2)
    nearest = torch.cat([each.indices[:, 0] for each in found])
    weights = 1 - distances[:, 0] / distances[:, 1]
    best = weights.topk(min(count, len(weights)))
    return Matches(best.indices, nearest[best.indices], best.values)


def moved_points(points: Tensor, pose: Tensor) -> Tensor:
    """Return points (N, 3) in the other view's frame; ``pose`` (3, 4) is rotation and shift."""
    return points @ pose[:, :3].T + pose[:, 3]


def projected_points(points: Tensor, camera: Tensor) -> Tensor:
    """Return the pixels (N, 2), x and y, of points (N, 3) in a camera (3, 3)."""
    seen = points @ camera.T
    return seen[:, :2] / seen[:, 2:].clamp(min=LEAST_DISTANCE)


def match_errors(sources: Tensor, targets: Tensor, pose: Tensor, camera: Tensor) -> MatchErrors:
    """Return how far matched points lie apart in the second view.

    Args:
        sources: (M, 3) points of the first view.
        targets: (M, 3) points of the second view.
        pose: (3, 4), first view to second.
        camera: (3, 3) of the second view.
    """
    moved = moved_points(sources, pose)
    pixels = projected_points(moved, camera) - projected_points(targets, camera)
    return MatchErrors((moved - targets).norm(dim=1), pixels.norm(dim=1))


def recalls(errors: Tensor, limits: Sequence[float]) -> list[float]:
    """Return the percentage of errors below each limit, strictly."""
    return [100 * float((errors < limit).double().mean()) for limit in limits]


def rotation_angle(pose: Tensor) -> float:
    """Return the angle of a relative pose (3, 4) or (3, 3) in degrees."""
    trace = pose[:3, :3].double().trace()
    return float(((trace - 1) / 2).clamp(-1, 1).acos().rad2deg())


def angle_bins(
    values: Sequence[float], angles: Sequence[float], edges: Sequence[float]
) -> list[float]:
    """Return the mean of the values whose angle lies in each bin ``[a, b)``; NaN for none."""
    means = []
    for low, high in pairwise(edges):
        inside = [v for v, angle in zip(values, angles, strict=True) if low <= angle < high]
        means.append(sum(inside) / len(inside) if inside else float("nan"))
    return means


def visible_cells(
    points: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    pose: Tensor,
    camera: Tensor,
    *,
    scale: float = 0.25,
    count: int = 1000,
    steps: Sequence[int] = LATTICE_STEPS,
) -> Tensor:
    """Return source cells on a diamond lattice whose points are visible in the second view.

    A point is visible if it is in front of the camera, falls on a cell of the object and lies
    within 2 cm of that cell's depth. The lattice is the coarsest of ``steps`` with at least
    ``count`` visible cells, thinned evenly to that number; if none has so many, the fullest.

    Args:
        points: (3, H, W) of both views.
        masks: (H, W) of the object in both views, boolean.
        pose: (3, 4), first view to second.
        camera: (3, 3) of the second view, in pixels of the whole picture.
        scale: cells per pixel.
        count: at most so many cells.
        steps: of the lattices.

    Returns:
        (n,) flat positions in the first grid.
    """
    visible = _visible(points, masks, pose, camera, scale)
    # For each step the visible cells of its lattice, in row-major order.
    found = [(visible & _lattice(visible, step)).flatten().nonzero()[:, 0] for step in steps]
    enough = [cells for cells in found if len(cells) >= count]
    cells = min(enough, key=len) if enough else max(found, key=len)
    if len(cells) > count:
        cells = cells[torch.linspace(0, len(cells) - 1, count).long()]
    return cells


def _visible(
    points: tuple[Tensor, Tensor],
    masks: tuple[Tensor, Tensor],
    pose: Tensor,
    camera: Tensor,
    scale: float,
) -> Tensor:
    """Return which cells (H, W) of the first view are seen by the second."""
    first, second = points
    height, width = first.shape[1:]
    moved = moved_points(first.flatten(1).T, pose)  # (H*W, 3)
    places = (projected_points(moved, camera) * scale).round().clamp(-1, max(height, width))
    x, y = places.long().unbind(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (moved[:, 2] > 0)
    at = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
    depth = second[2].flatten()[at]
    near = (moved[:, 2] - depth).abs() <= VISIBLE_DEPTH
    seen = inside & near & (depth > 0) & masks[1].flatten()[at]
    return seen.unflatten(0, (height, width)) & masks[0] & (first[2] > 0)


def _lattice(like: Tensor, step: int) -> Tensor:
    """Return the cells of a diamond lattice: every second row is shifted by half a step."""
    half = step // 2
    cells = torch.zeros_like(like)
    for number, row in enumerate(range(0, like.shape[0], max(half, 1))):
        cells[row, (half if number % 2 else 0) :: step] = True
    return cells
