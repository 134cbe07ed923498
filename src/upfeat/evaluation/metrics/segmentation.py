"""Segmentation scores, from confusion matrices; vehicles seen from above.

Source of the latter: Harley et al., "Simple-BEV", ICRA 2023, arXiv 2206.07959; Chambon et al.,
"PointBeV", CVPR 2024, arXiv 2312.00703.

Legend: ``K`` classes, ``H W`` label size, ``X Y`` ground. Scores are fractions in [0, 1].
"""

import math
from typing import Literal

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.metrics.boundaries import (
    boundary_band,
    boundary_iou,
    boundary_similarity,
)
from upfeat.evaluation.results import Metric

THRESHOLD = 0.5  # of the probability of a vehicle
EPSILON = 1e-7  # in the denominators of the IoU of vehicles


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
    """Return TP / (TP + FP + FN) of each class, (K,) float64, NaN for one that never occurs.

    A class that is predicted but never true has 0.

    Args:
        matrix: (K, K) counts, row true, column predicted.
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
    """Return the share of right pixels in a matrix (K, K) of counts; NaN if it has none."""
    total = int(matrix.sum())
    return int(matrix.diagonal().sum()) / total if total else math.nan


class BoundaryMetric(Metric):
    """Scores along label boundaries over a data set.

    Args:
        num_classes: K.
        ignore_index: label that is left out; None if every label counts.
        radii: widths of bands, in pixels: one confusion matrix each, restricted to
            :func:`~upfeat.evaluation.metrics.boundary_band` of the label.
        share: of the diagonal for :func:`~upfeat.evaluation.metrics.boundary_iou`; None for none.
        form: of :func:`~upfeat.evaluation.metrics.boundary_similarity`; None for none. These two
            are means over the images that have the class in label or prediction, then over the
            classes (chosen); ignored pixels are background.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import BoundaryMetric
        >>> metric = BoundaryMetric(2, radii=(1,), share=0.02)
        >>> label = torch.tensor([[0, 0, 0, 1, 1, 1]])
        >>> metric.add(label, label)
        >>> metric.compute()
        {'trimap_miou_1': 1.0, 'trimap_accuracy_1': 1.0, 'boundary_iou': 1.0}
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int | None = 255,
        *,
        radii: tuple[int, ...] = (),
        share: float | None = None,
        form: Literal["davis", "sobel"] | None = None,
    ) -> None:
        self.num_classes, self.ignore_index = num_classes, ignore_index
        self.radii, self.share, self.form = radii, share, form
        self.matrices = torch.zeros(len(radii), num_classes, num_classes, dtype=torch.int64)
        # Sums of Boundary IoU and F of each class, and the number of images that have it.
        self.sums = torch.zeros(3, num_classes, dtype=torch.float64)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Add one image or batch of class indices, (H, W) or (B, H, W), and their labels."""
        for matrix, radius in zip(self.matrices, self.radii, strict=True):
            band = boundary_band(target, radius)
            near = confusion_matrix(
                prediction[band], target[band], self.num_classes, self.ignore_index
            )
            matrix += near.to(matrix.device)
        if self.share is None and self.form is None:
            return
        # (B, H, W) or (H, W) -> (B, H, W)
        predicted_maps, true_maps = (x.reshape(-1, *x.shape[-2:]) for x in (prediction, target))
        for predicted, true in zip(predicted_maps, true_maps, strict=True):
            void = torch.zeros_like(true, dtype=torch.bool)
            if self.ignore_index is not None:
                void = true == self.ignore_index
            self._add_classes(predicted, true, void)

    def _add_classes(self, predicted: Tensor, true: Tensor, void: Tensor) -> None:
        for number in torch.cat([predicted[~void], true[~void]]).unique().tolist():
            masks = (predicted == number, true == number, void)
            near = 0.0 if self.share is None else float(boundary_iou(*masks, share=self.share))
            f = 0.0 if self.form is None else float(boundary_similarity(*masks, form=self.form))
            self.sums[:, number] += torch.tensor([near, f, 1.0], dtype=torch.float64)

    def totals(self) -> tuple[Tensor, ...]:
        """Return the matrices of the bands and the sums of the other two."""
        return self.matrices, self.sums

    def compute(self) -> dict[str, float]:
        """Return ``trimap_miou_R``, ``trimap_accuracy_R``, ``boundary_iou``, ``boundary_f``."""
        scores: dict[str, float] = {}
        for radius, matrix in zip(self.radii, self.matrices, strict=True):
            scores[f"trimap_miou_{radius}"] = mean_iou(matrix)
            scores[f"trimap_accuracy_{radius}"] = pixel_accuracy(matrix)
        means = self.sums[:2] / self.sums[2]  # NaN for a class that no image has
        wanted = (("boundary_iou", self.share), ("boundary_f", self.form))
        for (name, option), mean in zip(wanted, means, strict=True):
            if option is not None:
                scores[name] = float(mean.nanmean())
        return scores


class SegmentationMetric(Metric):
    """Scores of a whole data set: one confusion matrix, and one of the band along boundaries.

    Args:
        num_classes: K.
        ignore_index: label that is left out; None if every label counts.
        boundary_radius: width of the band in pixels; None for no band.
        boundaries: gathers further scores along boundaries; None for none.

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
        boundaries: BoundaryMetric | None = None,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.boundary_radius = boundary_radius
        self.boundaries = boundaries
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
        if self.boundaries is not None:
            self.boundaries.add(prediction, target)
        if self.boundary_radius is None:
            return
        band = boundary_band(target, self.boundary_radius) if band is None else band
        near = confusion_matrix(prediction[band], target[band], self.num_classes, self.ignore_index)
        self.band_matrix += near.to(self.band_matrix.device)

    def totals(self) -> tuple[Tensor, ...]:
        """Return both matrices, and what ``boundaries`` holds."""
        more = () if self.boundaries is None else self.boundaries.totals()
        return self.matrix, self.band_matrix, *more

    def compute(self) -> dict[str, float]:
        """Return the scores; those with ``band_`` are of the band, where there is one.

        ``miou``: :func:`mean_iou`. ``miou_labelled``: over the classes of the target only.
        ``accuracy``: :func:`pixel_accuracy`.
        """
        scores = _scores(self.matrix)
        if self.boundary_radius is not None:
            scores |= {f"band_{name}": score for name, score in _scores(self.band_matrix).items()}
        return scores if self.boundaries is None else scores | self.boundaries.compute()


def _scores(matrix: Tensor) -> dict[str, float]:
    return {
        "miou": mean_iou(matrix),
        "miou_labelled": mean_iou(matrix, labelled_only=True),
        "accuracy": pixel_accuracy(matrix),
    }


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
    """IoU of vehicles over a data set, and the mean of the frames' own."""

    def __init__(self) -> None:
        self.counts = torch.zeros(3, dtype=torch.int64)  # true positive, false positive, negative
        self.sums = torch.zeros(2, dtype=torch.float64)  # of the frames' IoU, and their number

    def add(self, logits: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add some frames; arguments as :func:`vehicle_counts`."""
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
