"""Scores along the boundaries of masks and label maps: pure functions.

Sources: the F score of DAVIS (Perazzi et al., CVPR 2016), the edge-based one of the code of NAF
(arXiv 2511.18452) and RaysUp, Boundary IoU (Cheng et al., CVPR 2021).

Legend: ``H W`` mask or label. Scores are fractions in [0, 1], not percent.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import check_choice, check_size, shape_text
from upfeat.ops.images import reflect_pad

__all__ = [
    "boundary_band",
    "boundary_iou",
    "boundary_map",
    "boundary_radius",
    "boundary_region",
    "boundary_similarity",
    "sobel_map",
]

_SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
_TINY = 1e-10  # in the denominators of the form "sobel"


def boundary_map(mask: Tensor) -> Tensor:
    """Return the pixels that differ from their right, lower or lower right neighbour.

    The last row is compared to the right only, the last column downwards only; the last
    corner is never a boundary.

    Args:
        mask: (..., H, W), zero or not.
    """
    mask = mask != 0
    edge = torch.zeros_like(mask)
    edge[..., :, :-1] |= mask[..., :, :-1] != mask[..., :, 1:]
    edge[..., :-1, :] |= mask[..., :-1, :] != mask[..., 1:, :]
    edge[..., :-1, :-1] |= mask[..., :-1, :-1] != mask[..., 1:, 1:]
    return edge


def boundary_radius(size: Sequence[int], share: float = 0.008) -> int:
    """Return how far boundaries may lie apart, in pixels: a share of the diagonal, rounded up."""
    return math.ceil(share * math.hypot(*check_size(size, "size")))


def sobel_map(mask: Tensor) -> Tensor:
    """Return the pixels where the Sobel gradient of a mask is not zero: edges two pixels thick.

    The gradient of a 3x3 kernel is at least 1/8 there, above the threshold 0.1 of the code of NAF
    and RaysUp. The mask (..., H, W), at least 2x2, is mirrored at its border.
    """
    height, width = mask.shape[-2:]
    kernel = torch.tensor(_SOBEL, device=mask.device)
    kernels = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
    # (..., H, W) -> (N, 1, H, W) -> (N, 2, H, W) -> (..., H, W)
    flat = reflect_pad((mask != 0).float().reshape(-1, 1, height, width), 1)
    return F.conv2d(flat, kernels).ne(0).any(1).reshape(mask.shape)


def boundary_similarity(
    prediction: Tensor,
    target: Tensor,
    void: Tensor | None = None,
    *,
    radius: int | None = None,
    form: Literal["davis", "sobel"] = "davis",
) -> Tensor:
    """Return F, the harmonic mean of precision and recall of boundaries.

    A boundary pixel is matched if the other boundary has a pixel within ``radius`` (Euclidean).

    Args:
        prediction: (..., H, W) masks, zero or not.
        target: masks of the same shape.
        void: pixels that are background in both, of a shape that broadcasts.
        radius: in pixels; None for :func:`boundary_radius`.
        form: ``davis``, the official one: :func:`boundary_map`; without any boundary in both F is
            1, without one in one of them 0. ``sobel``, of NAF and RaysUp, not comparable with it:
            :func:`sobel_map`; without any boundary F is 0.

    Returns:
        (...) float64.

    Raises:
        ValueError: shapes differ, or an unknown form.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import boundary_similarity
        >>> mask = torch.zeros(9, 9)
        >>> mask[2:6, 2:6] = 1
        >>> [float(boundary_similarity(mask.roll(2, 0), mask, radius=r)) for r in (0, 2)]
        [0.375, 1.0]
    """
    check_choice("form", form, ("davis", "sobel"))
    prediction, target = counted_masks(prediction, target, void)
    reach = boundary_radius(prediction.shape[-2:]) if radius is None else radius
    edges = boundary_map if form == "davis" else sobel_map
    found, true = edges(prediction), edges(target)
    found_hits = (found & _dilate(true, reach)).sum((-2, -1)).double()
    true_hits = (true & _dilate(found, reach)).sum((-2, -1)).double()
    precision, recall = _share(found_hits, found, form), _share(true_hits, true, form)
    both = precision + recall
    return torch.where(both > 0, 2 * precision * recall / both, 0.0)


def _share(hits: Tensor, edge: Tensor, form: str) -> Tensor:
    count = edge.sum((-2, -1)).double()
    return hits / (count + _TINY) if form == "sobel" else torch.where(count > 0, hits / count, 1.0)


def boundary_region(mask: Tensor, share: float = 0.02) -> Tensor:
    """Return the pixels of a mask that lie near its outline, as Boundary IoU does.

    They are removed by so many erosions with a 3x3 square as ``share`` of the diagonal has pixels
    (rounded, at least 1). Beyond the image there is no mask.

    Args:
        mask: (..., H, W), zero or not.
        share: of the diagonal.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import boundary_region
        >>> boundary_region(torch.ones(3, 4)).int().tolist()
        [[1, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 1]]
    """
    mask = mask != 0
    height, width = mask.shape[-2:]
    steps = max(1, round(share * math.hypot(height, width)))
    # (..., H, W) -> (N, 1, H, W), ones outside
    outside = F.pad((~mask).float().reshape(-1, 1, height, width), [steps] * 4, value=1.0)
    for kernel in ((2 * steps + 1, 1), (1, 2 * steps + 1)):
        outside = F.max_pool2d(outside, kernel, stride=1)
    return mask & (outside > 0).reshape(mask.shape)


def boundary_iou(
    prediction: Tensor, target: Tensor, void: Tensor | None = None, *, share: float = 0.02
) -> Tensor:
    """Return the IoU of the regions near the outlines of two masks; 0 where both are empty.

    Args:
        prediction: (..., H, W) masks, zero or not.
        target: masks of the same shape.
        void: pixels that are background in both, of a shape that broadcasts.
        share: see :func:`boundary_region`.

    Returns:
        (...) float64.

    Raises:
        ValueError: shapes differ.
    """
    prediction, target = counted_masks(prediction, target, void)
    predicted, true = boundary_region(prediction, share), boundary_region(target, share)
    union = (predicted | true).sum((-2, -1)).double()
    return (predicted & true).sum((-2, -1)).double() / union.clamp(min=1)


def _dilate(mask: Tensor, radius: int) -> Tensor:
    """Return the pixels within ``radius`` (Euclidean) of a pixel of the mask (..., H, W)."""
    height, width = mask.shape[-2:]
    # Pixels of the mask to the left of each column: differences count those of an interval.
    count = F.pad(mask.cumsum(-1, dtype=torch.int32), (1, 0))
    column = torch.arange(width, device=mask.device)
    result = torch.zeros_like(mask)
    for step in range(min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - step**2)
        right, left = (column + reach + 1).clamp(max=width), (column - reach).clamp(min=0)
        wide = count.index_select(-1, right) > count.index_select(-1, left)
        result[..., step:, :] |= wide[..., : height - step, :]
        result[..., : height - step, :] |= wide[..., step:, :]
    return result


def counted_masks(prediction: Tensor, target: Tensor, void: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return both masks as booleans, without void pixels."""
    if prediction.shape != target.shape or prediction.dim() < 2:
        raise ValueError(
            f"prediction and target must have one shape (..., H, W), got {shape_text(prediction)} "
            f"and {shape_text(target)}; resize the prediction to the frame"
        )
    prediction, target = prediction != 0, target != 0
    if void is not None:
        counts = void == 0
        prediction, target = prediction & counts, target & counts
    return prediction, target


def boundary_band(label: Tensor, radius: int) -> Tensor:
    """Return the pixels within ``radius`` of a label boundary.

    A boundary pixel has a neighbour above, below, left or right with another label (an ignored
    label is another one, too). A pixel is in the band if its Euclidean distance to a boundary
    pixel is at most ``radius``.

    Args:
        label: (H, W) or (B, H, W) integers.
        radius: in pixels, at least 0.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import boundary_band
        >>> boundary_band(torch.tensor([[0, 0, 0, 1, 1, 1]]), 1).int().tolist()
        [[0, 1, 1, 1, 1, 0]]
    """
    if label.dim() not in (2, 3) or radius < 0:
        raise ValueError(
            f"label must be (H, W) or (B, H, W) and radius at least 0, got {shape_text(label)} and "
            f"{radius}"
        )
    edge = torch.zeros_like(label, dtype=torch.bool)
    down = label[..., 1:, :] != label[..., :-1, :]
    right = label[..., :, 1:] != label[..., :, :-1]
    edge[..., 1:, :] |= down
    edge[..., :-1, :] |= down
    edge[..., :, 1:] |= right
    edge[..., :, :-1] |= right
    return _dilate(edge, radius)
