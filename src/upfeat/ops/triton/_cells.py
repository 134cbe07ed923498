"""Triton kernels for queries on a fine grid that see a few cells of a coarse grid.

Windows and neighbourhoods are the same thing here: query (i, j) sees cell (r, c) as often as
``row_count[i, r] * col_count[j, c]`` says. A window has counts 0 and 1; a neighbourhood whose
dilated positions fall twice into one cell has a 2 there, which is ``+ log 2`` on the score.

A program takes a tile of queries and walks over the rectangle of cells that the tile can see, in
blocks; the counts mask what a single query cannot see. Values are shared by all heads (one group)
or split among them (a group per head)::

    P_h = softmax(q_h k_h^T scale + log count)     A = mean of P_h over the heads of a group
    out = A V                                      G = dO V^T / heads of a group
    dV = A^T dO                                    dS_h = P_h * (G - rowsum(P_h * G))
    dQ_h = scale * dS_h K_h                        dK_h = scale * dS_h^T Q_h

Legend: B batch, R C query grid, h w coarse grid, d query/key channels, K value channels.
"""

# Kernels are a language of their own: untyped, and tuples grow by concatenation.
# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from upfeat.ops.runtime import block_bytes
from upfeat.ops.triton import _common
from upfeat.ops.triton._common import (
    HIDDEN,
    LOG2_E,
    dot,
    load_tile,
    online_sum,
    scores_in_base_2,
    store_tile,
)

TILE_SIDE = 8


@dataclass(frozen=True)
class CellPlan:
    """Who sees what: log2 counts (R, h) and (C, w), and the cells (first, stop) of each tile."""

    row_bias: Tensor
    col_bias: Tensor
    row_spans: Tensor
    col_spans: Tensor
    tiles: int
    max_cells: int

    def tables(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, int, int, int, int]:
        """Leading arguments of every kernel."""
        sizes = (*self.row_bias.shape, *self.col_bias.shape)  # R, h, C, w
        tables = self.row_bias, self.col_bias, self.row_spans, self.col_spans
        return *tables, *sizes, self.col_spans.shape[0]


def make_plan(row_counts: Tensor, col_counts: Tensor, device: torch.device) -> CellPlan:
    """The plan for how often each row (R, h) and column (C, w) sees the cells of its axis."""
    spans = [_tile_spans(counts) for counts in (row_counts, col_counts)]
    widest = [int((span[:, 1] - span[:, 0]).max()) for span in spans]
    biases = [
        counts.to(torch.float32).log2().clamp(min=HIDDEN.value)
        for counts in (row_counts, col_counts)
    ]
    return CellPlan(
        biases[0].to(device),
        biases[1].to(device),
        spans[0].to(device),
        spans[1].to(device),
        tiles=len(spans[0]) * len(spans[1]),
        max_cells=widest[0] * widest[1],
    )


def _tile_spans(counts: Tensor) -> Tensor:
    """(L, cells) counts to (tiles, 2): first cell and last cell + 1 that a tile sees."""
    length, cells = counts.shape
    seen = F.pad((counts > 0).to(torch.int32), (0, 0, 0, -length % TILE_SIDE))
    seen = seen.unflatten(0, (-1, TILE_SIDE)).amax(1)  # (tiles, cells)
    first, after = seen.argmax(1), seen.flip(1).argmax(1)
    return torch.stack((first, cells - after), dim=1).to(torch.int32)


@triton.jit
def _tile(tile, row_spans, col_spans, rows, cols, tile_cols, TILE: tl.constexpr):
    """The queries of a tile, and the rectangle of cells: corner, width, number of cells."""
    at = tl.arange(0, TILE * TILE)
    i = tile // tile_cols * TILE + at // TILE
    j = tile % tile_cols * TILE + at % TILE
    row_span = row_spans + tile // tile_cols * 2
    col_span = col_spans + tile % tile_cols * 2
    top, left = tl.load(row_span), tl.load(col_span)
    wide = tl.load(col_span + 1) - left
    return i, j, (i < rows) & (j < cols), top, left, wide, (tl.load(row_span + 1) - top) * wide


