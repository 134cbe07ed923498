"""Segmentation scores, from confusion matrices.

Legend: ``K`` classes, ``H W`` label size. Scores are fractions in [0, 1], not percent.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric

__all__ = [
    "SegmentationMetric",
    "boundary_band",
    "confusion_matrix",
    "iou_per_class",
    "mean_iou",
    "pixel_accuracy",
]


def confusion_matrix(
    prediction: Tensor, target: Tensor, num_classes: int, ignore_index: int | None = 255
) -> Tensor:
    """Count pixels by true and predicted class.

    Args:
        prediction: class indices of any shape, integers in [0, K) wherever the target counts.
        target: class indices, same shape; pixels with ``ignore_index`` are left out.
        num_classes: K.
        ignore_index: label without meaning; None if every label counts.

    Returns:
        (K, K) int64: row is the true class, column the predicted one.

    Raises:
        ValueError: shapes differ, or a class index is out of range.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import confusion_matrix
        >>> confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([0, 0, 255]), 2).tolist()
        [[1, 1], [0, 0]]
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction and target must have one shape, got {shape_text(prediction)} and "
            f"{shape_text(target)}; resize the logits to the label before the argmax"
        )
    known = torch.ones_like(target, dtype=torch.bool)
    if ignore_index is not None:
        known = target != ignore_index
    true, predicted = target[known].long(), prediction[known].long()
    for name, classes in (("target", true), ("prediction", predicted)):
        if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
            raise ValueError(
                f"the {name} holds class {int(classes.min())} to {int(classes.max())}, wanted 0 to "
                f"{num_classes - 1} or the ignored {ignore_index}; map the labels first"
            )
    counts = torch.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes)  # (K*K,) -> (K, K)


def iou_per_class(matrix: Tensor) -> Tensor:
    """Return TP / (TP + FP + FN) of each class, NaN for one that never occurs.

    Args:
        matrix: (K, K) counts, row true, column predicted.

    Returns:
        (K,) float64. A class that is predicted but never true has 0.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import iou_per_class
        >>> iou_per_class(torch.tensor([[2, 1, 0], [0, 1, 0], [0, 0, 0]])).tolist()
        [0.6666666666666666, 0.5, nan]
    """
    hits = matrix.diagonal().double()
    return hits / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())


def mean_iou(matrix: Tensor, *, labelled_only: bool = False) -> float:
    """Return the mean IoU over the classes that occur in target or prediction.

    This is torchmetrics' macro Jaccard index: a class that is predicted somewhere but has no
    labelled pixel counts 0. NaN if nothing was counted.

    Args:
        matrix: (K, K) counts, row true, column predicted.
        labelled_only: mean over the classes that occur in the target instead. On a small split
            that lacks a class, one stray pixel of it then costs no 1/K.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import mean_iou
        >>> matrix = torch.tensor([[2, 0, 0], [0, 1, 1], [0, 0, 0]])
        >>> mean_iou(matrix), mean_iou(matrix, labelled_only=True)
        (0.5, 0.75)
    """
    ious = iou_per_class(matrix)
    return float(ious[matrix.sum(1) > 0].mean() if labelled_only else ious.nanmean())


def pixel_accuracy(matrix: Tensor) -> float:
    """Return the share of counted pixels that are right; NaN if nothing was counted.

    Args:
        matrix: (K, K) counts, row true, column predicted.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import pixel_accuracy
        >>> pixel_accuracy(torch.tensor([[2, 1], [0, 1]]))
        0.75
    """
    total = int(matrix.sum())
    return int(matrix.diagonal().sum()) / total if total else math.nan


def boundary_band(label: Tensor, radius: int) -> Tensor:
    """Return the pixels within ``radius`` of a label boundary.

    A boundary pixel has a neighbour above, below, left or right with another label (an ignored
    label is another one, too). A pixel is in the band if its Euclidean distance to a boundary
    pixel is at most ``radius``.

    Args:
        label: (H, W) or (B, H, W) integers.
        radius: in pixels, at least 0.

    Returns:
        Boolean mask of the label's shape.

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
    steps = torch.arange(-radius, radius + 1, device=label.device)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).float()
    # (B, H, W) -> (B, 1, H, W), dilated by the disk, and back
    count = F.conv2d(
        edge.reshape(-1, 1, *edge.shape[-2:]).float(), disk[None, None], padding=radius
    )
    return (count > 0.5).reshape(label.shape)


class SegmentationMetric(Metric):
    """Scores of a whole data set: one confusion matrix, and one of the band along boundaries.

    Args:
        num_classes: K.
        ignore_index: label that is left out; None if every label counts.
        boundary_radius: width of the band in pixels; None for no band.

    Attributes:
        matrix: (K, K) counts so far.
        band_matrix: the same within ``boundary_radius`` of a label boundary.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import SegmentationMetric
        >>> metric = SegmentationMetric(2, boundary_radius=1)
        >>> metric.add(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 1, 1]]))
        >>> scores = metric.compute()
        >>> round(scores["miou"], 3), scores["accuracy"], scores["band_accuracy"]
        (0.583, 0.75, 0.75)
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        boundary_radius: int | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.boundary_radius = boundary_radius
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.band_matrix = torch.zeros_like(self.matrix)

    def add(self, prediction: Tensor, target: Tensor, band: Tensor | None = None) -> None:
        """Add one image or batch.

        Args:
            prediction: (H, W) or (B, H, W) class indices.
            target: the labels, same shape.
            band: :func:`boundary_band` of the target where the caller has it; else computed.
        """
        matrix = confusion_matrix(prediction, target, self.num_classes, self.ignore_index)
        self.matrix += matrix.to(self.matrix.device)
        if self.boundary_radius is None:
            return
        band = boundary_band(target, self.boundary_radius) if band is None else band
        near = confusion_matrix(prediction[band], target[band], self.num_classes, self.ignore_index)
        self.band_matrix += near.to(self.band_matrix.device)

    def totals(self) -> tuple[Tensor, ...]:
        """Return both matrices."""
        return self.matrix, self.band_matrix

    def compute(self) -> dict[str, float]:
        """Return the scores; those with ``band_`` are of the band, where there is one.

        ``miou``: :func:`mean_iou`. ``miou_labelled``: over the classes of the target only.
        ``accuracy``: :func:`pixel_accuracy`.
        """
        scores = _scores(self.matrix)
        if self.boundary_radius is not None:
            scores |= {f"band_{name}": score for name, score in _scores(self.band_matrix).items()}
        return scores


def _scores(matrix: Tensor) -> dict[str, float]:
    return {
        "miou": mean_iou(matrix),
        "miou_labelled": mean_iou(matrix, labelled_only=True),
        "accuracy": pixel_accuracy(matrix),
    }
