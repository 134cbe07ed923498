"""The definitions of the operators in plain torch: read first, nothing else in it.

Each function has the name and the arguments of its operator in ``upfeat.ops``, whose docstring
tells shapes, units and errors, and gives the same numbers with everything laid out in memory. The
operators call them while torch traces or transforms, and the tests compare both. Inputs are not
checked here. Scores, weights and sums are float32 at least.

Legend: B batch, C or K channels of values, d channels of queries and keys, H' W' output grid, R C'
its computed rows and columns, h w low-resolution grid, N queries, n keys, k side of a window.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.images import Padding, border_index
from upfeat.ops.runtime import compute_dtype, is_transformed, without_autocast
from upfeat.ops.symbolic import linspace

Span = tuple[int, int]

# -- attention -------------------------------------------------------------------------------------


def head_averaged_attention(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, *, scale: float | None = None
) -> Tensor:
    """Return 1/heads * sum_h softmax(q_h k_h^T * scale) @ value, (B, N, K)."""
    dtype = compute_dtype(query, key, value)
    with without_autocast(query):
        weights = _scores(query, key, num_heads, scale, dtype).softmax(-1).mean(1)  # (B, N, n)
        return (weights @ value.to(dtype)).to(value.dtype)


def _scores(
    query: Tensor, key: Tensor, num_heads: int, scale: float | None, dtype: torch.dtype
) -> Tensor:
    """Inner products of each head, (B, heads, N, n)."""
    scale = (query.shape[-1] / num_heads) ** -0.5 if scale is None else scale
    # (B, L, d) -> (B, heads, L, d / heads)
    q, k = (t.to(dtype).unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (query, key))
    return q @ k.mT * scale


def window_bounds(
    output_size: tuple[int, int], grid_size: tuple[int, int], window_ratio: float
) -> tuple[Tensor, Tensor]:
    """Cells of the low-resolution grid that each output row and column may see.

    The arithmetic is float32 step by step, as in the published model, so that cells on the edge of
    a window fall on the same side.

    Args:
        output_size: (H', W').
        grid_size: (h, w).
        window_ratio: half width of the window as a share of the image; 0 or less means no window.

    Returns:
        Row bounds (H', 2) and column bounds (W', 2), int64 on the CPU: first cell, last cell + 1.

    Example:
        >>> rows, cols = window_bounds((4, 4), (8, 8), 0.1)
        >>> rows.tolist()
        [[0, 2], [2, 4], [4, 6], [6, 8]]
    """
    rows, cols = (
        _axis_bounds(length, cells, window_ratio)
        for length, cells in zip(output_size, grid_size, strict=True)
    )
    return rows, cols


def _axis_bounds(length: int, cells: int, ratio: float) -> Tensor:
    if ratio <= 0:
        return torch.tensor([[0, cells]]).expand(length, 2)
    centre = (torch.arange(length, dtype=torch.float32) + 0.5) / length  # (L,)
    first = torch.floor((centre - ratio).clamp(0, 1) * cells)
    stop = torch.ceil((centre + ratio).clamp(0, 1) * cells)
    return torch.stack((first, stop), dim=1).long()  # (L, 2)


def visible_cells(bounds: Tensor, cells: int) -> Tensor:
    """Bounds (L, 2) to an (L, cells) boolean table."""
    cell = torch.arange(cells)
    return (cell >= bounds[:, :1]) & (cell < bounds[:, 1:])


def windowed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    output_size: tuple[int, int],
    grid_size: tuple[int, int],
    window_ratio: float = 0,
    row_bounds: Tensor | None = None,
    col_bounds: Tensor | None = None,
    rows: Span | None = None,
    cols: Span | None = None,
    scale: float | None = None,
) -> Tensor:
    """Head-averaged attention with a mask over all queries and keys, (B, R C', K)."""
    made = window_bounds(output_size, grid_size, window_ratio)
    row_bounds = made[0] if row_bounds is None else row_bounds
    col_bounds = made[1] if col_bounds is None else col_bounds
    see_rows = visible_cells(_part(row_bounds, rows), grid_size[0])  # (R, h)
    see_cols = visible_cells(_part(col_bounds, cols), grid_size[1])  # (C', w)
    visible = see_rows[:, None, :, None] & see_cols[None, :, None, :]  # (R, C', h, w)
    visible = visible.flatten(2).flatten(0, 1).to(query.device)  # (R C', h w)
    dtype = compute_dtype(query, key, value)
    with without_autocast(query):
        scores = _scores(query, key, num_heads, scale, dtype)  # (B, heads, R C', h w)
        weights = scores.masked_fill(~visible, float("-inf")).softmax(-1).mean(1)  # (B, R C', h w)
        return (weights @ value.to(dtype)).to(value.dtype)


def _part(table: Tensor, span: Span | None) -> Tensor:
    return table if span is None else table[slice(*span)]


def neighbor_cells(length: int, cells: int, kernel_size: int, dilation: int) -> Tensor:
    """Coarse cells that the queries of one axis attend to.

    Query i has residue g = i mod D and place p = i div D in its residue class of n positions; its
    first neighbour is clamp(p - K//2, 0, n - K): windows at the border are shifted, never cut.
    The cell of a fine position is the one that torch's own nearest-exact resizing takes.

    Args:
        length: fine positions H'.
        cells: coarse cells h.
        kernel_size: K.
        dilation: D, with K * D <= H'.

    Returns:
        (H', K) int64 on the CPU. For an integer ratio the cells are K distinct consecutive ones,
        otherwise cells may repeat or be skipped.

    Raises:
        ValueError: if K * D exceeds the length.

    Example:
        >>> neighbor_cells(8, 4, kernel_size=3, dilation=2).tolist()[:4]
        [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    """
    if kernel_size < 1 or dilation < 1 or kernel_size * dilation > length:
        raise ValueError(
            f"kernel_size {kernel_size} x dilation {dilation} must lie in 1..{length} (the query "
            f"positions of this axis; {cells} cells); use a smaller kernel or a larger grid."
        )
    index = torch.arange(length)
    residue, place = index % dilation, index // dilation
    class_size = (length - residue + dilation - 1) // dilation
    first = (place - kernel_size // 2).clamp(min=0).minimum(class_size - kernel_size)
    taps = first[:, None] + torch.arange(kernel_size)  # (H', K)
    positions = residue[:, None] + dilation * taps  # (H', K)
    return nearest_cells(length, cells)[positions]


def nearest_cells(length: int, cells: int, shift: float = 0.5) -> Tensor:
    """Return the cell that torch's resizing to ``length`` takes for each pixel, (length,) int64.

    Args:
        length: pixels of the axis.
        cells: cells of the axis.
        shift: 0.5 as "nearest-exact", 0 as "nearest".

    Example:
        >>> nearest_cells(4, 2).tolist()
        [0, 0, 1, 1]
    """
    factor = torch.ones((), dtype=torch.float32) * cells / length  # with torch's rounding
    place = torch.arange(length).to(torch.float32) + shift
    return (place * factor).floor().long().clamp(max=cells - 1)


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
) -> Tensor:
    """Gather the cells of every query, (B, C, R, C')."""
    size = (query.shape[2], query.shape[3]) if output_size is None else output_size
    tables = []
    for axis, span in enumerate((rows, cols)):
        cells = key.shape[2 + axis]
        kernel = kernel_size if isinstance(kernel_size, int) else kernel_size[axis]
        step = dilation if isinstance(dilation, int) else dilation and dilation[axis]
        table = neighbor_cells(size[axis], cells, kernel, step or size[axis] // cells)
        tables.append(_part(table, span).to(query.device))
    rows_of, cols_of = tables[0][:, None, :, None], tables[1][None, :, None, :]
    dtype = compute_dtype(query, key, value)
    scale = (query.shape[1] / num_heads) ** -0.5 if scale is None else scale
    with without_autocast(query):
        q = query.to(dtype).unflatten(1, (num_heads, -1))  # (B, heads, d/heads, R, C')
        k = key.to(dtype)[:, :, rows_of, cols_of].flatten(-2)  # (B, d, R, C', Ky*Kx)
        v = value.to(dtype)[:, :, rows_of, cols_of].flatten(-2)  # (B, C, R, C', Ky*Kx)
        k = k.unflatten(1, (num_heads, -1))  # (B, heads, d/heads, R, C', Ky*Kx)
        weights = (torch.einsum("bhdij,bhdijt->bhijt", q, k) * scale).softmax(-1)
        if head_values == "shared":
            out = torch.einsum("bijt,bcijt->bcij", weights.mean(1), v)  # (B, C, R, C')
        else:
            v = v.unflatten(1, (num_heads, -1))  # (B, heads, C/heads, R, C', Ky*Kx)
            out = torch.einsum("bhijt,bhcijt->bhcij", weights, v).flatten(1, 2)
        return out.to(value.dtype)


def local_attender(
    logits: Tensor,
    value: Tensor,
    offsets: Sequence[tuple[int, int]],
    *,
    padding: Padding = "replicate",
) -> Tensor:
    """Add the cells at the offsets one after the other, (B, C, H, W)."""
    dtype = compute_dtype(logits, value)
    height, width = value.shape[2:]
    step = (logits.shape[2] // height, logits.shape[3] // width)
    reach = max(max(abs(row), abs(col)) for row, col in offsets)
    with without_autocast(value):
        padded = value.to(dtype)
        for axis in (2, 3):  # (B, C, h, w) -> (B, C, h + 2r, w + 2r)
            index = border_index(value.shape[axis], reach, padding)
            padded = padded.index_select(axis, index.to(value.device))
        weights = logits.to(dtype).softmax(1)  # (B, n, H, W)
        # (B, n, H, W) -> (B, n, h, sy, w, sx)
        weights = weights.unflatten(3, (width, step[1])).unflatten(2, (height, step[0]))
        out = torch.zeros((), dtype=dtype, device=value.device)
        for tap, (row, col) in enumerate(offsets):
            row, col = row + reach, col + reach
            seen = padded[:, :, row : row + height, col : col + width]  # (B, C, h, w)
            out = out + weights[:, tap, None] * seen[:, :, :, None, :, None]
        # (B, C, h, sy, w, sx) -> (B, C, H, W)
        return out.flatten(4, 5).flatten(2, 3).to(value.dtype)


# -- filters ---------------------------------------------------------------------------------------


def adaptive_convolution(source: Tensor, kernel: Tensor, ratio: int = 1) -> Tensor:
    """Lay every window out and multiply it with the pixel's kernel, (B, C, H, W)."""
    height, width, k = kernel.shape[1:4]
    dtype = compute_dtype(source, kernel)
    with without_autocast(source):
        windows = F.unfold(source.to(dtype), k)  # (B, C k k, cells)
        cells = (source.shape[2] - k + 1, source.shape[3] - k + 1)
        windows = windows.unflatten(1, (-1, k * k)).unflatten(3, cells)  # (B, C, k k, h, w)
        windows = windows.repeat_interleave(ratio, 3).repeat_interleave(ratio, 4)
        windows = windows[..., :height, :width]
        weights = kernel.to(dtype).flatten(3)  # (B, H, W, k k)
        return torch.einsum("bctyx,byxt->bcyx", windows, weights).to(source.dtype)


def window_similarity(query: Tensor, source: Tensor, k: int) -> Tensor:
    """Lay every window out and multiply it with the pixel, (B, H, W, k, k)."""
    dtype = compute_dtype(query, source)
    with without_autocast(query):
        windows = F.unfold(source.to(dtype), k)  # (B, C k k, H W)
        windows = windows.unflatten(1, (-1, k, k)).unflatten(4, query.shape[2:])
        return torch.einsum("bcyx,bcijyx->byxij", query.to(dtype), windows).to(query.dtype)


def window_reassembly(features: Tensor, weights: Tensor, kernel_size: int) -> Tensor:
    """Add the taps of all windows one after the other, (B, C, H', W')."""
    dtype = compute_dtype(features, weights)
    groups, size = weights.shape[1], (weights.shape[3], weights.shape[4])
    taps = weights.to(dtype).unflatten(2, (kernel_size, kernel_size))  # (B, g, k, k, H', W')
    out = features.new_zeros((), dtype=dtype)
    for i in range(kernel_size):
        for j in range(kernel_size):
            pixel = _tap(features.to(dtype), kernel_size, i, j, size)  # (B, C, H', W')
            grouped = pixel.unflatten(1, (groups, -1))  # (B, g, C / g, H', W')
            out = out + grouped * taps[:, :, i, j, None]
    return out.flatten(1, 2).to(features.dtype)


def window_products(query: Tensor, cells: Tensor, kernel_size: int) -> Tensor:
    """Multiply each pixel with the taps of its window, (B, k * k, H', W')."""
    dtype, size = compute_dtype(query, cells), (query.shape[2], query.shape[3])
    products = [
        (query.to(dtype) * _tap(cells.to(dtype), kernel_size, i, j, size)).sum(1)
        for i in range(kernel_size)
        for j in range(kernel_size)
    ]
    return torch.stack(products, dim=1)


def _tap(cells: Tensor, k: int, i: int, j: int, size: tuple[int, int]) -> Tensor:
    """Tap (i, j) of every pixel's window: (B, C, h + k - 1, w + k - 1) -> (B, C, H', W')."""
    height, width = cells.shape[2] - k + 1, cells.shape[3] - k + 1
    seen = cells[:, :, i : i + height, j : j + width]  # (B, C, h, w)
    seen = seen.repeat_interleave(size[0] // height, 2)
    return seen.repeat_interleave(size[1] // width, 3)


# -- pixel by pixel --------------------------------------------------------------------------------


def unit_coordinates(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coordinates of one axis: equally spaced from 0 to 1 inclusive; one pixel gives 0.

    Example:
        >>> unit_coordinates(3, torch.float32, torch.device("cpu")).tolist()
        [0.0, 0.5, 1.0]
    """
    return linspace(0, 1, length, dtype=dtype, device=device)


def position_angles(freqs: Tensor, size: tuple[int, int], rows: Span | None = None) -> Tensor:
    """Return the angles of image rows ``rows`` (default all) as (rows, W, d), in float32 at least.

    Coordinates and angles are never made in half precision, whatever the weights are: at 448 pixels
    bfloat16 could not tell neighbours apart.
    """
    dtype = compute_dtype(freqs)
    row = _part(unit_coordinates(size[0], dtype, freqs.device), rows)  # (rows,)
    col = unit_coordinates(size[1], dtype, freqs.device)  # (W,)
    freqs = freqs.to(dtype)
    return row[:, None, None] * freqs[0] + (col[:, None] * freqs[1])  # (rows, W, d)


def half_rotation(x: Tensor) -> Tensor:
    """Map (a, b), the halves of the last axis, to (-b, a)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def position_code(x: Tensor, freqs: Tensor) -> Tensor:
    """Return x cos(angle) + rot(x) sin(angle), (B, d, H, W)."""
    with without_autocast(x):
        angle = position_angles(freqs, (x.shape[2], x.shape[3]))  # (H, W, d)
        pixels = x.permute(0, 2, 3, 1)  # (B, H, W, d)
        out = pixels * angle.cos().to(x.dtype) + half_rotation(pixels) * angle.sin().to(x.dtype)
        return out.permute(0, 3, 1, 2)  # (B, d, H, W)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis, PyTorch's own."""
    return F.rms_norm(x, weight.shape, weight, eps)


def group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """``F.group_norm`` of a map (B, d, H, W), of any strides within ``torch.func`` as well.

    There torch takes contiguous maps only.

    Example:
        >>> x = torch.randn(1, 4, 3, 5).contiguous(memory_format=torch.channels_last)
        >>> torch.func.vmap(lambda one: group_norm(one, 2))(x[None]).shape
        torch.Size([1, 1, 4, 3, 5])
    """
    return F.group_norm(x.contiguous() if is_transformed() else x, groups, weight, bias, eps)


class BlockWeights(NamedTuple):
    """Weights of one block: norms (c,) and (d,), ``conv1`` (d, c), ``conv2`` (d, d).

    ``shortcut`` (d, c) replaces the identity where c and d differ.
    """

    norm1_weight: Tensor
    norm1_bias: Tensor
    conv1: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    conv2: Tensor
    shortcut: Tensor | None = None


def pointwise_residual(x: Tensor, weights: BlockWeights, groups: int, eps: float) -> Tensor:
    """Return shortcut(x) + W2 SiLU(GN2(W1 SiLU(GN1(x)))), (B, d, H, W)."""
    w = BlockWeights(*(None if one is None else one.to(x.dtype) for one in weights))  # type: ignore[arg-type]
    hidden = F.silu(group_norm(x, groups, w.norm1_weight, w.norm1_bias, eps))
    hidden = F.conv2d(hidden, w.conv1[:, :, None, None])
    hidden = F.silu(group_norm(hidden, groups, w.norm2_weight, w.norm2_bias, eps))
    hidden = F.conv2d(hidden, w.conv2[:, :, None, None])
    shortcut = x if w.shortcut is None else F.conv2d(x, w.shortcut[:, :, None, None])
    return shortcut + hidden
