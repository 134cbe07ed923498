"""Angular scores of surface normals, and their mean over a data set.

As Probe3D (arXiv 2404.08636) scores them. Legend: ``B`` batch, ``H W`` normal map.
"""

import math

import torch
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric
from upfeat.ops import cosine

__all__ = ["NORMAL_SCORES", "NormalMetric", "angular_error", "normal_scores"]

RECALLS = {"recall_11": 11.25, "recall_22": 22.5, "recall_30": 30.0}  # degrees
NORMAL_SCORES = (*RECALLS, "rmse", "mean", "median")


def angular_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the angle between normals in degrees.

    Args:
        prediction: (B, 3, H, W), of any length.
        target: same shape; the angle to a zero vector is 90 degrees.

    Returns:
        (B, H, W).

    Raises:
        ValueError: shapes differ, or there are not three channels.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import angular_error
        >>> up, right = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> angular_error(up[..., None, None], right[..., None, None]).item()
        90.0
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

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import normal_scores
        >>> target = torch.tensor([0.0, 0.0, -1.0])[:, None, None].expand(3, 1, 2)
        >>> predicted = torch.tensor([[[0.0, 1.0]], [[0.0, 0.0]], [[-1.0, -1.0]]])
        >>> scores = normal_scores(predicted, target, torch.ones(1, 2, dtype=torch.bool))
        >>> scores["recall_11"], round(scores["mean"], 3)
        (0.5, 22.5)
    """
    error = angular_error(prediction[None].double(), target[None].double())[0][valid]
    if not len(error):
        return dict.fromkeys(NORMAL_SCORES, math.nan)
    scores = {name: (error < limit).double().mean() for name, limit in RECALLS.items()}
    scores["rmse"] = error.square().mean().sqrt()
    scores |= {"mean": error.mean(), "median": error.median()}
    return {name: float(score) for name, score in scores.items()}


class NormalMetric(Metric):
    """Scores of a data set: the mean over images of each image's scores.

    Attributes:
        sums: of the scores of all images so far, float64.
        images: how many had a valid pixel.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import NormalMetric
        >>> metric = NormalMetric()
        >>> normals = torch.rand(1, 3, 4, 4) + 0.1
        >>> metric.add(2 * normals, normals, torch.ones(1, 4, 4, dtype=torch.bool))
        >>> metric.compute()["recall_11"]
        1.0
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(len(NORMAL_SCORES), dtype=torch.float64)
        self.images = torch.zeros((), dtype=torch.int64)

    def add(self, prediction: Tensor, target: Tensor, valid: Tensor) -> None:
        """Add some images; one without a valid pixel is left out.

        Args:
            prediction: (B, 3, H, W).
            target: same shape.
            valid: (B, H, W), boolean.
        """
        images = zip(prediction.detach().cpu(), target.cpu(), valid.cpu(), strict=True)
        for predicted, true, known in images:
            if bool(known.any()):
                scores = normal_scores(predicted, true, known)
                self.sums += torch.tensor(list(scores.values()), dtype=torch.float64)
                self.images += 1

    def totals(self) -> tuple[Tensor, ...]:
        """Return the sums and the number of images."""
        return self.sums, self.images

    def compute(self) -> dict[str, float]:
        """Return the scores of :func:`normal_scores`, mean over images; NaN without an image."""
        count = int(self.images)
        means = self.sums / count if count else torch.full_like(self.sums, math.nan)
        return dict(zip(NORMAL_SCORES, means.tolist(), strict=True))
