"""The rotary position code of a grid, with fixed periods: pairs of channels turn with the position.

Coordinates are pixel centres of each axis, mapped to [-1, 1]; angle = 2 pi coordinate / period. The
first half of a head's pairs turns with the row, the second with the column (DINOv3, arXiv
2508.10104; NAF, arXiv 2511.18452).

Legend: H' W' the grid, R rows of it, D channels, q periods; a head has 4 q channels, 2 q pairs.
"""

import math

import torch
from torch import Tensor


def grid_turn(
    size: tuple[int, int], periods: Tensor, factor: float = 1.0, rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of some rows' angles, (R, W', 2 q) each, float32 at least.

    Args:
        size: (H', W').
        periods: (q,), shared by both axes.
        factor: multiplies the coordinates.
        rows: which rows.

    Example:
        >>> cos, sin = grid_turn((4, 6), torch.ones(2), rows=slice(1, 3))
        >>> cos.shape
        torch.Size([2, 6, 4])
    """
    wide = torch.promote_types(periods.dtype, torch.float32)
    angles = []
    for length in size:
        index = torch.arange(length, device=periods.device, dtype=wide)
        coordinate = (2 * ((index + 0.5) / length) - 1) * factor  # (L,) in [-1, 1]
        angles.append(2 * math.pi * coordinate[:, None] / periods.to(wide))  # (L, q)
    row, col = angles[0][rows, None], angles[1][None]  # (R, 1, q), (1, W', q)
    shape = (row.shape[0], col.shape[1], -1)
    cos, sin = (
        torch.cat((wave(row).expand(shape), wave(col).expand(shape)), -1)  # (R, W', 2q)
        for wave in (torch.cos, torch.sin)
    )
    return cos, sin


def rotate_pairs(x: Tensor, turn: tuple[Tensor, Tensor], num_heads: int) -> Tensor:
    """Turn the channel pairs (j, j + half) of each head of ``x`` (..., R, W', D).

    Args:
        x: heads are consecutive groups of channels.
        turn: of :func:`grid_turn`.
        num_heads: D = num_heads * 4 q.

    Example:
        >>> turn = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)  # a quarter turn
        >>> rotate_pairs(torch.tensor([[[1.0, 2.0]]]), turn, num_heads=1).flatten().tolist()
        [-2.0, 1.0]
    """
    cos, sin = (t.to(x.dtype).unsqueeze(-2) for t in turn)  # (R, W', 1, half)
    first, second = x.unflatten(-1, (num_heads, 2, -1)).unbind(-2)  # (..., heads, half) each
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=-2).flatten(-3)  # (..., D)
