"""One object an image without labels: TokenCut's normalised cut, and the share of right boxes.

Source: Wang et al., "Self-supervised transformers for unsupervised object discovery using
normalized cut" (TokenCut), CVPR 2022, arXiv 2202.11539.

Legend: ``C`` channels, ``h w`` grid, ``N = h w`` cells. A box is ``x0, y0, x1, y1``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.errors import UnsupportedError, shape_text
from upfeat.evaluation.results import MeanMetric
from upfeat.ops import unit_vectors

__all__ = ["MOST_CELLS", "CorLocMetric", "Cut", "box_iou", "normalized_cut"]

MOST_CELLS = 64  # rows and columns; the affinities of 64 x 64 cells take 134 MB
WEAK = 1e-5  # weight of an edge below the threshold
HIT = 0.5
GUARD = 1e-7  # in the denominator of the IoU
_EQUAL = 1e-9
_DENSE = 1024  # cells up to which all eigenvectors are computed
_STEPS = 300
_RESIDUAL = 1e-11


class Cut(NamedTuple):
    """A grid, cut in two.

    Attributes:
        eigenvector: (h, w) float64, the object's side positive.
        bipartition: (h, w) bool, the object's whole side.
        foreground: (h, w) bool, the part of it that is connected to the seed.
        seed: (row, column) of the largest absolute value.
    """

    eigenvector: Tensor
    bipartition: Tensor
    foreground: Tensor
    seed: tuple[int, int]

    def box(self) -> tuple[int, int, int, int]:
        """Return the box of the foreground in cells, its end just behind it."""
        rows, cols = self.foreground.nonzero(as_tuple=True)
        x0, y0, x1, y1 = (int(x) for x in (cols.min(), rows.min(), cols.max(), rows.max()))
        return x0, y0, x1 + 1, y1 + 1


def normalized_cut(features: Tensor, tau: float = 0.2, *, weighted: bool = False) -> Cut:
    """Cut a map in two by the second smallest eigenvector of its graph's Laplacian.

    Two cells are joined by an edge of weight 1 where their cosine exceeds ``tau``, else of 1e-5.
    The vector v solves ``(D - A) v = lambda D v`` in float64, with ``v' D v = 1``; the side above
    its mean is the object's, unless the largest absolute value lies on the other.

    Args:
        features: (C, h, w), at most 64 x 64 cells, at least two.
        tau: threshold of the cosine.
        weighted: the weight of an edge above the threshold is the cosine itself.

    Raises:
        UnsupportedError: more cells; take an area mean of the map first.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import normalized_cut
        >>> grid = torch.zeros(2, 4, 5)
        >>> grid[0] = 1
        >>> grid[:, 1:3, 1:3] = torch.tensor([0.0, 1.0])[:, None, None]
        >>> normalized_cut(grid).box()
        (1, 1, 3, 3)
    """
    if features.dim() != 3 or features[0].numel() < 2:
        raise ValueError(f"features must be (C, h, w) of two cells, got {shape_text(features)}")
    height, width = features.shape[1:]
    if max(height, width) > MOST_CELLS:
        raise UnsupportedError(
            f"the cut takes at most {MOST_CELLS} x {MOST_CELLS} cells, got {height} x {width}; "
            "take an area mean of the map first"
        )
    vectors = unit_vectors(features[None]).flatten(2)[0].T  # (C, h, w) -> (N, C)
    products = (vectors @ vectors.T).double()
    strong = products if weighted else torch.ones_like(products)
    below = products < tau if weighted else products <= tau
    affinity = torch.where(below, WEAK, strong)
    vector = _second_vector(affinity)
    # The first of those that are equal but for rounding.
    seed = int((vector.abs() >= (1 - _EQUAL) * vector.abs().max()).nonzero()[0, 0])
    side = vector > vector.mean()
    if not side[seed]:
        vector, side = -vector, ~side
    grids = (vector.reshape(height, width), side.reshape(height, width))
    place = divmod(seed, width)
    return Cut(*grids, _component(grids[1], place), place)


def _second_vector(affinity: Tensor) -> Tensor:
    """Return the second smallest generalised eigenvector (N,) of (D - A, D)."""
    degree = affinity.sum(1)
    root = degree.rsqrt()
    # The largest of D^-1/2 A D^-1/2 are the smallest of the Laplacian; the first is known.
    scaled = affinity * root[:, None] * root
    if len(scaled) <= _DENSE:
        return torch.linalg.eigh(scaled).eigenvectors[:, -2] * root
    first = degree.sqrt() / degree.sum().sqrt()
    return _largest(scaled, first) * root


def _largest(matrix: Tensor, without: Tensor) -> Tensor:
    """Return the eigenvector of the largest eigenvalue orthogonal to a unit one (Lanczos)."""
    generator = torch.Generator().manual_seed(0)
    steps = min(_STEPS, len(matrix) - 1)
    basis = matrix.new_zeros(steps + 1, len(matrix))
    basis[0] = without
    band = matrix.new_zeros(steps, steps)  # the matrix in the basis, without its first vector
    vector = torch.randn(len(matrix), generator=generator, dtype=torch.float64).to(matrix)
    vector = _orthogonal(vector, basis[:1])
    for step in range(steps):
        basis[step + 1] = vector / vector.norm()
        image = matrix @ basis[step + 1]
        band[step, step] = image @ basis[step + 1]
        vector = _orthogonal(image, basis[: step + 2])
        length = vector.norm()
        if step % 10 == 9 or length < _RESIDUAL:
            own = torch.linalg.eigh(band[: step + 1, : step + 1]).eigenvectors[:, -1]
            if length * own[-1].abs() < _RESIDUAL:
                return own @ basis[1 : step + 2]
        if step + 1 < steps:
            band[step, step + 1] = band[step + 1, step] = length
    return torch.linalg.eigh(matrix).eigenvectors[:, -2]  # several nearly equal ones


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    for _ in range(2):  # once leaves rounding errors that grow
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _component(mask: Tensor, seed: tuple[int, int]) -> Tensor:
    """Return the cells of a mask (h, w) that are joined to a seed by their four neighbours."""
    found = torch.zeros_like(mask)
    found[seed] = True
    while True:
        grown = found.clone()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= mask
        if torch.equal(grown, found):
            return found
        found = grown


def box_iou(box: Tensor, others: Tensor) -> Tensor:
    """Return the IoU of a box (4,) with others (N, 4), float64; ends are edges, not pixels."""
    box, others = box.double(), others.double()
    low, high = torch.maximum(box[:2], others[:, :2]), torch.minimum(box[2:], others[:, 2:])
    shared = (high - low).clamp(min=0).prod(1)
    areas = (others[:, 2:] - others[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
    return shared / (areas - shared + GUARD)


class CorLocMetric(MeanMetric):
    """CorLoc: the share of images whose box has an IoU of 0.5 or more with any object.

    Images without an object are left out. ``best_iou`` is the mean over images of the best IoU.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import CorLocMetric
        >>> metric = CorLocMetric()
        >>> metric.add(torch.tensor([0, 0, 4, 4]), torch.tensor([[0, 0, 4, 3], [9, 9, 10, 10]]))
        >>> metric.compute()["corloc"]
        1.0
    """

    def __init__(self) -> None:
        super().__init__(("corloc", "best_iou"))

    def add(self, box: Tensor, objects: Tensor) -> None:
        """Add an image: the predicted box (4,) and its objects' boxes (N, 4)."""
        if len(objects):
            best = float(box_iou(box, objects).max())
            self.add_scores(torch.tensor([[float(best >= HIT), best]], dtype=torch.float64))
