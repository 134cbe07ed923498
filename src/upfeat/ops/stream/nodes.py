"""What a recorded network consists of: each node gives rows of one map from rows of its parents.

Legend: H W a map, C its channels, R rows of a strip. A strip is (R, W, C), contiguous unless it is
the input image's. A node writes a strip into a buffer that it is given, which may be its first
input's where the node is ``elementwise``.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime import Buffers
from upfeat.ops.runtime.linear import add_product
from upfeat.ops.stream.convolution import Kernel, convolve_rows
from upfeat.ops.stream.moments import Statistics

Rows = tuple[int, int]
ADD = torch.ops.aten.add.out


class Node:
    """One map (H, W, C) of a recorded network.

    Args:
        parents: the maps it is made of.
        size: (H, W).
        channels: C.
        dtype: of the map.

    Attributes:
        map: (H, W, C) where the whole map is kept, else None.
        children: recorded nodes that read it, as long as something refers to them.
        wide: whether a row is made of other rows of the source, too.
        readers: how many these are; one that reads it twice counts twice.
        recycle: takes the memory of ``map`` back; None where it is not the executor's.
        handle: the :class:`RowMap` that callers may still read, or a dead reference.
    """

    elementwise = False
    reach = 0  # rows beyond its own that it reads
    row_by_row = True  # whether a row is made of the same row of the parents alone

    def __init__(
        self, parents: Sequence["Node"], size: tuple[int, int], channels: int, dtype: torch.dtype
    ) -> None:
        self.parents, self.size, self.channels, self.dtype = tuple(parents), size, channels, dtype
        self.wide: bool = not self.row_by_row or any(parent.wide for parent in parents)
        self.map: Tensor | None = None
        self.children: weakref.WeakSet[Node] = weakref.WeakSet()
        self.readers = 0
        self.handle: Callable[[], Any] = lambda: None
        self.recycle: Callable[[Tensor], None] | None = None
        for parent in parents:
            parent.children.add(self)
            parent.readers += 1

    def __del__(self) -> None:
        for parent in self.parents:
            parent.readers -= 1
        self.release()

    def release(self) -> None:
        """Give the memory of the kept map back."""
        if self.map is not None and self.recycle is not None:
            self.recycle(self.map)
            self.map = None

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the map."""
        return self.size[1] * self.channels * self.dtype.itemsize

    def span(self, rows: Rows) -> Rows:
        """Return the rows of the parents that ``rows`` are made of."""
        return rows

    def parent_rows(self, count: int) -> int:
        """Return about how many rows of the parents ``count`` rows are made of."""
        return count + self.reach

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Return the strip ``rows``, in ``out`` or in memory of its own."""
        raise NotImplementedError


class Source(Node):
    """A map that exists: an image (1, C, H, W)."""

    def __init__(self, image: Tensor, dtype: torch.dtype) -> None:
        size = (image.shape[2], image.shape[3])
        super().__init__((), size, image.shape[1], dtype)
        self.map = image[0].permute(1, 2, 0)  # (C, H, W) -> (H, W, C)


class Convolution(Node):
    """A convolution without padding; its parent brings the border along.

    Args:
        parent: with the border.
        kernel: of ``prepare``.
        buffers: gives those of the calling thread.
    """

    def __init__(self, parent: Node, kernel: Kernel, buffers: Callable[[], Buffers]) -> None:
        self.kernel, self.reach, self.buffers = kernel, kernel.reach[0], buffers
        self.row_by_row = not self.reach
        size = (parent.size[0] - kernel.reach[0], parent.size[1] - kernel.reach[1])
        super().__init__((parent,), size, kernel.channels[1], parent.dtype)

    def scaled(self, scale: Tensor, shift: Tensor) -> "Convolution":
        """Return the convolution with a scale and a shift for each channel behind it."""
        return Convolution(self.parents[0], self.kernel.scaled(scale, shift), self.buffers)

    def span(self, rows: Rows) -> Rows:
        """Reach below the last row."""
        return rows[0], rows[1] + self.reach

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Convolve."""
        strip = strips[0].to(self.dtype)
        return convolve_rows(strip, self.kernel, out, self.buffers())

    def add_to(self, out: Tensor, strip: Tensor) -> None:
        """Add the strip's convolution, 1x1, to ``out``."""
        add_product(out.flatten(0, 1), strip.flatten(0, 1), self.kernel.weight, self.kernel.bias)


