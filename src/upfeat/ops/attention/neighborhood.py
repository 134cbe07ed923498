"""Neighbourhood attention across scales: fine queries, keys and values on a coarse grid.

Equal to dilated neighbourhood attention (NATTEN) after nearest-exact resizing of keys and values to
the query grid, as NAF (arXiv 2511.18452) and AnyUp's NATTEN variant (arXiv 2510.12764) use it, but
computed on the coarse grid: a fine neighbour position is only a name for a coarse cell.

Legend: B batch, H' W' query grid, h w coarse grid, d query/key channels, C value channels.
"""

from typing import Any

import torch
from torch import Tensor

from upfeat.ops import reference
from upfeat.ops.attention._per_cell import attend_per_cell, neighbor_axis
from upfeat.ops.attention._tiled import LocalWindows, tiled_backward, tiled_forward
from upfeat.ops.reference import neighbor_cells
from upfeat.ops.runtime import dispatch
from upfeat.ops.symbolic import exporting, same_size

Span = tuple[int, int]


def cross_scale_neighborhood_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    kernel_size: int | tuple[int, int],
    output_size: tuple[int, int] | None = None,
    dilation: int | tuple[int, int] | None = None,
    head_values: str = "grouped",
    rows: Span | None = None,
    cols: Span | None = None,
    scale: float | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """Attention of each fine query to a fixed neighbourhood of coarse cells.

    The result is that of dilated neighbourhood attention after ``key`` and ``value`` were resized
    to the query grid by nearest-exact, also for non-integer ratios; no resized copy is made.

    Args:
        query: (B, d, R, C'), any strides (channels_last is fastest): the whole query grid, or the
            part that ``rows`` and ``cols`` name.
        key: (B, d, h, w), always the whole coarse grid.
        value: (B, C, h, w).
        num_heads: heads are consecutive groups of ``d / num_heads`` channels.
        kernel_size: K or (Ky, Kx); odd or even.
        output_size: (H', W') of the whole query grid; needed with ``rows`` or ``cols``, otherwise
            read from ``query``.
        dilation: D or (Dy, Dx), default (H' // h, W' // w).
        head_values: ``"grouped"``: channel group g of the values takes the weights of head g (NAF);
            ``"shared"``: all channels take the mean of the heads' weights (AnyUp).
        rows: (start, stop) of the query rows in ``query``, default all.
        cols: (start, stop) of the query columns in ``query``, default all.
        scale: factor on the inner products, default ``(d / num_heads) ** -0.5``.
        max_bytes: bound on the temporaries.

    Returns:
        (B, C, R, C') in the type of ``value``, in channels_last strides.

    Raises:
        ValueError: if shapes, heads, kernel, dilation, types or devices do not fit.

    Example:
        >>> import torch
        >>> query, key, value = (
        ...     torch.randn(1, 8, 12, 12),
        ...     torch.randn(1, 8, 4, 4),
        ...     torch.ones(1, 4, 4, 4),
        ... )
        >>> out = cross_scale_neighborhood_attention(query, key, value, num_heads=2, kernel_size=3)
        >>> out.shape, torch.allclose(out, torch.ones(()))
        (torch.Size([1, 4, 12, 12]), True)
    """
    whole = cols is None and (rows is None or same_size(rows, (0, query.shape[2])))
    if exporting() and dilation is None and whole:
        return _exported(query, key, value, num_heads, kernel_size, head_values == "shared", scale)
    row_cells, col_cells = _resolve_cells(
        query, key, value, num_heads, kernel_size, output_size, dilation, head_values, rows, cols
    )
    if dispatch.wants_reference():
        return reference.cross_scale_neighborhood_attention(
            query, key, value, num_heads, kernel_size=kernel_size, output_size=output_size,
            dilation=dilation, head_values=head_values, rows=rows, cols=cols, scale=scale,
        )  # fmt: skip
    size = (query.shape[2], query.shape[3]) if output_size is None else output_size
    hints = {
        "origin": (0 if rows is None else rows[0], 0 if cols is None else cols[0]),
        "cell_size": (size[0] / key.shape[2], size[1] / key.shape[3]),
    }
    return _BOUNDED(
        query,
        key,
        value,
        max_bytes,
        hints,
        num_heads=num_heads,
        scale=(query.shape[1] / num_heads) ** -0.5 if scale is None else scale,
        head_values=head_values,
        row_cells=row_cells,
        col_cells=col_cells,
    )


