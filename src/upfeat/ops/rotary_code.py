"""The rotary position code of a grid, with fixed periods: pairs of channels turn with the position.

Coordinates are pixel centres of each axis, mapped to [-1, 1]; angle = 2 pi coordinate / period. The
first half of a head's pairs turns with the row, the second with the column (DINOv3, arXiv
2508.10104; NAF, arXiv 2511.18452).

Legend: B batch, H' W' the grid, R rows of it, D channels, q periods; a head has 4 q channels, 2 q
pairs.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import stream
from upfeat.ops.runtime import compute_dtype

Turn = tuple[Tensor, Tensor]


def rotary_code(x: Tensor, periods: Tensor, num_heads: int, factor: float = 1.0) -> Tensor:
    """Turn the channel pairs (j, j + 2 q) of each head of a map by the angles of the pixels.

    Args:
        x: (B, D, H', W'), D = num_heads * 4 q; heads are consecutive groups of channels.
        periods: (q,), shared by both axes.
        num_heads: of the code.
        factor: multiplies the coordinates.

    Returns:
        (B, D, H', W') in the type of ``x``; angles are computed in float32 at least.

    Example:
        >>> x = torch.randn(1, 8, 3, 5)
        >>> turned = rotary_code(x, torch.tensor([1.0, 4.0]), num_heads=1)
        >>> torch.allclose(turned.norm(dim=1), x.norm(dim=1), atol=1e-5)
        True
    """
    if has_torch_function((x,)):
        return handle_torch_function(rotary_code, (x,), x, periods, num_heads, factor)
    turn = grid_turn((x.shape[2], x.shape[3]), periods, factor)
    return rotate_pairs(x.permute(0, 2, 3, 1), turn, num_heads).permute(0, 3, 1, 2)


@stream.recorded_as(rotary_code)
def _by_rows(x: Any, periods: Tensor, num_heads: int, factor: float = 1.0) -> Any:
    size = (x.shape[2], x.shape[3])

    def turn_(strip: Tensor, rows: tuple[int, int], out: Tensor) -> Tensor:
        if out.data_ptr() != strip.data_ptr():
            out.copy_(strip)
        turn = grid_turn(size, periods, factor, slice(*rows))
        cos, sin = (t.to(out.dtype).unsqueeze(-2) for t in turn)  # (R, W', 1, 2 q)
        first, second = out.unflatten(-1, (num_heads, 2, -1)).unbind(-2)  # (R, W', heads, 2 q)
        cross = second * sin
        second.mul_(cos).addcmul_(first, sin)
        first.mul_(cos).sub_(cross)
        return out

    return stream.row_local(x, turn_)


def grid_turn(
    size: tuple[int, int], periods: Tensor, factor: float = 1.0, rows: slice = slice(None)
) -> Turn:
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
    wide = compute_dtype(periods)
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


def rotate_pairs(x: Tensor, turn: Turn, num_heads: int) -> Tensor:
    """Turn the channel pairs (j, j + 2 q) of each head of ``x`` (..., R, W', D).

    Args:
        x: heads are consecutive groups of channels.
        turn: of :func:`grid_turn`.
        num_heads: D = num_heads * 4 q.

    Example:
        >>> turn = torch.zeros(1, 1, 1), torch.ones(1, 1, 1)  # a quarter turn
        >>> rotate_pairs(torch.tensor([[[1.0, 2.0]]]), turn, num_heads=1).flatten().tolist()
        [-2.0, 1.0]
    """
    cos, sin = (t.to(x.dtype).unsqueeze(-2) for t in turn)  # (R, W', 1, 2 q)
    first, second = x.unflatten(-1, (num_heads, 2, -1)).unbind(-2)  # (..., heads, 2 q) each
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.stack(turned, dim=-2).flatten(-3)  # (..., D)
