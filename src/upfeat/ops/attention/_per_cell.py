"""Attention to the cells around each pixel as an exported graph computes it: cell by cell.

All pixels of a cell look into one window of cells, within which each sees its own: keys and values
are gathered once for each cell, and scores exist for pixels times window, where the operators'
definitions lay out pixels times cells. Every size may be a symbol.

Legend: B batch, H' W' output grid, h w low-resolution grid, S pixels of a cell along an axis (one
more where the ratio is no whole number), k cells of a window along an axis, d query/key channels,
e = d / heads, C value channels.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from upfeat.ops.runtime import compute_dtype, without_autocast
from upfeat.ops.symbolic import divides

HIDDEN = -1e30  # score of a cell that a pixel does not see; minus infinity would make NaN of spares


class Axis(NamedTuple):
    """Pixels and windows of the cells along one axis.

    Attributes:
        slots: S.
        pixels: (h * S,) pixel of each slot, or None where they are all pixels in their order.
        places: (H',) slot of each pixel, or None likewise.
        window: (h, k) cells that the pixels of a cell look at; beyond the grid the last repeats.
        bias: (h, S, k) what is added to their scores.
    """

    slots: int
    pixels: Tensor | None
    places: Tensor | None
    window: Tensor
    bias: Tensor


def window_axis(bounds: Tensor, length: int, cells: int, width: int) -> Axis:
    """Return the windows of pixels that see the cells from one bound up to the other.

    Args:
        bounds: (H', 2), first cell and last + 1 of each pixel.
        length: H'.
        cells: h.
        width: k, at least what the pixels of a cell see together; `radius_width`, `ratio_width`.
    """
    slots, pixels, places = _slots(length, cells)
    own = (bounds if pixels is None else bounds[pixels]).unflatten(0, (cells, slots))  # (h, S, 2)
    cell = own[:, :1, 0] + torch.arange(width)  # (h, k), from the first pixel's first cell
    seen = (cell[:, None] >= own[..., :1]) & (cell[:, None] < own[..., 1:])  # (h, S, k)
    return Axis(slots, pixels, places, cell.clamp(max=cells - 1), _bias(seen))


def neighbor_axis(table: Tensor, length: int, cells: int) -> Axis:
    """Return the windows of pixels that meet the cells of a table, some of them repeatedly.

    Args:
        table: (H', k) from `neighbor_cells`.
        length: H'.
        cells: h.
    """
    slots, pixels, places = _slots(length, cells)
    width = torch.sym_min(table.shape[1], cells)  # a ratio that is not whole may repeat cells
    first = (torch.arange(cells) - width // 2).clamp(max=cells - width).clamp(min=0)
    window = first[:, None] + torch.arange(width)  # (h, k)
    own = (table if pixels is None else table[pixels]).unflatten(0, (cells, slots))  # (h, S, k)
    times = (own[..., None, :] == window[:, None, :, None]).sum(-1)  # (h, S, k)
    bias = torch.where(times > 0, times.clamp(min=1).to(torch.float32).log(), HIDDEN)
    return Axis(slots, pixels, places, window, bias)


def radius_width(radius: float) -> int:
    """Return how many cells the pixels of a cell see together within a radius in cells.

    Example:
        >>> radius_width(2.0)
        5
    """
    return max(3, 2 * math.floor(radius + 0.5) + 1)


def ratio_width(ratio: float, cells: int) -> int:
    """Return the same for half a window as a share of the image; ``cells`` may be a symbol.

    Example:
        >>> ratio_width(0.1, 28)
        8
    """
    share = Fraction(ratio).limit_denominator(10**6)
    reach = (share.numerator * cells + share.denominator - 1) // share.denominator
    return 2 * reach + 2


def _bias(seen: Tensor) -> Tensor:
    return torch.where(seen, 0.0, HIDDEN)


def _slots(length: int, cells: int) -> tuple[int, Tensor | None, Tensor | None]:
    """Return S, the pixels of the slots and the slots of the pixels; see `Axis`."""
    if divides(cells, length):
        return length // cells, None, None
    slots = (length + cells - 1) // cells
    pixel = torch.arange(length)
    cell = ((2 * pixel + 1) * cells) // (2 * length)  # of the pixel's centre
    first = (2 * length * torch.arange(cells) + cells - 1) // (2 * cells)  # pixel of each cell
    pixels = (first[:, None] + torch.arange(slots)).clamp(max=length - 1).flatten()
    return slots, pixels, cell * slots + pixel - first[cell]


def attend_per_cell(
    tokens: Sequence[Tensor],
    axes: tuple[Axis, Axis],
    num_heads: int,
    scale: float,
    *,
    shared_values: bool = True,
) -> Tensor:
    """Attend from the pixels to the windows of their cells.

    Args:
        tokens: queries (B, H', W', d), keys (B, h, w, d) and values (B, h, w, C).
        axes: of rows and columns.
        num_heads: heads are consecutive groups of channels.
        scale: factor on the inner products.
        shared_values: all channels take the mean of the heads' weights; otherwise channel group g
            of the values takes those of head g.

    Returns:
        (B, H', W', C) in the type of the values.
    """
    query, key, value = tokens
    dtype = compute_dtype(query, key, value)
    rows, cols = axes
    with without_autocast(query):
        q = _by_cell(query.to(dtype), rows, cols)  # (B, h, w, S S, d)
        k, v = (_windows(t.to(dtype), rows, cols) for t in (key, value))  # (B, h, w, k k, d or C)
        # (B, h, w, L, d) -> (B, h, w, heads, L, e)
        q, k = (t.unflatten(4, (num_heads, -1)).transpose(3, 4) for t in (q, k))
        # (h, 1, S, 1, k, 1) and (1, w, 1, S, 1, k) -> (h, w, 1, S S, k k)
        bias = rows.bias[:, None, :, None, :, None] + cols.bias[None, :, None, :, None, :]
        bias = bias.flatten(4, 5).flatten(2, 3)[:, :, None].to(q.device, dtype)
        weights = (q @ k.mT * scale + bias).softmax(-1)  # (B, h, w, heads, S S, k k)
        if shared_values:
            out = weights.mean(3) @ v  # (B, h, w, S S, C)
        else:
            grouped = v.unflatten(4, (num_heads, -1)).transpose(3, 4)  # (B, h, w, heads, k k, C/h)
            out = (weights @ grouped).transpose(3, 4).flatten(4)
        return _on_grid(out, rows, cols).to(value.dtype)


def _by_cell(x: Tensor, rows: Axis, cols: Axis) -> Tensor:
    """(B, H', W', d) to (B, h, w, S S, d)."""
    for axis, one in ((1, rows), (2, cols)):
        x = x if one.pixels is None else x.index_select(axis, one.pixels.to(x.device))
    x = x.unflatten(2, (cols.window.shape[0], cols.slots))
    x = x.unflatten(1, (rows.window.shape[0], rows.slots))  # (B, h, S, w, S, d)
    return x.transpose(2, 3).flatten(3, 4)


def _windows(x: Tensor, rows: Axis, cols: Axis) -> Tensor:
    """(B, h, w, d) to the cells of each cell's window, (B, h, w, k k, d)."""
    for axis, one in ((2, cols), (1, rows)):
        x = x.index_select(axis, one.window.flatten().to(x.device))
        x = x.unflatten(axis, (one.window.shape[0], one.window.shape[1]))
    return x.transpose(2, 3).flatten(3, 4)  # (B, h, k, w, k, d) -> (B, h, w, k k, d)


def _on_grid(x: Tensor, rows: Axis, cols: Axis) -> Tensor:
    """(B, h, w, S S, C) to (B, H', W', C)."""
    x = x.unflatten(3, (rows.slots, cols.slots)).transpose(2, 3)  # (B, h, S, w, S, C)
    x = x.flatten(3, 4).flatten(1, 2)
    for axis, one in ((1, rows), (2, cols)):
        x = x if one.places is None else x.index_select(axis, one.places.to(x.device))
    return x