def _exported(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    kernel_size: int | tuple[int, int],
    shared_values: bool,
    scale: float | None,
) -> Tensor:
    """Compute the whole output cell by cell, for a graph that lays no window out for each pixel."""
    axes = []
    for axis, kernel in enumerate(_pair(kernel_size)):
        length, cells = query.shape[2 + axis], key.shape[2 + axis]
        table = neighbor_cells(length, cells, kernel, length // cells)
        axes.append(neighbor_axis(table, length, cells))
    scale = (query.shape[1] / num_heads) ** -0.5 if scale is None else scale
    tokens = _channels_last(query, key, value)
    out = attend_per_cell(
        tokens, (axes[0], axes[1]), num_heads, scale, shared_values=shared_values
    )  # (B, H', W', C)
    return out.permute(0, 3, 1, 2)


def _log_counts(cells: Tensor, grid: int) -> Tensor:
    """(L, K) neighbour cells to (L, grid): log of how often each cell is met.

    A cell met m times contributes m equal terms to the softmax: a bias of log m; unmet cells get
    minus infinity.
    """
    ones = torch.ones(cells.shape, dtype=torch.float64)
    return torch.zeros(len(cells), grid, dtype=torch.float64).scatter_add_(1, cells, ones).log_()


def _local_windows(key: Tensor, options: dict[str, Any]) -> LocalWindows:
    return LocalWindows(
        _log_counts(options["row_cells"], key.shape[2]),
        _log_counts(options["col_cells"], key.shape[3]),
        options["origin"],
        options["cell_size"],
    )


def _channels_last(*tensors: Tensor) -> list[Tensor]:
    """Views (B, C, H, W) as (B, H, W, C)."""
    return [t.permute(0, 2, 3, 1) for t in tensors]


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    head_values: str,
    max_bytes: int,
    **options: Any,
) -> Tensor:
    out = tiled_forward(
        _local_windows(key, options),
        *_channels_last(query, key, value),
        num_heads=num_heads,
        scale=scale,
        shared_values=head_values == "shared",
        max_bytes=max_bytes,
    )  # (B, R, C', C)
    return out.permute(0, 3, 1, 2)


def _backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    head_values: str,
    max_bytes: int,
    needs: tuple[bool, bool, bool],
    **options: Any,
) -> tuple[Tensor | None, ...]:
    grads = tiled_backward(
        _local_windows(key, options),
        *_channels_last(grad_output, query, key, value),
        num_heads=num_heads,
        scale=scale,
        shared_values=head_values == "shared",
        max_bytes=max_bytes,
    )
    return tuple(
        grad.permute(0, 3, 1, 2) if need else None for grad, need in zip(grads, needs, strict=True)
    )


def _pair(number: int | tuple[int, int]) -> tuple[int, int]:
    return (number, number) if isinstance(number, int) else (number[0], number[1])


def _resolve_cells(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    kernel_size: int | tuple[int, int],
    output_size: tuple[int, int] | None,
    dilation: int | tuple[int, int] | None,
    head_values: str,
    rows: Span | None,
    cols: Span | None,
) -> tuple[Tensor, Tensor]:
    """Check everything; the neighbour cells of the computed rows and columns."""
    if not (query.dim() == key.dim() == value.dim() == 4):
        raise ValueError(
            "query (B, d, R, C'), key (B, d, h, w) and value (B, C, h, w) must have four axes, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}."
        )
    dispatch.check_heads(query, key, num_heads, 1)
    dispatch.check_same_place(query, key, value)
    if key.shape[2:] != value.shape[2:]:
        raise ValueError(
            f"key grid {tuple(key.shape[2:])} and value grid {tuple(value.shape[2:])} differ."
        )
    if head_values not in ("grouped", "shared"):
        raise ValueError(f"head_values must be 'grouped' or 'shared', got {head_values!r}.")
    if head_values == "grouped" and value.shape[1] % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide the {value.shape[1]} value channels; choose a "
            "divisor, or head_values='shared'."
        )
    if output_size is None:
        if rows is not None or cols is not None:
            raise ValueError("give output_size (H', W') of the whole query grid with rows or cols.")
        output_size = (query.shape[2], query.shape[3])
    grid = (key.shape[2], key.shape[3])
    if dilation is None:
        dilation = (output_size[0] // grid[0], output_size[1] // grid[1])
        if 0 in dilation or 0 in grid:
            raise ValueError(
                f"the query grid {output_size} is smaller than the coarse grid {grid}; ask for an "
                "output at least as large as the features, or give a dilation."
            )
    tables = []
    for axis, span in enumerate((rows, cols)):
        length = output_size[axis]
        start, stop = (0, length) if span is None else span
        if not 0 <= start <= stop <= length:
            raise ValueError(f"{('rows', 'cols')[axis]}={span} does not lie in 0..{length}.")
        if query.shape[2 + axis] != stop - start:
            raise ValueError(
                f"query is {tuple(query.shape[2:])}, but the computed part of output_size "
                f"{output_size} with rows={rows}, cols={cols} differs on axis {axis}; pass the "
                "queries of that part only."
            )
        kernel, step = _pair(kernel_size)[axis], _pair(dilation)[axis]
        tables.append(neighbor_cells(length, grid[axis], kernel, step)[start:stop])
    return tables[0], tables[1]


_BOUNDED = dispatch.BoundedOperator("neighborhood_attention", _forward, _backward)