@triton.jit
def _cells(start, top, left, wide, total, CELLS: tl.constexpr):
    """A block of the rectangle, row-major: rows, columns, and which of them exist."""
    at = start + tl.arange(0, CELLS)
    return top + at // wide, left + at % wide, at < total


@triton.jit
def _bias(row_bias, col_bias, i, j, inside, r, c, seen, grid_h, grid_w):
    """(M, N) log2 counts; `HIDDEN` where a query does not see a cell."""
    mask = inside[:, None] & seen[None, :]
    of_row = tl.load(row_bias + (i * grid_h)[:, None] + r[None, :], mask=mask, other=0.0)
    return of_row + tl.load(col_bias + (j * grid_w)[:, None] + c[None, :], mask=mask, other=0.0)


@triton.jit
def _offset(a, b, stride_a, stride_b):
    return a.to(tl.int64) * stride_a + b.to(tl.int64) * stride_b


@triton.jit
def _lse_kernel(
    row_bias, col_bias, row_spans, col_spans, rows, grid_h, cols, grid_w, tile_cols,
    q, k, lse, heads, width, qk_scale, q_b, q_c, q_i, q_j, k_b, k_c, k_i, k_j,
    WIDTH: tl.constexpr, TILE: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Per (tile, image and head): log2-sum-exp2 of the scores of visible cells."""
    image = (tl.program_id(1) // heads).to(tl.int64)
    first = tl.program_id(1) % heads * width
    i, j, inside, top, left, wide, total = _tile(
        tl.program_id(0), row_spans, col_spans, rows, cols, tile_cols, TILE
    )
    from_query = image * q_b + _offset(i, j, q_i, q_j)
    query = load_tile(q, from_query, inside, first, first + width, q_c, WIDTH)
    peak = tl.full([TILE * TILE], HIDDEN, tl.float32)
    sums = tl.zeros([TILE * TILE], tl.float32)
    for start in range(0, total, CELLS):
        r, c, seen = _cells(start, top, left, wide, total, CELLS)
        offset = image * k_b + _offset(r, c, k_i, k_j)
        key = load_tile(k, offset, seen, first, first + width, k_c, WIDTH)
        bias = _bias(row_bias, col_bias, i, j, inside, r, c, seen, grid_h, grid_w)
        peak, sums = online_sum(scores_in_base_2(query, key, seen, qk_scale) + bias, peak, sums)
    place = tl.program_id(1).to(tl.int64) * rows * cols + i * cols + j
    tl.store(lse + place, peak + tl.log2(sums), mask=inside)


@triton.jit
def _group_queries(
    q, lse, i, j, inside, rows, cols, group, width, q_c, q_i, q_j,
    HEADS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Tuples over the heads of a group: queries of the tile, their log-sum-exp."""
    queries = ()
    levels = ()
    for local in tl.static_range(HEADS):
        head = group * HEADS + local
        offset = _offset(i, j, q_i, q_j)
        tile = load_tile(q, offset, inside, head * width, (head + 1) * width, q_c, WIDTH)
        place = head.to(tl.int64) * rows * cols + i * cols + j
        queries = queries + (tile,)
        levels = levels + (tl.load(lse + place, mask=inside, other=0.0),)
    return queries, levels


@triton.jit
def _group_weights(
    queries, levels, bias, k, offset, seen, group, width, qk_scale, k_c,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """(M, N) weights averaged over the heads of a group."""
    weights = tl.zeros([TILE * TILE, CELLS], tl.float32)
    for local in tl.static_range(HEADS):
        first = (group * HEADS + local) * width
        key = load_tile(k, offset, seen, first, first + width, k_c, WIDTH)
        scores = scores_in_base_2(queries[local], key, seen, qk_scale) + bias
        weights += tl.exp2(scores - levels[local][:, None])
    return weights / HEADS


@triton.jit
def _apply_kernel(
    row_bias, col_bias, row_spans, col_spans, rows, grid_h, cols, grid_w, tile_cols,
    q, k, v, lse, out, groups, channels, value_tiles, width, qk_scale,
    q_b, q_c, q_i, q_j, k_b, k_c, k_i, k_j, v_b, v_c, v_i, v_j,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    TILE: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Per (tile, image, group and tile of its ``channels`` values): weights times values."""
    image = (tl.program_id(1) // value_tiles // groups).to(tl.int64)
    group = tl.program_id(1) // value_tiles % groups
    first = group * channels + tl.program_id(1) % value_tiles * CHANNELS
    stop = (group + 1) * channels
    i, j, inside, top, left, wide, total = _tile(
        tl.program_id(0), row_spans, col_spans, rows, cols, tile_cols, TILE
    )
    queries, levels = _group_queries(
        q + image * q_b, lse + image * groups * HEADS * rows * cols, i, j, inside, rows, cols,
        group, width, q_c, q_i, q_j, HEADS, WIDTH,
    )  # fmt: skip
    mixed = tl.zeros([TILE * TILE, CHANNELS], tl.float32)
    for start in range(0, total, CELLS):
        r, c, seen = _cells(start, top, left, wide, total, CELLS)
        bias = _bias(row_bias, col_bias, i, j, inside, r, c, seen, grid_h, grid_w)
        offset = image * k_b + _offset(r, c, k_i, k_j)
        weights = _group_weights(
            queries, levels, bias, k, offset, seen, group, width, qk_scale, k_c,
            HEADS, WIDTH, TILE, CELLS,
        )  # fmt: skip
        offset = image * v_b + _offset(r, c, v_i, v_j)
        value = load_tile(v, offset, seen, first, stop, v_c, CHANNELS)
        mixed += dot(weights.to(value.dtype), value)
    place = (image * rows * cols + i * cols + j) * (groups * channels)
    store_tile(out, mixed, place, inside, first, stop, CHANNELS)


@triton.jit
def _grad_value_kernel(
    row_bias, col_bias, row_spans, col_spans, rows, grid_h, cols, grid_w, tile_cols,
    q, k, v, lse, grad_out, grad_mean, grad_v, first_tile, max_cells, groups, channels, width,
    qk_scale, q_b, q_c, q_i, q_j, k_b, k_c, k_i, k_j, v_b, v_c, v_i, v_j, o_b, o_c, o_i, o_j,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    TILE: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Per (tile, image and group): writes G of the tile, adds the tile's share of dV."""
    image = (tl.program_id(1) // groups).to(tl.int64)
    group = tl.program_id(1) % groups
    i, j, inside, top, left, wide, total = _tile(
        first_tile + tl.program_id(0), row_spans, col_spans, rows, cols, tile_cols, TILE
    )
    queries, levels = _group_queries(
        q + image * q_b, lse + image * groups * HEADS * rows * cols, i, j, inside, rows, cols,
        group, width, q_c, q_i, q_j, HEADS, WIDTH,
    )  # fmt: skip
    tile = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    at = (tile * TILE * TILE + tl.arange(0, TILE * TILE)) * max_cells
    grad_out += image * o_b
    from_query = _offset(i, j, o_i, o_j)
    for start in range(0, total, CELLS):
        r, c, seen = _cells(start, top, left, wide, total, CELLS)
        bias = _bias(row_bias, col_bias, i, j, inside, r, c, seen, grid_h, grid_w)
        offset = image * k_b + _offset(r, c, k_i, k_j)
        weights = _group_weights(
            queries, levels, bias, k, offset, seen, group, width, qk_scale, k_c,
            HEADS, WIDTH, TILE, CELLS,
        ).to(grad_out.dtype.element_ty)  # fmt: skip
        from_value = image * v_b + _offset(r, c, v_i, v_j)
        to_value = ((image * grid_h + r) * grid_w + c) * (groups * channels)
        grad = tl.zeros([TILE * TILE, CELLS], tl.float32)
        for first in range(group * channels, (group + 1) * channels, CHANNELS):
            stop = (group + 1) * channels
            grad_tile = load_tile(grad_out, from_query, inside, first, stop, o_c, CHANNELS)
            value = load_tile(v, from_value, seen, first, stop, v_c, CHANNELS)
            grad += dot(grad_tile, tl.trans(value))
            channel = first + tl.arange(0, CHANNELS)
            tl.atomic_add(
                grad_v + to_value[:, None] + channel[None, :],
                dot(tl.trans(weights), grad_tile),
                mask=seen[:, None] & (channel < stop)[None, :],
                sem="relaxed",
            )
        store_tile(grad_mean, grad / HEADS, at, inside, start, total, CELLS)


@triton.jit
def _grad_score_kernel(
    row_bias, col_bias, row_spans, col_spans, rows, grid_h, cols, grid_w, tile_cols,
    q, k, lse, grad_mean, grad_q, grad_k, first_tile, max_cells, heads, width, qk_scale, scale,
    q_b, q_c, q_i, q_j, k_b, k_c, k_i, k_j,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, TILE: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Per (tile, image and head): writes dQ, adds the tile's share of dK."""
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    first, stop = head * width, (head + 1) * width
    i, j, inside, top, left, wide, total = _tile(
        first_tile + tl.program_id(0), row_spans, col_spans, rows, cols, tile_cols, TILE
    )
    from_query = image * q_b + _offset(i, j, q_i, q_j)
    query = load_tile(q, from_query, inside, first, stop, q_c, WIDTH)
    place = tl.program_id(1).to(tl.int64) * rows * cols + i * cols + j
    level = tl.load(lse + place, mask=inside, other=0.0)
    tile = (tl.program_id(1) // HEADS).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    at = (tile * TILE * TILE + tl.arange(0, TILE * TILE)) * max_cells
    row_sum = tl.zeros([TILE * TILE], tl.float32)
    for start in range(0, total, CELLS):
        r, c, seen = _cells(start, top, left, wide, total, CELLS)
        offset = image * k_b + _offset(r, c, k_i, k_j)
        key = load_tile(k, offset, seen, first, stop, k_c, WIDTH)
        bias = _bias(row_bias, col_bias, i, j, inside, r, c, seen, grid_h, grid_w)
        scores = scores_in_base_2(query, key, seen, qk_scale) + bias
        grad = load_tile(grad_mean, at, inside, start, total, 1, CELLS)
        row_sum += tl.sum(tl.exp2(scores - level[:, None]) * grad, axis=1)
    grad_query = tl.zeros([TILE * TILE, WIDTH], tl.float32)
    channel = first + tl.arange(0, WIDTH)
    for start in range(0, total, CELLS):
        r, c, seen = _cells(start, top, left, wide, total, CELLS)
        offset = image * k_b + _offset(r, c, k_i, k_j)
        key = load_tile(k, offset, seen, first, stop, k_c, WIDTH)
        bias = _bias(row_bias, col_bias, i, j, inside, r, c, seen, grid_h, grid_w)
        scores = scores_in_base_2(query, key, seen, qk_scale) + bias
        grad = load_tile(grad_mean, at, inside, start, total, 1, CELLS) - row_sum[:, None]
        grad = (tl.exp2(scores - level[:, None]) * grad).to(key.dtype)
        grad_query += dot(grad, key)
        to_key = ((image * grid_h + r) * grid_w + c) * (heads * width)
        tl.atomic_add(
            grad_k + to_key[:, None] + channel[None, :],
            dot(tl.trans(grad), query) * scale,
            mask=seen[:, None] & (channel < stop)[None, :],
            sem="relaxed",
        )
    place = (image * rows * cols + i * cols + j) * (heads * width)
    store_tile(grad_q, grad_query * scale, place, inside, first, stop, WIDTH)


def _launch(query: Tensor, num_heads: int) -> dict[str, int]:
    """Block sizes and warps. Exact float32 products hold their factors in registers: small ones."""
    whole = query.dtype == torch.float32
    return {
        "WIDTH": _common.block(query.shape[1] // num_heads),
        "TILE": TILE_SIDE,
        "CELLS": 16 if whole else 32 if _common.interpreted() else 64,
        "num_warps": 8 if whole else 4,
        "num_stages": 1,  # one or two blocks of cells: nothing to prefetch
    }


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    plan: CellPlan,
    *,
    num_heads: int,
    groups: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Query (B, d, R, C), key (B, d, h, w), value (B, K, h, w), any strides.

    Returns:
        Output (B, K, R, C) in channels_last strides; log-sum-exp (B, heads, R * C) in base 2.
    """
    query, key = _common.one_type(query, key)
    batch, dim, rows, cols = query.shape
    channels = value.shape[1] // groups
    out = value.new_empty(batch, rows, cols, value.shape[1]).permute(0, 3, 1, 2)
    lse = torch.empty(batch, num_heads, rows * cols, device=query.device, dtype=torch.float32)
    size = _common.block(channels, 64 if value.dtype == torch.float32 else 128)
    tiles, launch = triton.cdiv(channels, size), _launch(query, num_heads)
    with _common.on_device(query):
        _lse_kernel[(plan.tiles, batch * num_heads)](
            *plan.tables(), query, key, lse, num_heads, dim // num_heads, scale * LOG2_E,
            *query.stride(), *key.stride(), **launch,
        )  # fmt: skip
        _apply_kernel[(plan.tiles, batch * groups * tiles)](
            *plan.tables(), query, key, value, lse, out, groups, channels, tiles, dim // num_heads,
            scale * LOG2_E, *query.stride(), *key.stride(), *value.stride(),
            HEADS=num_heads // groups, CHANNELS=size, **launch | {"num_warps": 8},
        )  # fmt: skip
    return out, lse


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    plan: CellPlan,
    *,
    num_heads: int,
    groups: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients in the shapes and types of the inputs; G is held for a chunk of tiles at a time."""
    types = query.dtype, key.dtype, value.dtype
    query, key = _common.one_type(query, key)
    batch, dim, rows, cols = query.shape
    channels = value.shape[1] // groups
    grad_query = query.new_empty(batch, rows, cols, dim)
    grad_key = query.new_zeros(batch, *key.shape[2:], dim, dtype=torch.float32)
    grad_value = query.new_zeros(batch, *value.shape[2:], value.shape[1], dtype=torch.float32)
    per_tile = batch * groups * TILE_SIDE**2 * plan.max_cells
    chunk = min(plan.tiles, max(1, block_bytes(query.device) // (4 * per_tile)))
    grad_mean = query.new_empty(chunk * per_tile, dtype=torch.float32)
    width, group_heads = dim // num_heads, num_heads // groups
    size = _common.block(channels, 32 if value.dtype == torch.float32 else 64)
    launch = _launch(query, num_heads) | {"HEADS": group_heads}
    strides = (*query.stride(), *key.stride())
    with _common.on_device(query):
        for first in range(0, plan.tiles, chunk):
            tiles = min(chunk, plan.tiles - first)
            _grad_value_kernel[(tiles, batch * groups)](
                *plan.tables(), query, key, value, lse, grad_output, grad_mean, grad_value, first,
                plan.max_cells, groups, channels, width, scale * LOG2_E, *strides, *value.stride(),
                *grad_output.stride(), CHANNELS=size, **launch,
            )  # fmt: skip
            _grad_score_kernel[(tiles, batch * num_heads)](
                *plan.tables(), query, key, lse, grad_mean, grad_query, grad_key, first,
                plan.max_cells, num_heads, width, scale * LOG2_E, scale, *strides, **launch,
            )  # fmt: skip
    grads = zip((grad_query, grad_key, grad_value), types, strict=True)
    grad_q, grad_k, grad_v = (grad.permute(0, 3, 1, 2).to(dtype) for grad, dtype in grads)
    return grad_q, grad_k, grad_v
