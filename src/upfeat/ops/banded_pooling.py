"""Adaptive average pooling of a map that is read row band by row band, channels last.

Cell i of a cells of an axis of length L averages inputs floor(i L / a) ... ceil((i + 1) L / a) - 1,
as ``torch.nn.functional.adaptive_avg_pool2d`` has it, also for more cells than inputs. The window
of a cell is a product of two intervals, so rows and columns are averaged one after the other.

Legend: H W the map, H' W' the pooled grid, R rows of a band, C channels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.banded_convolution import RowSource


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


class PooledRows:
    """Rows of a pooled map, computed in order from a source that gives each input row once.

    Args:
        source: ``source(start, stop)`` returns input rows (stop - start, W, C).
        size: (H, W) of the input.
        cells: (H', W') of the output.

    Example:
        >>> import torch
        >>> image = torch.randn(1, 3, 7, 8)
        >>> rows = image[0].permute(1, 2, 0)
        >>> pooled = PooledRows(lambda start, stop: rows[start:stop], (7, 8), (5, 4))
        >>> out = torch.cat([pooled.read(0, 2), pooled.read(2, 5)])
        >>> expected = torch.nn.functional.adaptive_avg_pool2d(image, (5, 4))[0].permute(1, 2, 0)
        >>> torch.allclose(out, expected, atol=1e-6)
        True
    """

    def __init__(self, source: RowSource, size: tuple[int, int], cells: tuple[int, int]) -> None:
        self.source, self.size, self.cells = source, size, cells
        self.weights = pooling_weights(size[0], cells[0]) if size[0] != cells[0] else None
        self.have = 0  # input rows read so far
        self.tail: Tensor | None = None  # the last of them, which the next cell may need again

    def read(self, start: int, stop: int) -> Tensor:
        """Output rows (stop - start, W', C), valid until the next call, to be read in order."""
        if self.weights is None:
            return pool_columns(self.source(start, stop), self.cells[1])
        first, last = pooling_span(start, stop, self.size[0], self.cells[0])
        parts = [self.tail] if self.tail is not None and first < self.have else []
        if self.have < last:
            parts.append(pool_columns(self.source(self.have, last), self.cells[1]))
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)  # (last - first, W', C)
        self.have, self.tail = last, rows[-1:].clone()
        weights = self.weights[start:stop, first:last].to(rows)  # (R', R)
        return (weights @ rows.flatten(1)).unflatten(1, rows.shape[1:])
