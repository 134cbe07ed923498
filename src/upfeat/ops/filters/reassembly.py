"""Content-aware reassembly: each output pixel is a weighted sum of a window of coarse cells.

The operator of CARAFE (arXiv 1905.02188, equation 3), for given weights: all pixels of one cell
see the same k x k window. ReSFU's attention at sub-pixel positions is the same sum over 4 x 4
windows once its taps are spread over the cells they interpolate. Beside it stands its transpose,
the inner products of a pixel with the cells of its window, from which SAPA makes its weights.

In bounded memory it is a chain of matrix products. The cells of a row are cut into tiles of T
neighbours, whose windows together are k rows of L = T + k - 1 cells; the weights of a tile's
pixels are laid out as a band in a matrix with L columns. For each of the k rows, one batched
product of that matrix with the cells, which are read in place, adds to the output.

Legend: B batch, C channels, g groups, k window, h w cells, s_y s_x pixels a cell along the axes,
R rows of cells in a band, T cells in a tile, n tiles in a row.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from upfeat.errors import check_bytes
from upfeat.ops import reference
from upfeat.ops.runtime import (
    dispatch,
    new_large,
    operator_bytes,
    run_blocks,
    sum_parts,
    worker_count,
)

TILE_PIXELS = 32
"""Rows that the product of a tile should have: fewer waste the cache, more multiply zeros."""


def window_reassembly(
    features: Tensor, weights: Tensor, kernel_size: int, *, max_bytes: int | None = None
) -> Tensor:
    """Mix, for each output pixel, the window of cells around its own with the pixel's weights.

    Pixel (y, x) of channel c gets the sum over i, j of ``weights[γ, i * k + j, y, x]
    * features[c, y // s_y + i, x // s_x + j]`` where γ is the channel's group of C / g neighbours.

    Args:
        features: (B, C, h + k - 1, w + k - 1), the cells with their border: zeros for CARAFE.
        weights: (B, g, k * k, s_y * h, s_x * w), taps row-major.
        kernel_size: k.
        max_bytes: bound on the buffers beside inputs and output.

    Returns:
        (B, C, s_y * h, s_x * w) in the type of ``features``, computed in float32 at least.

    Raises:
        ValueError: the shapes do not fit each other.

    Example:
        >>> import torch
        >>> features = torch.arange(6.0).reshape(1, 1, 2, 3)
        >>> weights = torch.full((1, 1, 1, 4, 6), 0.5)
        >>> window_reassembly(features, weights, kernel_size=1)[0, 0, 0].tolist()
        [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    """
    _check(features, weights, kernel_size)
    if dispatch.wants_reference():
        return reference.window_reassembly(features, weights, kernel_size)
    return _Reassembly.apply(features, weights, kernel_size, _budget(features, max_bytes))


def window_products(
    query: Tensor, cells: Tensor, kernel_size: int, *, max_bytes: int | None = None
) -> Tensor:
    """Multiply each pixel with every cell of the window around its own.

    Pixel (y, x) gets, for tap i * k + j, the sum over the channels of
    ``query[c, y, x] * cells[c, y // s_y + i, x // s_x + j]``.

    Args:
        query: (B, C, s_y * h, s_x * w).
        cells: (B, C, h + k - 1, w + k - 1), with their border.
        kernel_size: k.
        max_bytes: bound on the buffers beside inputs and output.

    Returns:
        (B, k * k, s_y * h, s_x * w), float32 at least.

    Raises:
        ValueError: the shapes do not fit each other.

    Example:
        >>> import torch
        >>> cells = torch.tensor([1.0, 10.0, 100.0]).expand(1, 1, 2, 3)
        >>> window_products(2 * torch.ones(1, 1, 1, 2), cells, kernel_size=2)[0, :, 0, 1].tolist()
        [20.0, 200.0, 20.0, 200.0]
    """
    _check(cells, _weights_for(query, cells, kernel_size), kernel_size)
    if dispatch.wants_reference():
        return reference.window_products(query, cells, kernel_size)
    return _Products.apply(query, cells, kernel_size, _budget(cells, max_bytes))


def _weights_for(query: Tensor, cells: Tensor, kernel_size: int) -> Tensor:
    """A placeholder of the products' shape and type that takes no memory, or ValueError."""
    if query.dim() != 4 or cells.dim() != 4 or query.shape[1] != cells.shape[1]:
        raise ValueError(
            "query (B, C, H', W') and cells (B, C, h + k - 1, w + k - 1) of the same channels are "
            f"wanted, got {tuple(query.shape)} and {tuple(cells.shape)}."
        )
    shape = (len(query), 1, kernel_size**2, *query.shape[2:])
    return query.new_empty(1, dtype=dispatch.compute_dtype(query, cells)).expand(shape)


def _budget(like: Tensor, max_bytes: int | None) -> int:
    if max_bytes is None:
        return 2 * operator_bytes() * (1 if like.device.type == "cpu" else 32)
    return check_bytes(max_bytes)


def _check(
    features: Tensor, weights: Tensor, kernel_size: int
) -> tuple[tuple[int, int], tuple[int, int], int]:
    """Cells (h, w), scale (s_y, s_x) and groups, or ValueError."""
    if features.dim() != 4 or weights.dim() != 5 or kernel_size < 1:
        raise ValueError(
            "features (B, C, h + k - 1, w + k - 1), weights (B, g, k * k, H', W') and a positive "
            f"kernel_size are wanted, got {tuple(features.shape)}, {tuple(weights.shape)} and "
            f"{kernel_size}."
        )
    cells = (features.shape[2] - kernel_size + 1, features.shape[3] - kernel_size + 1)
    groups, taps = weights.shape[1:3]
    if min(cells) < 1 or weights.shape[0] != features.shape[0] or taps != kernel_size**2:
        raise ValueError(
            f"features {tuple(features.shape)} and weights {tuple(weights.shape)} do not fit for "
            f"kernel_size={kernel_size}: one batch, {kernel_size**2} taps and a border of "
            f"{kernel_size - 1} rows and columns in all are wanted."
        )
    if groups < 1 or features.shape[1] % groups:
        raise ValueError(
            f"{groups} groups of weights do not divide the {features.shape[1]} channels."
        )
    scale = (weights.shape[3] // cells[0], weights.shape[4] // cells[1])
    if min(scale) < 1 or weights.shape[3:] != (scale[0] * cells[0], scale[1] * cells[1]):
        raise ValueError(
            f"weights for {tuple(weights.shape[3:])} pixels are no whole multiple of the {cells} "
            "cells."
        )
    if features.device != weights.device:
        raise ValueError(
            f"features are on {features.device}, weights on {weights.device}; move them to one "
            "device."
        )
    return cells, scale, groups


class _Plan:
    """Sizes of one call, and the views that lay weights and cells out for the products."""

    def __init__(self, features: Tensor, weights: Tensor, kernel_size: int, max_bytes: int) -> None:
        (self.h, self.w), (self.sy, self.sx), self.groups = _check(features, weights, kernel_size)
        self.k = kernel_size
        self.batch, self.channels = features.shape[:2]
        self.width = self.channels // self.groups  # of a group
        self.dtype = dispatch.compute_dtype(features, weights)
        self.t = max(1, min(self.w, TILE_PIXELS // (self.sy * self.sx), 8))
        self.length = self.t + kernel_size - 1  # L
        # Rows of cells are stored n * T long, so that tiles of all rows are one batch.
        self.n = -(-(self.w + kernel_size - 1) // self.t)
        self.pixels = self.sy * self.t * self.sx  # of a tile
        size = torch.finfo(self.dtype).bits // 8
        row = self.n * self.pixels * (2 * self.channels + 2 * self.length + kernel_size**2) * size
        share = max_bytes // worker_count(features.device)
        self.rows = max(1, min(self.h, share // max(1, row)))

    def bands(self) -> list[tuple[int, int, int]]:
        """Every (item, first row, last row + 1)."""
        starts = range(0, self.h, self.rows)
        return [(b, y, min(y + self.rows, self.h)) for b in range(self.batch) for y in starts]

    def flat_size(self) -> int:
        """Cells in the storage of one item, with what the last tile may read beyond the end."""
        return (self.h + self.k) * self.n * self.t + self.length

    def flatten(self, features: Tensor) -> Tensor:
        """(B, C, h + k - 1, w + k - 1) to cells (B, flat, C), rows padded with zeros."""
        flat = features.new_zeros(self.batch, self.flat_size(), self.channels, dtype=self.dtype)
        rows = self.h + self.k - 1
        self.grid(flat, rows).copy_(features.permute(0, 2, 3, 1))
        return flat

    def grid(self, flat: Tensor, rows: int) -> Tensor:
        """The cells that exist: (B, flat, C) to (B, rows, w + k - 1, C)."""
        line = self.n * self.t
        cells = flat[:, : rows * line].unflatten(1, (rows, line))  # (B, rows, n * T, C)
        return cells[:, :, : self.w + self.k - 1]

    def tiles(self, flat: Tensor, row: int, count: int, group: int) -> Tensor:
        """Overlapping tiles of ``count`` rows of cells: (R * n, L, C / g), without a copy."""
        wide, start = self.channels, row * self.n * self.t
        return flat.as_strided(
            (count * self.n, self.length, self.width),
            (self.t * wide, wide, 1),
            flat.storage_offset() + start * wide + group * self.width,
        )

    def band(self, matrix: Tensor) -> Tensor:
        """The k weights of each pixel in a matrix (R * n, pixels, L): (R * n, s_y, T, s_x, k)."""
        line = self.length
        return matrix.as_strided(
            (matrix.shape[0], self.sy, self.t, self.sx, self.k),
            (self.pixels * line, self.t * self.sx * line, self.sx * line + 1, line, 1),
            matrix.storage_offset(),
        )

    def taps(self, weights: Tensor, band: tuple[int, int, int], i: int, group: int) -> Tensor:
        """Weights of one row of taps: (R, w, s_y, s_x, k), a view of (B, g, k * k, H', W')."""
        item, start, stop = band
        rows = weights[item, group, i * self.k : (i + 1) * self.k, start * self.sy : stop * self.sy]
        rows = rows.unflatten(1, (-1, self.sy)).unflatten(3, (self.w, self.sx))
        return rows.permute(1, 3, 2, 4, 0)  # (k, R, s_y, w, s_x) -> (R, w, s_y, s_x, k)

    def pixel_tiles(self, tiles: Tensor) -> Tensor:
        """(R * n, s_y, T, s_x, ...) to (R, n, T, s_y, s_x, ...), a view."""
        return tiles.unflatten(0, (-1, self.n)).transpose(2, 3)

    def copy_cells(self, target: Tensor, source: Tensor, into_tiles: bool) -> None:
        """Copy cells (R, w, ...) into tiles (R, n, T, ...) or back: the whole tiles, then the rest.

        n and T are one axis of no view, so it takes two copies.
        """
        tiles, cells = (target, source) if into_tiles else (source, target)
        whole, rest = divmod(self.w, self.t)
        parts = [(tiles[:, :whole], cells[:, : whole * self.t].unflatten(1, (whole, self.t)))]
        if rest:
            parts.append((tiles[:, whole, :rest], cells[:, whole * self.t :]))
        for tile, cell in parts:
            (tile if into_tiles else cell).copy_(cell if into_tiles else tile)

    def load_taps(
        self, matrix: Tensor, weights: Tensor, band: tuple[int, int, int], i: int, group: int
    ) -> None:
        """Write the weights of one row of taps into the band of a matrix of zeros."""
        tiles = self.pixel_tiles(self.band(matrix))  # (R, n, T, s_y, s_x, k)
        self.copy_cells(tiles, self.taps(weights, band, i, group), into_tiles=True)

    def buffers(self, flat: Tensor) -> "_Buffers":
        """Zeroed buffers for one worker."""
        return _Buffers(self, flat)


class _Buffers:
    """A worker's matrix of weights and pixels of a band, zero where nothing is written.

    Columns beyond the grid's last one belong to no pixel and stay zero through all bands.
    """

    def __init__(self, plan: _Plan, like: Tensor) -> None:
        tiles = plan.rows * plan.n
        self.matrix = like.new_zeros(tiles, plan.pixels, plan.length)
        self.pixels = like.new_zeros(tiles, plan.pixels, plan.width)
        self.grad: Tensor | None = None


def _forward(features: Tensor, weights: Tensor, kernel_size: int, max_bytes: int) -> Tensor:
    plan = _Plan(features, weights, kernel_size, max_bytes)
    flat = plan.flatten(features)  # (B, flat, C)
    size = (plan.h, plan.sy, plan.w, plan.sx)
    out = new_large(features, plan.batch, *size, plan.channels)  # channels last

    def work(band: tuple[int, int, int], own: _Buffers) -> None:
        item, start, stop = band
        tiles = (stop - start) * plan.n
        matrix, mixed = own.matrix[:tiles], own.pixels[:tiles]
        for group in range(plan.groups):
            for i in range(plan.k):
                plan.load_taps(matrix, weights, band, i, group)
                cells = plan.tiles(flat[item], start + i, stop - start, group)
                torch.baddbmm(mixed, matrix, cells, beta=min(i, 1), out=mixed)
            shaped = mixed.unflatten(1, (plan.sy, plan.t, plan.sx))
            target = out[item, start:stop].unflatten(-1, (plan.groups, -1))[..., group, :]
            # (R, s_y, w, s_x, C / g) -> (R, w, s_y, s_x, C / g)
            plan.copy_cells(target.transpose(1, 2), plan.pixel_tiles(shaped), into_tiles=False)

    run_blocks(plan.bands(), work, lambda: plan.buffers(flat), features.device)
    return out.flatten(3, 4).flatten(1, 2).permute(0, 3, 1, 2)  # (B, C, H', W')


def _backward(
    grad: Tensor,
    features: Tensor,
    weights: Tensor,
    kernel_size: int,
    max_bytes: int,
    needs: tuple[bool, bool],
) -> tuple[Tensor | None, Tensor | None]:
    plan = _Plan(features, weights, kernel_size, max_bytes)
    flat = plan.flatten(features)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    # (B, C, H', W') -> (B, h, w, s_y, s_x, C)
    last = grad.unflatten(2, (plan.h, plan.sy)).unflatten(4, (plan.w, plan.sx))
    last = last.permute(0, 2, 4, 3, 5, 1)

    def state() -> _Buffers:
        own = plan.buffers(flat)
        own.grad = torch.zeros_like(flat) if needs[0] else None
        return own

    def work(band: tuple[int, int, int], own: _Buffers) -> None:
        item, start, stop = band
        tiles = (stop - start) * plan.n
        matrix, pixels = own.matrix[:tiles], own.pixels[:tiles]
        for group in range(plan.groups):
            shaped = plan.pixel_tiles(pixels.unflatten(1, (plan.sy, plan.t, plan.sx)))
            own_channels = slice(group * plan.width, (group + 1) * plan.width)
            plan.copy_cells(shaped, last[item, start:stop, ..., own_channels], into_tiles=True)
            for i in range(plan.k):
                if needs[1]:
                    cells = plan.tiles(flat[item], start + i, stop - start, group)
                    product = torch.bmm(pixels, cells.transpose(1, 2))  # (R * n, pixels, L)
                    source = plan.pixel_tiles(plan.band(product))
                    target = plan.taps(grad_weights, band, i, group)
                    plan.copy_cells(target, source, into_tiles=False)
                if own.grad is not None:
                    plan.load_taps(matrix, weights, band, i, group)
                    product = torch.bmm(matrix.transpose(1, 2), pixels)  # (R * n, L, C / g)
                    line = (start + i) * plan.n * plan.t
                    for place, part in _pieces(product, plan.t, line):
                        own.grad[item, place, own_channels] += part

    states = run_blocks(plan.bands(), work, state, features.device)
    if not needs[0]:
        return None, grad_weights if needs[1] else None
    total = sum_parts([own.grad for own in states if own.grad is not None])
    grid = plan.grid(total, plan.h + plan.k - 1).permute(0, 3, 1, 2)
    return grid.to(features.dtype), grad_weights if needs[1] else None


def _pieces(product: Tensor, step: int, line: int) -> Iterator[tuple[slice, Tensor]]:
    """Cut overlapping tiles (n, L, C) into pieces whose cells do not overlap, with their places."""
    tiles, length, width = product.shape
    for first in range(0, length, step):
        piece = product[:, first : first + step]
        if piece.shape[1] < step:
            piece = F.pad(piece, (0, 0, 0, step - piece.shape[1]))
        start = line + first
        yield slice(start, start + tiles * step), piece.reshape(tiles * step, width)


class _Reassembly(torch.autograd.Function):
    """Saves the inputs only; backward lays them out again."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, weights: Tensor, kernel_size: int, max_bytes: int
    ) -> Tensor:
        ctx.save_for_backward(features, weights)
        ctx.options = (kernel_size, max_bytes)
        with dispatch.without_autocast(features):
            return _forward(features, weights, kernel_size, max_bytes)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        features, weights = ctx.saved_tensors
        kernel_size, max_bytes = ctx.options
        with dispatch.without_autocast(features):
            needs = ctx.needs_input_grad[:2]
            grads = _backward(grad, features, weights, kernel_size, max_bytes, needs)
        return *grads, None, None


class _Products(torch.autograd.Function):
    """The products are to the queries what the weights' gradient is to the output's."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, cells: Tensor, kernel_size: int, max_bytes: int) -> Tensor:
        ctx.save_for_backward(query, cells)
        ctx.options = (kernel_size, max_bytes)
        weights = _weights_for(query, cells, kernel_size)
        with dispatch.without_autocast(query):
            _, products = _backward(query, cells, weights, kernel_size, max_bytes, (False, True))
        assert products is not None
        return products[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, cells = ctx.saved_tensors
        kernel_size, max_bytes = ctx.options
        own, other, weights = None, None, grad[:, None]
        with dispatch.without_autocast(query):
            if ctx.needs_input_grad[0]:
                own = _forward(cells, weights, kernel_size, max_bytes).to(query.dtype)
            if ctx.needs_input_grad[1]:
                other, _ = _backward(query, cells, weights, kernel_size, max_bytes, (True, False))
        return own, other, None, None
