"""Matching key points by features, and the share that is matched correctly (PCK).

A query's match is the cell of the target map whose feature is closest by cosine, the first in
row-major order if several are. Points are ``(x, y)``. Legend: ``K`` points, ``C`` channels,
``G G`` map of a square image, ``N`` its cells. Scores are fractions in [0, 1], not percent.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric
from upfeat.ops import unit_vectors

SOFT_TEMPERATURE = 0.02


class SquareCanvas(NamedTuple):
    """A square that an image is padded to, and the map of it.

    Attributes:
        side: of the square in the image's pixels, its longer side.
        left, top: pixels of padding before the image.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import SquareCanvas
        >>> canvas = SquareCanvas.centred((60, 90))
        >>> canvas, canvas.cells(torch.tensor([[45.0, 30.0]]), 32).tolist()
        (SquareCanvas(side=90, left=0, top=15), [528])
        >>> canvas.pixels(torch.tensor([528]), 32).tolist()
        [[46.0, 31.0]]
    """

    side: int
    left: int
    top: int

    @classmethod
    def centred(cls, size: tuple[int, int]) -> "SquareCanvas":
        """Return the square around an image (H, W) in its middle."""
        height, width = size
        side = max(size)
        return cls(side, (side - width) // 2, (side - height) // 2)

    def cells(self, points: Tensor, grid: int) -> Tensor:
        """Return the flat cells (K,) of a map of side G that hold some points (K, 2).

        The points are cut to whole pixels, divided in float32.
        """
        shifted = (points.floor() + points.new_tensor([self.left, self.top])).float()
        cells = (shifted / self.side * grid).floor().long().clamp(0, grid - 1)
        return cells[:, 1] * grid + cells[:, 0]

    def pixels(self, cells: Tensor, grid: int) -> Tensor:
        """Return the whole pixels (K, 2), float64, at the middle of some flat cells (K,)."""
        places = torch.stack([cells % grid, cells // grid], 1).double()
        whole = ((places + 0.5) / grid * self.side).floor()
        return whole - whole.new_tensor([self.left, self.top])


def similarities(queries: Tensor, cells: Tensor) -> Tensor:
    """Return cosines (K, N) of vectors (K, C) and (N, C)."""
    return unit_vectors(queries) @ unit_vectors(cells).T


def match_cells(queries: Tensor, strips: Iterable[Tensor]) -> Tensor:
    """Return the flat cells (K,) of a map whose features are closest to the queries.

    Args:
        queries: (K, C).
        strips: consecutive rows of the map, (C, R, G) each: a map need not be whole in memory.
    """
    best = queries.new_full((len(queries),), -math.inf)
    found = torch.zeros(len(queries), dtype=torch.long, device=queries.device)
    start = 0
    for strip in strips:
        cells = strip.flatten(1).T  # (C, R, G) -> (R*G, C)
        value, place = similarities(queries, cells).max(1)
        better = value > best  # strictly: of equal ones the first
        best, found = torch.where(better, value, best), torch.where(better, place + start, found)
        start += len(cells)
    return found


def soft_argmax(similarity: Tensor, window: int, temperature: float = SOFT_TEMPERATURE) -> Tensor:
    """Return weighted means of positions, the weights being a softmax of similarities.

    Args:
        similarity: (K, G, G) cosines.
        window: above 0, similarities farther than so many rows or columns from the maximum become
            0 (not minus infinity); 0: none do; below 0, they are multiplied by a Gaussian of this
            width around the maximum.
        temperature: of the softmax.

    Returns:
        (K, 2) column and row, float.
    """
    if similarity.dim() != 3:
        raise ValueError(f"similarity must be (K, G, G), got {shape_text(similarity)}")
    count, height, width = similarity.shape
    rows, cols = (torch.arange(side, device=similarity.device) for side in (height, width))
    top = similarity.flatten(1).argmax(1)  # (K, G, G) -> (K,)
    down = rows - (top // width)[:, None]  # (K, G)
    across = cols - (top % width)[:, None]
    if window > 0:
        near = (down.abs() <= window)[:, :, None] & (across.abs() <= window)[:, None]
        similarity = similarity * near
    elif window < 0:
        squares = down.square()[:, :, None] + across.square()[:, None]
        similarity = similarity * torch.exp(-squares / (2 * window**2))
    weights = (similarity.flatten(1) / temperature).softmax(1).reshape(count, height, width)
    places = (weights.sum(1) @ cols.to(weights), weights.sum(2) @ rows.to(weights))
    return torch.stack(places, 1)


def nearest_points(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distance to the nearest of all key points of the target, and its row.

    Args:
        predictions: (K, 2).
        targets: (T, 2), NaN where not visible.

    Returns:
        (K,) distances and (K,) rows; the first of equally near ones.
    """
    distances = (predictions[:, None] - targets).norm(dim=2)  # (K, T)
    value, row = distances.nan_to_num(math.inf).min(1)
    return value, row


