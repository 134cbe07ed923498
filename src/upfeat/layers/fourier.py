"""Fourier features with learned phases, the position and colour code of FeatUp and LoftUp."""

import torch
from torch import Tensor, nn

from upfeat.ops.fourier_features import fourier_features


class FourierFeatures(nn.Module):
    """Sines and cosines of the inputs at frequencies exp(-2) ... exp(10), with learned phases.

    Args:
        inputs: m, channels of the input.
        frequencies: n.

    Example:
        >>> import torch
        >>> FourierFeatures(5, 4)(torch.rand(2, 5, 6, 7)).shape
        torch.Size([2, 40, 6, 7])
    """

    def __init__(self, inputs: int, frequencies: int) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.randn(2, inputs, frequencies))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., m, H, W) in float32 at least -> (..., 2 n m, H, W)."""
        return fourier_features(inputs, self.phases)