class Pad(Node):
    """A border of zeros, or of reflected or repeated pixels.

    Args:
        parent: what is bordered.
        border: rows above and below, columns at the left and right.
        mode: ``"constant"``, ``"reflect"`` or ``"replicate"``.
    """

    row_by_row = False

    def __init__(self, parent: Node, border: tuple[int, int], mode: str) -> None:
        self.height, self.width, self.mode = *border, mode
        size = (parent.size[0] + 2 * self.height, parent.size[1] + 2 * self.width)
        super().__init__((parent,), size, parent.channels, parent.dtype)

    def _source(self, row: int) -> int:
        """The parent's row that a row of the padded map shows."""
        row, last = row - self.height, self.parents[0].size[0] - 1
        if self.mode == "reflect":
            row = abs(row)
            return row if row <= last else 2 * last - row
        return min(max(row, 0), last)

    def span(self, rows: Rows) -> Rows:
        """Find the rows that show, some of them mirrored."""
        first, last = rows[0], rows[1] - 1
        # The source turns around at the map's first and last row.
        turns = (self.height, self.parents[0].size[0] - 1 + self.height)
        edges = (first, last, *(min(max(turn, first), last) for turn in turns))
        sources = [self._source(row) for row in edges]
        return min(sources), max(sources) + 1

    def inside(self, out: Tensor, rows: Rows) -> Tensor | None:
        """Return the part of ``out`` that shows the parent's rows, or None if not all are shown."""
        start, stop = self._shown(rows)
        whole = self.span(rows) == (rows[0] + start - self.height, rows[0] + stop - self.height)
        return out[start:stop, self.width : out.shape[1] - self.width] if whole else None

    def _shown(self, rows: Rows) -> Rows:
        """Rows of a strip that are no border: first, last + 1."""
        count = rows[1] - rows[0]
        start = min(max(self.height - rows[0], 0), count)
        return start, max(min(self.parents[0].size[0] + self.height - rows[0], count), start)

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Copy the rows inside, where they do not lie there, and fill the border."""
        strip, first = strips[0], self.span(rows)[0]
        inner = out[:, self.width : out.shape[1] - self.width]
        start, stop = self._shown(rows)
        begin = rows[0] + start - self.height - first
        shown = inner[start:stop]
        if shown.data_ptr() != strip.data_ptr():
            shown.copy_(strip[begin : begin + stop - start])
        for place in (*range(start), *range(stop, len(out))):  # rows beyond the map
            if self.mode == "constant":
                inner[place] = 0
            else:
                inner[place] = strip[self._source(rows[0] + place) - first]
        self._fill_columns(out)
        return out

    def _fill_columns(self, out: Tensor) -> None:
        width, right = self.width, out.shape[1] - self.width
        for step in range(width):
            if self.mode == "constant":
                out[:, step], out[:, right + step] = 0, 0
            elif self.mode == "reflect":
                out[:, step] = out[:, 2 * width - step]
                out[:, right + step] = out[:, right - 2 - step]
            else:
                out[:, step], out[:, right + step] = out[:, width], out[:, right - 1]


class Affine(Node):
    """x * scale + shift with a scale and a shift for each channel."""

    elementwise = True

    def __init__(self, parent: Node, scale: Tensor, shift: Tensor) -> None:
        super().__init__((parent,), parent.size, parent.channels, parent.dtype)
        self.scale, self.shift = scale.to(self.dtype), shift.to(self.dtype)

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Scale and shift."""
        return torch.addcmul(self.shift, strips[0], self.scale, out=out)