def percent_name(alpha: float) -> str:
    """Return how a threshold stands in the name of a score: ``5`` for 0.05, ``0.5`` for 0.005."""
    return f"{100 * alpha:.4g}"


class KeypointMetric(Metric):
    """The share of key points that are matched correctly, PCK@alpha, over a set of pairs.

    Args:
        categories: of the objects.
        alphas: thresholds as shares of an object's size.
        strict: correct is a distance below the threshold, not one equal to it.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import KeypointMetric
        >>> metric = KeypointMetric(("cat",), (0.1,))
        >>> predicted, true = (
        ...     torch.tensor([[9.0, 0.0], [30.0, 0.0]]),
        ...     torch.tensor([[0.0, 0.0]] * 2),
        ... )
        >>> metric.add("cat", predicted, true, threshold=100.0)
        >>> metric.compute()["pck_10"]
        0.5
    """

    def __init__(
        self, categories: Sequence[str], alphas: Sequence[float], *, strict: bool = False
    ) -> None:
        self.categories, self.alphas, self.strict = tuple(categories), tuple(alphas), strict
        shape = (len(self.categories), len(self.alphas))
        # Of each category: points, pairs, and the correct ones by every alpha.
        self.points = torch.zeros(shape[0], dtype=torch.int64)
        self.pairs = torch.zeros(shape[0], dtype=torch.int64)
        self.correct = torch.zeros(shape, dtype=torch.int64)
        self.own = torch.zeros(shape, dtype=torch.int64)  # as PCK+ counts them
        self.shares = torch.zeros(shape, dtype=torch.float64)  # summed over pairs

    def add(
        self,
        category: str,
        predictions: Tensor,
        targets: Tensor,
        threshold: float,
        counted: Tensor | None = None,
    ) -> None:
        """Add a pair.

        Args:
            category: of its object.
            predictions: (K, 2) where the source's points are found in the target; NaN for a point
                that the source does not show.
            targets: (K, 2) where they are, NaN for a point that the target does not show.
            threshold: the object's size, in the unit of the points.
            counted: (K,) points that count; None for all that both images show.

        Raises:
            ValueError: an unknown category, or shapes differ.
        """
        if category not in self.categories or predictions.shape != targets.shape:
            raise ValueError(
                f"a pair of {category!r} with {shape_text(predictions)} predictions and "
                f"{shape_text(targets)} targets; the categories are {', '.join(self.categories)}"
            )
        both = ~(predictions.isnan() | targets.isnan()).any(1)
        both = both if counted is None else both & counted
        if not both.any():
            return
        number = self.categories.index(category)
        distances = (predictions.double() - targets.double()).norm(dim=1)[both]
        # (K, T): of all that is predicted in the pair, what lies nearest to each true point.
        apart = (targets[both][:, None].double() - predictions.double()).norm(dim=2)
        first = apart.nan_to_num(math.inf).argmin(1) == both.nonzero()[:, 0]
        limits = torch.tensor(self.alphas, dtype=torch.float64)[:, None] * threshold
        hits = distances < limits if self.strict else distances <= limits  # (alphas, K)
        self.points[number] += len(distances)
        self.pairs[number] += 1
        self.correct[number] += hits.sum(1)
        self.own[number] += (hits & first).sum(1)
        self.shares[number] += hits.double().mean(1)

    def totals(self) -> tuple[Tensor, ...]:
        """Return all counts."""
        return self.points, self.pairs, self.correct, self.own, self.shares

    def compute(self) -> dict[str, float]:
        """Return the scores of every alpha, the number behind each name being percent.

        ``pck``: of the points of a category, then mean over the categories. ``pck_plus``: likewise;
        a correct point must also be that of all predictions of its pair which lies nearest to the
        true one. ``pck_image``: share of each pair, mean over the pairs of a category, then over
        the categories. ``pck_pairs``: mean over all pairs. ``pck_points``: over all points.
        """
        points, pairs = self.points[:, None].double(), self.pairs[:, None].double()
        columns = {
            "pck": (self.correct / points).nanmean(0),
            "pck_plus": (self.own / points).nanmean(0),
            "pck_image": (self.shares / pairs).nanmean(0),
            "pck_pairs": self.shares.sum(0) / pairs.sum(),
            "pck_points": self.correct.sum(0) / points.sum(),
        }
        return {
            f"{name}_{percent_name(alpha)}": value
            for name, values in columns.items()
            for alpha, value in zip(self.alphas, values.tolist(), strict=True)
        }
