"""Vehicles seen from above: intersection over union, pooled over a data set.

Source: Harley et al., "Simple-BEV", ICRA 2023, arXiv 2206.07959; Chambon et al., "PointBeV", CVPR
2024, arXiv 2312.00703.
"""

import math

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric

__all__ = ["BevMetric", "vehicle_counts"]

THRESHOLD = 0.5  # of the probability
EPSILON = 1e-7


def vehicle_counts(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return true positive, false positive and false negative cells of each frame.

    Args:
        logits: (B, 1, X, Y); a vehicle where their sigmoid is at least 0.5.
        target: the same shape, 1 on vehicles.
        valid: the same shape, 0 where a cell is ignored.

    Returns:
        (B, 3) int64.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import vehicle_counts
        >>> logits, target = torch.tensor([[2.0, 1.0, -1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
        >>> vehicle_counts(logits, target, torch.ones(1, 3)).tolist()
        [[1, 1, 1]]
    """
    if not logits.shape == target.shape == valid.shape:
        raise ValueError(
            f"logits, target and valid must have one shape, got {shape_text(logits)}, "
            f"{shape_text(target)} and {shape_text(valid)}"
        )
    predicted, present, counts = logits.sigmoid() >= THRESHOLD, target > 0, valid > 0
    parts = (predicted & present, predicted & ~present, ~predicted & present)
    return torch.stack([(part & counts).flatten(1).sum(1) for part in parts], dim=1)


class BevMetric(Metric):
    """IoU of vehicles over a data set, and the mean of the frames' own.

    Attributes:
        counts: (3,) true positive, false positive and false negative cells.
        sums: sum of the frames' IoU, and their number.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import BevMetric
        >>> metric = BevMetric()
        >>> metric.add(torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 2))
        >>> round(metric.compute()["iou"], 3)
        0.5
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(3, dtype=torch.int64)
        self.sums = torch.zeros(2, dtype=torch.float64)

    def add(self, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add some frames.

        Args:
            logits: (B, 1, X, Y).
            target: the same shape, 1 on vehicles.
            valid: the same shape, 0 where a cell is ignored.
        """
        counts = vehicle_counts(logits, target, valid).cpu()
        self.counts += counts.sum(0)
        each = counts[:, 0] / (counts.sum(1) + EPSILON)
        self.sums += torch.tensor([float(each.sum()), len(each)], dtype=torch.float64)

    def totals(self) -> tuple[Tensor, ...]:
        """Return the cells, and the sum over frames."""
        return self.counts, self.sums

    def compute(self) -> dict[str, float]:
        """Return ``iou`` of all cells together and ``iou_per_frame``, NaN without any frame."""
        if not self.sums[1]:
            return {"iou": math.nan, "iou_per_frame": math.nan}
        return {
            "iou": float(self.counts[0] / (self.counts.sum() + EPSILON)),
            "iou_per_frame": float(self.sums[0] / self.sums[1]),
        }
