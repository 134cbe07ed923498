"""Depth scores of an image, and their mean over a data set.

The scores are those of Eigen et al., "Depth map prediction from a single image", 2014, with the
scale-invariant logarithmic error as KITTI prints it. Legend: ``B`` batch, ``H W`` depth map.
Depths are in metres, or in the units of the teacher that made them.
"""

import math

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric

__all__ = ["ALIGNED_SCORES", "DEPTH_SCORES", "DepthMetric", "depth_scores", "fit_scale_and_shift"]

DEPTH_SCORES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
# After a fit of scale and shift a depth may be negative, and its logarithm means nothing.
ALIGNED_SCORES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse")

RATIO = 1.25
LEAST = 1e-9  # predictions below this count as this in ratios and logarithms


def depth_scores(
    prediction: Tensor, target: Tensor, valid: Tensor | None = None
) -> dict[str, float]:
    """Return the scores of all valid pixels together; call it once an image.

    Args:
        prediction: depths of any shape.
        target: true depths, same shape.
        valid: boolean, same shape; default: ``target > 0``.

    Returns:
        ``d1``, ``d2``, ``d3``: shares of pixels with ``max(t / p, p / t)`` below 1.25, 1.25^2 and
        1.25^3. ``abs_rel``, ``sq_rel``: mean of ``|t - p| / t`` and ``(t - p)^2 / t``. ``rmse`` in
        the target's units, ``rmse_log`` of natural logarithms, ``log10``: mean absolute difference
        of decimal logarithms, ``silog``: 100 times the standard deviation of ``ln p - ln t``. All
        are NaN if no pixel is valid.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import depth_scores
        >>> scores = depth_scores(torch.tensor([2.0, 3.0]), torch.tensor([2.0, 2.0]))
        >>> scores["d1"], scores["abs_rel"]
        (0.5, 0.25)
    """
    if prediction.shape != target.shape or (valid is not None and valid.shape != target.shape):
        other = "" if valid is None else f" and {shape_text(valid)}"
        raise ValueError(
            f"prediction, target and valid must have one shape, got {shape_text(prediction)}, "
            f"{shape_text(target)}{other}; resize the prediction to the target first"
        )
    valid = target > 0 if valid is None else valid
    true, predicted = target[valid].double(), prediction[valid].double()
    if not len(true):
        return dict.fromkeys(DEPTH_SCORES, math.nan)
    positive = predicted.clamp(min=LEAST)
    ratio = torch.maximum(true / positive, positive / true)
    error, log_error = predicted - true, positive.log() - true.log()
    variance = log_error.square().mean() - log_error.mean().square()
    scores = {f"d{power}": (ratio < RATIO**power).double().mean() for power in (1, 2, 3)}
    scores |= {
        "abs_rel": (error.abs() / true).mean(),
        "sq_rel": (error.square() / true).mean(),
        "rmse": error.square().mean().sqrt(),
        "rmse_log": log_error.square().mean().sqrt(),
        "log10": log_error.abs().mean() / math.log(10),
        "silog": 100 * variance.clamp(min=0).sqrt(),
    }
    return {name: float(score) for name, score in scores.items()}


def fit_scale_and_shift(prediction: Tensor, target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return scale and shift with the least squared error of ``scale * prediction + shift``.

    The 2x2 normal equations of each image, solved in float64; gradients flow through the solution.

    Args:
        prediction: (B, ...) depths.
        target: same shape.
        valid: same shape, boolean or weights.

    Returns:
        Scale and shift (B,), float64; 1 and 0 where the equations are singular (no valid pixel, or
        a constant prediction).

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import fit_scale_and_shift
        >>> low = torch.tensor([[1.0, 2.0, 3.0]])
        >>> scale, shift = fit_scale_and_shift(low, 2 * low + 1, torch.ones(1, 3))
        >>> round(scale.item(), 6), round(shift.item(), 6)
        (2.0, 1.0)
    """
    # (B, ...) -> (B, pixels)
    p, t, w = (x.flatten(1).double() for x in (prediction, target, valid))
    pp, p1, ones = (w * p * p).sum(1), (w * p).sum(1), w.sum(1)
    pt, t1 = (w * p * t).sum(1), (w * t).sum(1)
    determinant = pp * ones - p1 * p1
    solvable = determinant > 1e-12 * pp * ones
    divisor = torch.where(solvable, determinant, torch.ones_like(determinant))
    scale = torch.where(solvable, (ones * pt - p1 * t1) / divisor, torch.ones_like(divisor))
    shift = torch.where(solvable, (pp * t1 - p1 * pt) / divisor, torch.zeros_like(divisor))
    return scale, shift


class DepthMetric(Metric):
    """Scores of a data set: the mean over images of each image's scores.

    Args:
        min_depth, max_depth: pixels with a target strictly between the two count.
        aligned: also score after a fit of scale and shift to each image (names with ``si_``).

    Attributes:
        sums: of the scores of all images so far, float64.
        images: how many had a pixel that counts.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import DepthMetric
        >>> metric = DepthMetric(aligned=True)
        >>> target = torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> metric.add(2 * target, target)
        >>> scores = metric.compute()
        >>> scores["d1"], scores["si_d1"]
        (0.0, 1.0)
    """

    def __init__(
        self, min_depth: float = 1e-3, max_depth: float = 10.0, *, aligned: bool = False
    ) -> None:
        self.min_depth, self.max_depth, self.aligned = min_depth, max_depth, aligned
        self.names: tuple[str, ...] = DEPTH_SCORES
        if aligned:
            self.names += tuple(f"si_{name}" for name in ALIGNED_SCORES)
        self.sums = torch.zeros(len(self.names), dtype=torch.float64)
        self.images = torch.zeros((), dtype=torch.int64)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Add some images; one without a pixel that counts is left out.

        Args:
            prediction: (B, ..., H, W) depths.
            target: same shape.
        """
        if prediction.shape != target.shape or target.dim() < 3:
            raise ValueError(
                "prediction and target must have one shape (B, H, W) or (B, 1, H, W), got "
                f"{shape_text(prediction)} and {shape_text(target)}"
            )
        for predicted, true in zip(prediction.detach().cpu(), target.cpu(), strict=True):
            valid = (true > self.min_depth) & (true < self.max_depth)
            if not bool(valid.any()):
                continue
            scores = depth_scores(predicted, true, valid)
            if self.aligned:
                scale, shift = fit_scale_and_shift(predicted[None], true[None], valid[None])
                fitted = depth_scores(scale * predicted.double() + shift, true.double(), valid)
                scores |= {f"si_{name}": fitted[name] for name in ALIGNED_SCORES}
            self.sums += torch.tensor([scores[name] for name in self.names], dtype=torch.float64)
            self.images += 1

    def totals(self) -> tuple[Tensor, ...]:
        """Return the sums and the number of images."""
        return self.sums, self.images

    def compute(self) -> dict[str, float]:
        """Return the scores of :func:`depth_scores`, mean over images; NaN without an image."""
        count = int(self.images)
        means = self.sums / count if count else torch.full_like(self.sums, math.nan)
        return dict(zip(self.names, means.tolist(), strict=True))
