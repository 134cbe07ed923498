"""Codes of places and colours: Fourier features with learned phases (FeatUp, LoftUp), tables."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops import describe, fourier_features, pixel_features
from upfeat.ops.coordinates import inclusive_grid
from upfeat.ops.images import Size


class FourierFeatures(nn.Module):
    """Sines and cosines of the inputs at frequencies exp(-2) ... exp(10), with learned phases.

    Args:
        inputs: m, channels of the input.
        frequencies: n.
    """

    def __init__(self, inputs: int, frequencies: int) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.randn(2, inputs, frequencies))

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., m, H, W) in float32 at least -> (..., 2 n m, H, W)."""
        return fourier_features(inputs, self.phases)

    def of_grid(self, size: Size, like: Tensor) -> Tensor:
        """Return the code (h w, 4 n) of a grid's places in the type of ``like``; m = 2."""
        wide = torch.promote_types(like.dtype, torch.float32)
        return self(inclusive_grid(size, like.device).to(wide)).flatten(1).T.to(like.dtype)


class PixelFeatures(FourierFeatures):
    """Fourier features of each pixel's place and colour, and its colour.

    Args:
        colors: whether colours are described beside the places.
        frequencies: n.
    """

    def __init__(self, colors: bool, frequencies: int) -> None:
        super().__init__(5 if colors else 2, frequencies)
        self.channels = 10 * frequencies + 3 if colors else 4 * frequencies

    def forward(self, colors: Tensor) -> Tensor:
        """(B, 3, H, W) in float32 at least -> (B, channels, H, W)."""
        return pixel_features(colors, self.phases)

    def at(self, places: Tensor, colors: Tensor) -> Tensor:
        """Places (..., 2, H, W) and their colours (..., 3, H, W) -> (..., channels, H, W)."""
        return describe(places, colors, self.phases)


def resized_places(table: Tensor, size: Size) -> Tensor:
    """Return the learned code (1, h w, C) of each cell of a grid, as LoftUp's code reads it.

    The table (1, s s, C) is resized bicubically for other *counts* of cells alone: a 2 x 8 grid
    takes a 4 x 4 table as it lies.
    """
    if size[0] * size[1] == table.shape[1]:
        return table
    side = math.isqrt(table.shape[1])
    places = table.mT.unflatten(2, (side, side))  # (1, C, s, s)
    return F.interpolate(places, size, mode="bicubic").flatten(2).mT