class Cast(Node):
    """The map in another type."""

    def __init__(self, parent: Node, dtype: torch.dtype) -> None:
        super().__init__((parent,), parent.size, parent.channels, dtype)

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Convert."""
        return out.copy_(strips[0])


class GroupNorm(Node):
    """Group norm; its statistics are gathered over the whole parent before rows are read."""

    elementwise = True

    def __init__(
        self, parent: Node, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> None:
        super().__init__((parent,), parent.size, parent.channels, parent.dtype)
        self.groups, self.weight, self.bias, self.eps = groups, weight, bias, eps
        self.folded: tuple[Tensor, Tensor] | None = None

    def fold(self, statistics: Statistics) -> None:
        """Take the statistics; from now on the norm is a scale and a shift."""
        scale, shift = statistics.affine(self.weight, self.bias)
        self.folded = (scale.to(self.dtype), shift.to(self.dtype))

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Scale and shift, as the statistics say."""
        if self.folded is None:
            raise RuntimeError("rows are read before the statistics of a group norm are known")
        scale, shift = self.folded
        return torch.addcmul(shift, strips[0], scale, out=out)


class Elementwise(Node):
    """An operator of one map or two of equal shape that takes ``out=``."""

    elementwise = True

    def __init__(self, function: Callable[..., Tensor], *parents: Node) -> None:
        super().__init__(parents, parents[0].size, parents[0].channels, parents[0].dtype)
        self.function = function

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Apply the operator."""
        return self.function(*strips, out=out)


class RowLocal(Node):
    """A function of one map's rows that also gets to know which rows they are.

    ``function(strip, rows, out)`` writes rows (R, W, C') of a map of the same size.
    """

    elementwise = True

    def __init__(
        self,
        parent: Node,
        function: Callable[[Tensor, Rows, Tensor], Tensor],
        channels: int | None = None,
    ) -> None:
        width = parent.channels if channels is None else channels
        super().__init__((parent,), parent.size, width, parent.dtype)
        self.elementwise = width == parent.channels
        self.function = function

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Apply the function."""
        return self.function(strips[0], rows, out)


class Concatenation(Node):
    """Channels side by side."""

    def __init__(self, parents: Sequence[Node]) -> None:
        channels = sum(parent.channels for parent in parents)
        super().__init__(parents, parents[0].size, channels, parents[0].dtype)

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Join the channels."""
        return torch.cat(strips, dim=2, out=out)


class Pool(Node):
    """Adaptive average pooling to ``size``, smaller or larger than the map."""

    row_by_row = False

    def __init__(self, parent: Node, size: tuple[int, int]) -> None:
        super().__init__((parent,), size, parent.channels, parent.dtype)
        self.weights = pooling_weights(parent.size[0], size[0])  # (H', H)

    def parent_rows(self, count: int) -> int:
        """Scale by the ratio of the heights."""
        return -(-count * self.parents[0].size[0] // self.size[0]) + 1

    def span(self, rows: Rows) -> Rows:
        """Find the rows that are averaged."""
        return pooling_span(*rows, self.parents[0].size[0], self.size[0])

    def compute(self, rows: Rows, strips: list[Tensor], out: Tensor) -> Tensor:
        """Average columns, then rows."""
        first, last = self.span(rows)
        columns = pool_columns(strips[0], self.size[1]).flatten(1)  # (R, W' C)
        wide = torch.promote_types(columns.dtype, torch.float32)
        weights = self.weights[rows[0] : rows[1], first:last].to(columns.device, wide)
        pooled = weights @ columns.to(wide)  # (R', W' C)
        out.copy_(pooled.unflatten(1, (self.size[1], -1)))
        return out


def layer_norm(
    strip: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, out: Tensor
) -> Tensor:
    """Normalise each pixel over its channels, (R, W, C)."""
    return out.copy_(F.layer_norm(strip, strip.shape[2:], weight, bias, eps))


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
