"""Scores of maps of numbers: depth, surface normals, restored images; means over a data set.

Depth scores are those of Eigen et al., "Depth map prediction from a single image", 2014, with the
scale-invariant logarithmic error as KITTI prints it; depths are in metres, or in the units of the
teacher that made them. Normals are scored as in Probe3D (arXiv 2404.08636), restored images as in
the code of NAF (arXiv 2511.18452). Legend: ``B`` batch, ``C`` channels, ``H W`` map.
"""

import math

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import MeanMetric
from upfeat.ops import cosine
from upfeat.ops.images import ssim

DEPTH_SCORES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "silog")
"""Scores of a depth as it is."""
ALIGNED_SCORES = ("d1", "d2", "d3", "abs_rel", "sq_rel", "rmse")
"""After a fit of scale and shift a depth may be negative, and its logarithm means nothing."""
RECALLS = {"recall_11": 11.25, "recall_22": 22.5, "recall_30": 30.0}  # degrees
NORMAL_SCORES = (*RECALLS, "rmse", "mean", "median")
"""Scores of surface normals."""

RATIO = 1.25
LEAST = 1e-9  # depths predicted below this count as this in ratios and logarithms


# -- depth ---------------------------------------------------------------------------------------


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


class DepthMetric(MeanMetric):
    """:func:`depth_scores` of each image, mean over the images of a data set.

    Args:
        min_depth, max_depth: pixels with a target strictly between the two count.
        aligned: also score after a fit of scale and shift to each image (names with ``si_``).

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
        fitted = tuple(f"si_{name}" for name in ALIGNED_SCORES) if aligned else ()
        super().__init__(DEPTH_SCORES + fitted)

    def add(self, prediction: Tensor, target: Tensor) -> None:
        """Add images (B, ..., H, W) of depths; one without a pixel that counts is left out."""
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
            row = [scores[name] for name in self.names]
            self.add_scores(torch.tensor([row], dtype=torch.float64))


# -- surface normals -----------------------------------------------------------------------------


def angular_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the angle between normals in degrees.

    Args:
        prediction: (B, 3, H, W), of any length.
        target: same shape; the angle to a zero vector is 90 degrees.

    Returns:
        (B, H, W).

    Raises:
        ValueError: shapes differ, or there are not three channels.
    """
    if prediction.shape != target.shape or target.dim() != 4 or target.shape[1] != 3:
        raise ValueError(
            "prediction and target must both be (B, 3, H, W), got "
            f"{shape_text(prediction)} and {shape_text(target)}"
        )
    return cosine(prediction, target).clamp(-1, 1).acos().rad2deg()


def normal_scores(prediction: Tensor, target: Tensor, valid: Tensor) -> dict[str, float]:
    """Return the scores of one image's valid pixels.

    Args:
        prediction: (3, H, W), of any length.
        target: same shape.
        valid: (H, W), boolean.

    Returns:
        ``recall_11``, ``recall_22``, ``recall_30``: shares of pixels with an angular error below
        11.25, 22.5 and 30 degrees; ``rmse``, ``mean``, ``median`` of the error in degrees. NaN if
        no pixel is valid.
    """
    error = angular_error(prediction[None].double(), target[None].double())[0][valid]
    if not len(error):
        return dict.fromkeys(NORMAL_SCORES, math.nan)
    scores = {name: (error < limit).double().mean() for name, limit in RECALLS.items()}
    scores["rmse"] = error.square().mean().sqrt()
    scores |= {"mean": error.mean(), "median": error.median()}
    return {name: float(score) for name, score in scores.items()}


class NormalMetric(MeanMetric):
    """:func:`normal_scores` of each image, mean over the images of a data set."""

    def __init__(self) -> None:
        super().__init__(NORMAL_SCORES)

    def add(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add images (B, 3, H, W); one without a pixel in ``valid`` (B, H, W) is left out."""
        images = zip(prediction.detach().cpu(), target.cpu(), valid.cpu(), strict=True)
        for predicted, true, known in images:
            if bool(known.any()):
                row = list(normal_scores(predicted, true, known).values())
                self.add_scores(torch.tensor([row], dtype=torch.float64))


# -- restored images -----------------------------------------------------------------------------


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, of the mean square over all of a batch.

    Images are in [0, 1].
    """
    return -10 * (restored - clean).square().mean().log10()


class RestorationMetric(MeanMetric):
    """``psnr`` in dB and ``ssim``, mean over batches; restored images are clamped to [0, 1]."""

    def __init__(self) -> None:
        super().__init__(("psnr", "ssim"))

    def add(self, restored: Tensor, clean: Tensor) -> None:
        """Add a batch of images (B, C, H, W)."""
        restored = restored.clamp(0, 1)
        row = [float(psnr(restored, clean)), float(ssim(restored, clean))]
        self.add_scores(torch.tensor([row], dtype=torch.float64))
