"""The learned position code that JAFAR and AnyUp put on the encoded image."""

import math

import torch
from torch import Tensor, nn

from upfeat.ops import position_code


class LearnedPositionCode(nn.Module):
    """x cos(angle) + rot(x) sin(angle) with trained frequencies; see `position_code`.

    At the start, with n = d/4 and f_k = 2 pi 100^(-k/(n-1)), the first half of the channels turns
    with the row and the second with the column.

    Args:
        dim: channels d, a multiple of 4.

    Attributes:
        freqs: (2, d), angular frequencies of rows and columns; trained, so always part of the
            weights.

    Raises:
        ValueError: ``dim`` is no multiple of 4.

    Example:
        >>> import torch
        >>> LearnedPositionCode(8)(torch.rand(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim % 4:
            raise ValueError(f"the position code needs a multiple of 4 channels, got {dim}")
        count = dim // 4
        exponent = torch.arange(count, dtype=torch.float64) / max(count - 1, 1)
        freq = 2 * math.pi * 100.0**-exponent  # (d/4,)
        zero = torch.zeros_like(freq)
        freqs = torch.stack(
            (torch.cat((freq, freq, zero, zero)), torch.cat((zero, zero, freq, freq)))
        )
        self.freqs = nn.Parameter(freqs.to(torch.get_default_dtype()))  # (2, d)

    def forward(self, x: Tensor) -> Tensor:
        """Code the positions of ``x`` (B, d, H, W); coordinates run from 0 to 1 on each axis."""
        return position_code(x, self.freqs)
