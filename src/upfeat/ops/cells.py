"""Pixels among the cells of a coarser grid: places in cells, and which cells lie near.

Legend: ``h w`` low-resolution grid, ``H' W'`` output, ``R`` rows of a band.
"""

import torch
from torch import Tensor

__all__ = ["cell_bounds", "cell_places"]


def cell_bounds(size: int, cells: int, radius: float) -> Tensor:
    """Return first and last + 1 cell within ``radius`` cells of each pixel's centre, on one axis.

    Args:
        size: pixels of the axis.
        cells: cells of the axis.
        radius: in cells; below half a cell a pixel still sees the nearest one.

    Returns:
        (size, 2), int64 on the CPU, as ``windowed_attention`` takes them.

    Example:
        >>> cell_bounds(4, 2, 0.5).tolist()
        [[0, 1], [0, 1], [1, 2], [1, 2]]
    """
    centre = (torch.arange(size, dtype=torch.float64) + 0.5) * (cells / size) - 0.5
    first = (centre - radius).ceil().clamp(0, cells - 1)
    last = (centre + radius).floor().clamp(0, cells - 1)
    nearest = centre.round().clamp(0, cells - 1)
    return torch.stack([first.minimum(nearest), last.maximum(nearest) + 1], dim=1).long()


def cell_places(
    grid: tuple[int, int], size: tuple[int, int], rows: tuple[int, int], like: Tensor
) -> Tensor:
    """Return row and column of pixels, in cells from the grid's middle.

    Args:
        grid: (h, w).
        size: (H', W'), the grid of pixels.
        rows: (start, stop) of the wanted rows.
        like: gives dtype and device.

    Returns:
        (1, 2, R, W').

    Example:
        >>> import torch
        >>> cell_places((1, 2), (1, 4), (0, 1), torch.empty(0)).flatten().tolist()
        [0.0, 0.0, 0.0, 0.0, -0.75, -0.25, 0.25, 0.75]
    """
    row = torch.arange(rows[0], rows[1], dtype=like.dtype, device=like.device)
    col = torch.arange(size[1], dtype=like.dtype, device=like.device)
    row = (row + 0.5) * (grid[0] / size[0]) - grid[0] / 2
    col = (col + 0.5) * (grid[1] / size[1]) - grid[1] / 2
    return torch.stack(torch.meshgrid(row, col, indexing="ij"))[None]
