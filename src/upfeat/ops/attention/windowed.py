"""Head-averaged attention restricted to a window around each query.

The local attention of AnyUp (arXiv 2510.12764): query (i, j) of the output grid sees the cells of
the low-resolution grid within ``window_ratio`` of the image around its centre, per axis. Work is
proportional to the window.

Legend: B batch, H' W' output grid, h w low-resolution grid, d query/key channels, K value channels.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from upfeat.ops import reference
from upfeat.ops.attention._per_cell import (
    attend_per_cell,
    radius_width,
    ratio_width,
    window_axis,
)
from upfeat.ops.attention._tiled import LocalWindows, tiled_backward, tiled_forward
from upfeat.ops.attention.head_averaged import head_averaged_attention
from upfeat.ops.coordinates import cell_bounds
from upfeat.ops.reference import visible_cells, window_bounds
from upfeat.ops.runtime import dispatch
from upfeat.ops.symbolic import exporting, same_size

Span = tuple[int, int]


def _operations_of_windows(
    query: Tensor, value: Tensor, row_bounds: Tensor, col_bounds: Tensor
) -> Tensor:
    """Two products of as many operations as the pairs within the windows take, on the meta device.

    The mask of the definition also computes the pairs that no window sees.
    """
    batch, count, dim = query.shape
    seen = [int((bounds[:, 1] - bounds[:, 0]).sum()) for bounds in (row_bounds, col_bounds)]
    pairs = seen[0] * seen[1]
    query.new_empty(batch, pairs, dim) @ query.new_empty(batch, dim, 1)  # scores
    value.new_empty(batch, 1, pairs) @ value.new_empty(batch, pairs, value.shape[2])  # mixing
    return value.new_empty(batch, count, value.shape[2])


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    output_size: tuple[int, int],
    grid_size: tuple[int, int],
    window_ratio: float | None = None,
    radius: float | None = None,
    row_bounds: Tensor | None = None,
    col_bounds: Tensor | None = None,
    rows: Span | None = None,
    cols: Span | None = None,
    scale: float | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """Head-averaged attention in which each query sees a window of the low-resolution grid.

    Args:
        query: (B, R*C, d), row-major over the computed part of the output grid: all of it, or the
            rows and columns that ``rows`` and ``cols`` name.
        key: (B, h*w, d), row-major over the low-resolution grid, always all of it.
        value: (B, h*w, K).
        num_heads: heads are consecutive groups of ``d / num_heads`` channels.
        output_size: (H', W') of the whole output, also when only a part is computed.
        grid_size: (h, w).
        window_ratio: half width of the window as a share of the image; 0 or less means no window.
            Not needed when both bounds are given.
        radius: half width of the window in cells instead, as `cell_bounds` takes it.
        row_bounds: (H', 2) instead of those of `window_bounds`.
        col_bounds: (W', 2) likewise.
        rows: (start, stop) of the output rows in ``query``, default all.
        cols: (start, stop) of the output columns in ``query``, default all.
        scale: factor on the inner products, default ``(d / num_heads) ** -0.5``.
        max_bytes: bound on the temporaries.

    Returns:
        (B, R*C, K) in the type of ``value``; scores and softmax are computed in float32 at least.

    Raises:
        ValueError: if shapes, heads, bounds, types or devices do not fit.

    Example:
        >>> import torch
        >>> query, key, value = torch.randn(1, 64, 8), torch.randn(1, 16, 8), torch.randn(1, 16, 3)
        >>> sizes = {"output_size": (8, 8), "grid_size": (4, 4), "window_ratio": 0.1}
        >>> out = windowed_attention(query, key, value, 2, **sizes)
        >>> band = windowed_attention(query[:, 16:32], key, value, 2, rows=(2, 4), **sizes)
        >>> torch.allclose(out[:, 16:32], band, atol=1e-6)
        True
    """
    if exporting() and (radius is not None or window_ratio) and _all_rows(rows, output_size):
        return _exported(
            query, key, value, num_heads, output_size, grid_size, window_ratio, radius, scale
        )
    if radius is not None:
        row_bounds, col_bounds = _cells_within(radius, output_size, grid_size)
    row_bounds, col_bounds = _resolve_bounds(
        query, key, value, num_heads, output_size, grid_size, window_ratio,
        row_bounds, col_bounds, rows, cols,
    )  # fmt: skip
    if dispatch.counts_operations():
        return _operations_of_windows(query, value, row_bounds, col_bounds)
    if dispatch.wants_reference():
        return reference.windowed_attention(
            query, key, value, num_heads, output_size=output_size, grid_size=grid_size,
            row_bounds=row_bounds, col_bounds=col_bounds, scale=scale,
        )  # fmt: skip
    if (
        visible_cells(row_bounds, grid_size[0]).all()
        and visible_cells(col_bounds, grid_size[1]).all()
    ):
        return head_averaged_attention(
            query, key, value, num_heads, scale=scale, max_bytes=max_bytes
        )
    hints = {
        "origin": (0 if rows is None else rows[0], 0 if cols is None else cols[0]),
        "cell_size": (output_size[0] / grid_size[0], output_size[1] / grid_size[1]),
    }
    return _BOUNDED(
        query,
        key,
        value,
        max_bytes,
        hints,
        num_heads=num_heads,
        scale=(query.shape[-1] / num_heads) ** -0.5 if scale is None else scale,
        grid_size=(grid_size[0], grid_size[1]),
        row_bounds=row_bounds,
        col_bounds=col_bounds,
    )


def _cells_within(
    radius: float, output_size: tuple[int, int], grid_size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    rows, cols = (
        cell_bounds(length, cells, radius)
        for length, cells in zip(output_size, grid_size, strict=True)
    )
    return rows, cols


def _all_rows(rows: Span | None, output_size: tuple[int, int]) -> bool:
    return rows is None or same_size(rows, (0, output_size[0]))


def _exported(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    output_size: tuple[int, int],
    grid_size: tuple[int, int],
    window_ratio: float | None,
    radius: float | None,
    scale: float | None,
) -> Tensor:
    """Compute the whole output cell by cell, for a graph whose sizes may be symbols."""
    if radius is not None:
        bounds = _cells_within(radius, output_size, grid_size)
        widths = [radius_width(radius)] * 2
    else:
        bounds = window_bounds(output_size, grid_size, window_ratio or 0)
        widths = [ratio_width(window_ratio or 0, cells) for cells in grid_size]
    rows, cols = (
        window_axis(*each) for each in zip(bounds, output_size, grid_size, widths, strict=True)
    )
    tokens = _on_grids((query, key, value), (output_size, grid_size, grid_size))
    scale = (query.shape[-1] / num_heads) ** -0.5 if scale is None else scale
    return attend_per_cell(tokens, (rows, cols), num_heads, scale).flatten(1, 2)


def _local_windows(options: dict[str, Any]) -> LocalWindows:
    biases = []
    for name, cells in zip(("row_bounds", "col_bounds"), options["grid_size"], strict=True):
        visible = visible_cells(options[name], cells)
        biases.append(torch.zeros(visible.shape).masked_fill(~visible, float("-inf")))
    return LocalWindows(biases[0], biases[1], options["origin"], options["cell_size"])


def _on_grids(tokens: Iterable[Tensor], sizes: Iterable[tuple[int, int]]) -> list[Tensor]:
    """(B, L, x) to (B, rows, columns, x)."""
    return [t.unflatten(1, size) for t, size in zip(tokens, sizes, strict=True)]


def _sizes(options: dict[str, Any]) -> list[tuple[int, int]]:
    fine = (len(options["row_bounds"]), len(options["col_bounds"]))
    return [fine, options["grid_size"], options["grid_size"]]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    max_bytes: int,
    **options: Any,
) -> Tensor:
    sizes = _sizes(options)
    fine = tiled_forward(
        _local_windows(options),
        *_on_grids((query, key, value), sizes),
        num_heads=num_heads,
        scale=scale,
        shared_values=True,
        max_bytes=max_bytes,
    )  # (B, R, C, K)
    return fine.flatten(1, 2)


def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    max_bytes: int,
    needs: tuple[bool, bool, bool],
    **options: Any,
) -> tuple[Tensor | None, ...]:
    fine = _sizes(options)[0]
    grads = tiled_backward(
        _local_windows(options),
        grad_output.unflatten(1, fine),
        *_on_grids((query, key, value), _sizes(options)),
        num_heads=num_heads,
        scale=scale,
        shared_values=True,
        max_bytes=max_bytes,
    )
    return tuple(g.flatten(1, 2) if need else None for g, need in zip(grads, needs, strict=True))


def _resolve_bounds(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    output_size: tuple[int, int],
    grid_size: tuple[int, int],
    window_ratio: float | None,
    row_bounds: Tensor | None,
    col_bounds: Tensor | None,
    rows: Span | None,
    cols: Span | None,
) -> tuple[Tensor, Tensor]:
    """Check everything; the bounds of the computed rows and columns, (R, 2) and (C, 2)."""
    if not (query.dim() == key.dim() == value.dim() == 3):
        raise ValueError(
            "query (B, R*C, d), key (B, h*w, d) and value (B, h*w, K) must have three axes, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}."
        )
    dispatch.check_heads(query, key, num_heads, -1)
    dispatch.check_same_place(query, key, value)
    cells = grid_size[0] * grid_size[1]
    if key.shape[1] != cells or value.shape[1] != cells or cells == 0:
        raise ValueError(
            f"grid_size {grid_size} has {cells} cells (at least 1 wanted), key has "
            f"{key.shape[1]} positions and value {value.shape[1]}; they must agree."
        )
    if row_bounds is None or col_bounds is None:
        if window_ratio is None:
            raise ValueError("give window_ratio, or both row_bounds and col_bounds.")
        made = window_bounds(output_size, grid_size, window_ratio)
        row_bounds = made[0] if row_bounds is None else row_bounds
        col_bounds = made[1] if col_bounds is None else col_bounds
    row_bounds = _slice_bounds(row_bounds, output_size[0], grid_size[0], rows, "row")
    col_bounds = _slice_bounds(col_bounds, output_size[1], grid_size[1], cols, "col")
    if query.shape[1] != len(row_bounds) * len(col_bounds):
        raise ValueError(
            f"query has {query.shape[1]} positions, the computed part of the output grid "
            f"{len(row_bounds)} x {len(col_bounds)}; pass the queries of rows={rows}, cols={cols} "
            f"of output_size {output_size} only."
        )
    return row_bounds, col_bounds


def _slice_bounds(bounds: Tensor, length: int, cells: int, span: Span | None, name: str) -> Tensor:
    if tuple(bounds.shape) != (length, 2):
        raise ValueError(
            f"{name}_bounds must be ({length}, 2) for this output_size, got {tuple(bounds.shape)}."
        )
    start, stop = (0, length) if span is None else span
    if not 0 <= start <= stop <= length:
        raise ValueError(f"{name}s={span} does not lie in 0..{length}.")
    bounds = bounds[start:stop].cpu()
    fits = (bounds[:, 0] >= 0) & (bounds[:, 0] < bounds[:, 1]) & (bounds[:, 1] <= cells)
    # A traced graph cannot branch on the bounds.
    if not (dispatch.wants_reference() or fits.all()):
        raise ValueError(
            f"each row of {name}_bounds must satisfy 0 <= first < stop <= {cells}; an empty window "
            "comes from a window_ratio too small for float32: raise it, or pass 0 for no window."
        )
    return bounds


_BOUNDED = dispatch.BoundedOperator("windowed_attention", _forward, _backward)
