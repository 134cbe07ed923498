"""How close restored images are to the clean ones, as the code of NAF (arXiv 2511.18452) counts.

Legend: ``B`` batch, ``C`` channels, ``H W`` image; images are in [0, 1].
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.results import Metric

__all__ = ["RestorationMetric", "mean_window", "psnr", "restoration_loss", "ssim"]

WINDOW = 11
SIGMA = WINDOW / 6
STABILISERS = (1e-4, 9e-4)  # (0.01, 0.03) squared
LOSS_WEIGHTS = (1.0, 5.0, 0.2)  # of the absolute, the squared and the structural difference


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, of the mean square over all of a batch.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import psnr
        >>> round(float(psnr(torch.full((1, 3, 4, 4), 0.1), torch.zeros(1, 3, 4, 4))), 4)
        20.0
    """
    return -10 * (restored - clean).square().mean().log10()


def mean_window(size: int) -> list[float]:
    """Return the taps of a mean over so many pixels."""
    return [1 / size] * size


def _gaussian() -> list[float]:
    taps = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    return [tap / sum(taps) for tap in taps]


def ssim(restored: Tensor, clean: Tensor, taps: Sequence[float] | None = None) -> Tensor:
    """Return the structural similarity, mean over all pixels and channels; zeros outside.

    Args:
        restored: (B, C, H, W).
        clean: the same shape.
        taps: of the window along each axis; None for a Gaussian over 11 pixels of sigma 11/6.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import ssim
        >>> image = torch.rand(1, 3, 16, 16)
        >>> round(float(ssim(image, image)), 4)
        1.0
    """
    if restored.shape != clean.shape or clean.dim() != 4:
        raise ValueError(
            f"both images must be (B, C, H, W), got {shape_text(restored)} and {shape_text(clean)}"
        )
    weights = clean.new_tensor(_gaussian() if taps is None else taps)
    window = weights[:, None] * weights
    maps = torch.stack([restored, clean, restored**2, clean**2, restored * clean])
    # (5, B, C, H, W) -> (5*B*C, 1, H, W) and back
    flat = maps.reshape(-1, 1, *clean.shape[2:])
    means = F.conv2d(flat, window[None, None], padding=len(weights) // 2).reshape(maps.shape)
    first, second, first_square, second_square, product = means
    c1, c2 = STABILISERS
    light = (2 * first * second + c1) / (first**2 + second**2 + c1)
    variances = first_square - first**2 + second_square - second**2
    return (light * (2 * (product - first * second) + c2) / (variances + c2)).mean()


def restoration_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Return NAF's training loss: 1 L1 + 5 MSE + 0.2 (1 - SSIM with a 3x3 mean).

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import restoration_loss
        >>> image = torch.rand(1, 3, 8, 8)
        >>> abs(float(restoration_loss(image, image))) < 1e-6
        True
    """
    l1, l2, structure = LOSS_WEIGHTS
    similarity = ssim(restored, clean, mean_window(3))
    difference = restored - clean
    return (
        l1 * difference.abs().mean()
        + l2 * difference.square().mean()
        + (structure * (1 - similarity))
    )


class RestorationMetric(Metric):
    """PSNR and SSIM, mean over batches; restored images are clamped to [0, 1].

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import RestorationMetric
        >>> metric = RestorationMetric()
        >>> metric.add(torch.full((1, 3, 16, 16), 0.1), torch.zeros(1, 3, 16, 16))
        >>> round(metric.compute()["psnr"], 3)
        20.0
    """

    def __init__(self) -> None:
        self.sums = torch.zeros(3, dtype=torch.float64)  # batches, PSNR, SSIM

    def add(self, restored: Tensor, clean: Tensor) -> None:
        """Add a batch of images (B, C, H, W)."""
        restored = restored.clamp(0, 1)
        scores = (1.0, float(psnr(restored, clean)), float(ssim(restored, clean)))
        self.sums += torch.tensor(scores, dtype=torch.float64)

    def totals(self) -> tuple[Tensor, ...]:
        """Return the number of batches and both sums."""
        return (self.sums,)

    def compute(self) -> dict[str, float]:
        """Return ``psnr`` in dB and ``ssim``."""
        batches, first, second = self.sums.tolist()
        if not batches:
            return {"psnr": math.nan, "ssim": math.nan}
        return {"psnr": first / batches, "ssim": second / batches}
