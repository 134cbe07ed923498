"""How close restored images are to the clean ones, as the code of NAF (arXiv 2511.18452) counts.

Legend: ``B`` batch, ``C`` channels, ``H W`` image; images are in [0, 1].
"""

import math

import torch
from torch import Tensor

from upfeat.evaluation.results import Metric
from upfeat.ops.images import ssim

__all__ = ["RestorationMetric", "psnr"]


def psnr(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio in dB, of the mean square over all of a batch.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import psnr
        >>> round(float(psnr(torch.full((1, 3, 4, 4), 0.1), torch.zeros(1, 3, 4, 4))), 4)
        20.0
    """
    return -10 * (restored - clean).square().mean().log10()


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
