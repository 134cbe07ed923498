"""What a low-resolution token may know of the image: the colours of its cell."""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CellColors", "cell_colors"]

FREQUENCIES = (1, 2, 4)  # of a cell's mean, in half turns over the range of a colour
CHANNELS = 12 + 6 * len(FREQUENCIES)


def cell_colors(colors: Tensor, grid: tuple[int, int]) -> Tensor:
    """Describe the colours of each cell of a grid.

    The means of a cell's quarters, then sines and cosines of its own mean, with which a product of
    query and key can fall off with the distance of two colours.

    Args:
        colors: (B, 3, H', W') in [-0.5, 0.5].
        grid: (h, w).

    Returns:
        (B, n, 30), n = hw.

    Example:
        >>> cell_colors(torch.zeros(1, 3, 8, 12), (2, 3)).shape
        torch.Size([1, 6, 30])
    """
    quarters = F.adaptive_avg_pool2d(colors, (2 * grid[0], 2 * grid[1]))  # (B, 3, 2h, 2w)
    quarters = F.pixel_unshuffle(quarters, 2)  # (B, 12, h, w)
    mean = quarters.unflatten(1, (3, 4)).mean(2)  # (B, 3, h, w)
    angles = torch.cat([math.pi * step * mean for step in FREQUENCIES], dim=1)
    return torch.cat((quarters, angles.sin(), angles.cos()), dim=1).flatten(2).mT


class CellColors(nn.Module):
    """Linear map of :func:`cell_colors` that is zero before the first training step.

    So it can be added to a network whose other weights are trained, or written, already.

    Args:
        width: D, channels of the tokens it is added to.

    Example:
        >>> CellColors(16)(torch.rand(1, 3, 8, 12) - 0.5, (2, 3), torch.float32).abs().max().item()
        0.0
    """

    SINES: ClassVar[int] = 12  # channel of the first sine, at the lowest frequency
    COSINES: ClassVar[int] = 12 + 3 * len(FREQUENCIES)

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, CHANNELS))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, colors: Tensor, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """(B, 3, H', W') and (h, w) -> (B, n, D), the colours rounded to ``dtype``."""
        return F.linear(cell_colors(colors, grid).to(dtype), self.weight, self.bias)
