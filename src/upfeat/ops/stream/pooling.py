"""Adaptive average pooling along one axis at a time, channels last.

Cell i of a cells of an axis of length L averages inputs floor(i L / a) ... ceil((i + 1) L / a) - 1,
as ``torch.nn.functional.adaptive_avg_pool2d`` has it, also for more cells than inputs. The window
of a cell is a product of two intervals, so rows and columns are averaged one after the other.

Legend: R rows of a map, W its width, C channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pooling_span(start: int, stop: int, length: int, cells: int) -> tuple[int, int]:
    """Inputs that cells ``start:stop`` of an axis average: first, last + 1.

    Example:
        >>> pooling_span(1, 2, length=5, cells=2)
        (2, 5)
    """
    return start * length // cells, -(-stop * length // cells)


def pooling_weights(length: int, cells: int, device: torch.device | None = None) -> Tensor:
    """The averages of one axis as a float64 matrix (cells, length); rows sum to 1.

    Example:
        >>> pooling_weights(3, 2).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    cell = torch.arange(cells, device=device)
    first = (cell * length).div(cells, rounding_mode="floor")[:, None]
    stop = -(-(cell + 1) * length).div(cells, rounding_mode="floor")[:, None]
    place = torch.arange(length, device=device)
    inside = ((place >= first) & (place < stop)).double()  # (cells, length)
    return inside / (stop - first)


def pool_columns(rows: Tensor, cells: int) -> Tensor:
    """(R, W, C) -> (R, cells, C); whole ratios avoid the framework's slower general operator."""
    width = rows.shape[1]
    if width == cells:
        return rows
    if width % cells == 0:
        return rows.unflatten(1, (cells, -1)).mean(2)
    if cells % width == 0:
        return rows.repeat_interleave(cells // width, dim=1)
    last = rows.permute(2, 0, 1)[None]  # (1, C, R, W), channels last in memory
    return F.adaptive_avg_pool2d(last, (rows.shape[0], cells))[0].permute(1, 2, 0)
