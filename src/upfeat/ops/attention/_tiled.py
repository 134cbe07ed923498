"""Attention of a fine grid to windows of a coarse grid, tile by tile: the engine of two operators.

Query (i, j) scores cell (r, c) with a bias of row_bias[i, r] + col_bias[j, c]: minus infinity
outside its window, and log m for a cell that is met m times, which weighs it as m equal keys would
be. A tile of neighbouring queries is multiplied with the union of its windows; tiles side by side
form one batch. Work and memory follow the window, never the coarse grid.

Legend: B batch, R C fine rows and columns, h w coarse grid, d query/key channels, K value channels,
heads of query/key, G value groups (heads, or 1 if all heads share the values), T tiles in a run,
Q queries of a tile, U cells of the union of its windows.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from upfeat.ops.runtime import Scratch, compute_dtype, new_large, run_blocks, worker_count

# A gathered key or value element costs about as much as this many multiply-adds (measured).
_GATHER_COST = 40
_TILE_SIZES_IN_CELLS = (0, 0.25, 0.5, 1, 2, 3, 4, 6, 8, 12)


@dataclass(frozen=True)
class LocalWindows:
    """Which coarse cells the fine positions of the two axes see.

    Attributes:
        row_bias: (R, h) on the CPU: 0, log of a multiplicity, or minus infinity for unseen cells.
        col_bias: (C, w) likewise.
        origin: first computed row and column of the whole grid, so that tiles start on cells.
        cell_size: fine positions per coarse cell along rows and columns.
    """

    row_bias: Tensor
    col_bias: Tensor
    origin: tuple[int, int]
    cell_size: tuple[float, float]


@dataclass(frozen=True)
class _Tile:
    """Fine positions start..stop of an axis and the cells first..last of their windows."""

    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class _Run:
    """Tiles side by side that have one shape and windows of one shape."""

    rows: slice
    cols: slice
    cell_rows: slice
    firsts: list[int]  # first cell column of each window
    width: int  # Ux
    bias: Tensor | None  # (T, 1, Q, U)

    @property
    def tile(self) -> tuple[int, int]:
        return (
            self.rows.stop - self.rows.start,
            (self.cols.stop - self.cols.start) // len(self.firsts),
        )

    @property
    def window(self) -> tuple[int, int]:
        return self.cell_rows.stop - self.cell_rows.start, self.width

    @property
    def sizes(self) -> tuple[int, int, int]:
        """T, Q and U."""
        return len(self.firsts), self.tile[0] * self.tile[1], self.window[0] * self.window[1]

    def gather(self, grid: Tensor, buffer: Tensor) -> Tensor:
        """(G, h, w, x) to the windows of all tiles, (T, G, U, x)."""
        groups, height, width, _ = grid.shape
        cells = torch.arange(self.cell_rows.start, self.cell_rows.stop)[:, None] * width
        cells = (cells + torch.arange(self.width)).flatten()  # (U,), of a window at column 0
        groups_first = torch.arange(groups)[:, None] * height * width
        index = torch.tensor(self.firsts)[:, None, None] + groups_first + cells  # (T, G, U)
        index = index.flatten().to(grid.device)
        torch.index_select(grid.flatten(0, 2), 0, index, out=buffer.view(len(index), -1))
        return buffer

    def scatter_add(self, windows: Tensor, grid: Tensor) -> None:
        """Adds (T, G, U, x) to the cells of (G, h, w, x) they were gathered from."""
        for window, first in zip(windows.unflatten(2, self.window), self.firsts, strict=True):
            grid[:, self.cell_rows, first : first + self.width] += window

    def tokens(self, fine: Tensor, groups: int) -> Tensor:
        """A view of the tiles of (R, C, x): (T, groups, tile rows, tile columns, x / groups)."""
        part = fine[self.rows, self.cols].unflatten(1, (len(self.firsts), self.tile[1]))
        part = part.unflatten(-1, (groups, fine.shape[-1] // groups))  # (tile r, T, tile c, G, x)
        return part.permute(1, 3, 0, 2, 4)

    def split(self, fine: Tensor, buffer: Tensor) -> Tensor:
        """(R, C, G*x) to the queries of all tiles, (T, G, Q, x)."""
        buffer.unflatten(2, self.tile).copy_(self.tokens(fine, buffer.shape[1]))
        return buffer

    def merge(self, tiles: Tensor, fine: Tensor) -> None:
        """Writes (T, G, Q, x) to the tiles' place in (R, C, G*x)."""
        self.tokens(fine, tiles.shape[1]).copy_(tiles.unflatten(2, self.tile))


def tiled_forward(
    windows: LocalWindows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    shared_values: bool,
    max_bytes: int,
) -> Tensor:
    """Local attention of (B, R, C, d) to (B, h, w, d), values (B, h, w, K): (B, R, C, K)."""
    out = new_large(value, *query.shape[:3], value.shape[-1])
    groups, dtype = 1 if shared_values else num_heads, compute_dtype(query, key, value)
    share = max(1, max_bytes // worker_count(query.device))
    runs = list(_runs(windows, query, key, value, num_heads, 1, share, dtype))
    coarse = [
        _prepare(k, v, num_heads, groups, scale, dtype) for k, v in zip(key, value, strict=True)
    ]

    def attend(block: tuple[int, _Run], scratch: Scratch) -> None:
        item, run = block
        (k, v), run = coarse[item], _biased(run, windows, scratch)
        tiles, queries, _ = run.sizes
        _, _, weights = _weights(run, query[item], k, scratch)  # (T, heads, Q, U)
        if shared_values:
            weights = _sum_heads(weights)  # (T, 1, Q, U)
        v_window = _take(scratch, "value", run, v)  # (T, G, U, K/G)
        mixed = scratch.take("mixed", tiles, groups, queries, v.shape[-1])
        run.merge(_bmm(weights, v_window, mixed), out[item])

    blocks = [(item, run) for item in range(len(query)) for run in runs]
    run_blocks(blocks, attend, lambda: Scratch(query, dtype), query.device)
    return out


def tiled_backward(
    windows: LocalWindows,
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    shared_values: bool,
    max_bytes: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `tiled_forward`; the weights are computed again, tile by tile."""
    groups = 1 if shared_values else num_heads
    scratch = Scratch(query, compute_dtype(query, key, value))
    runs = list(_runs(windows, query, key, value, num_heads, 3, max_bytes, scratch.dtype))
    grad_query = query.new_empty(query.shape)
    grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
    for b in range(len(query)):
        k, v = _prepare(key[b], value[b], num_heads, groups, scale, scratch.dtype)
        grad_k, grad_v = torch.zeros_like(k), torch.zeros_like(v)
        for run in (_biased(run, windows, scratch) for run in runs):
            tiles, queries, cells = run.sizes
            q, k_window, weights = _weights(run, query[b], k, scratch)
            v_window = _take(scratch, "value", run, v)  # (T, G, U, K/G)
            grad_out = scratch.take("mixed", tiles, groups, queries, v.shape[-1])
            run.split(grad_output[b], grad_out)  # (T, G, Q, K/G)
            grad_weights = scratch.take("grad_weights", tiles, groups, queries, cells)
            _bmm(grad_out, v_window.transpose(2, 3), grad_weights)
            # Softmax: dS = P * (dP - rowsum(P * dP)); with shared values dP is the same for heads.
            grad_scores = scratch.take("grad_scores", *weights.shape)
            torch.mul(weights, grad_weights, out=grad_scores)
            grad_scores.addcmul_(weights, grad_scores.sum(-1, keepdim=True), value=-1)
            if shared_values:
                weights = _sum_heads(weights)  # (T, 1, Q, U)
            run.scatter_add(_bmm(weights.transpose(2, 3), grad_out, v_window), grad_v)
            grad_q = scratch.take("grad_query", *q.shape)
            run.merge(_bmm(grad_scores, k_window, grad_q), grad_query[b])
            run.scatter_add(_bmm(grad_scores.transpose(2, 3), q, k_window), grad_k)
        grad_key[b] = (grad_k * scale).permute(1, 2, 0, 3).flatten(2)  # (h, w, d)
        grad_v = grad_v / num_heads if shared_values else grad_v
        grad_value[b] = grad_v.permute(1, 2, 0, 3).flatten(2)  # (h, w, K)
    return grad_query, grad_key, grad_value


def _prepare(
    key: Tensor, value: Tensor, num_heads: int, groups: int, scale: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """(h, w, d) and (h, w, K) to (heads, h, w, d/heads), scaled, and (G, h, w, K/G)."""
    k = key.to(dtype).unflatten(-1, (num_heads, -1)) * scale
    v = value.to(dtype).unflatten(-1, (groups, value.shape[-1] // groups))
    if groups == 1:
        v = v if num_heads == 1 else v / num_heads  # the mean over heads, on the small side
    return k.permute(2, 0, 1, 3).contiguous(), v.permute(2, 0, 1, 3).contiguous()


def _weights(
    run: _Run, query: Tensor, key: Tensor, scratch: Scratch
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (T, heads, Q, x), key windows (T, heads, U, x) and weights (T, heads, Q, U)."""
    tiles, queries, cells = run.sizes
    heads, head_width = key.shape[0], key.shape[-1]
    q = run.split(query, scratch.take("query", tiles, heads, queries, head_width))
    k = _take(scratch, "key", run, key)
    scores = _bmm(q, k.transpose(2, 3), scratch.take("scores", tiles, heads, queries, cells))
    if run.bias is not None:
        scores.add_(run.bias)
    return q, k, torch.softmax(scores, -1, out=scores)


def _take(scratch: Scratch, name: str, run: _Run, grid: Tensor) -> Tensor:
    tiles, _, cells = run.sizes
    return run.gather(grid, scratch.take(name, tiles, grid.shape[0], cells, grid.shape[-1]))


def _bmm(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Batched product over the first two axes, into ``out``, which is contiguous."""
    torch.bmm(_fold(left), _fold(right), out=out.flatten(0, 1))
    return out


def _fold(tensor: Tensor) -> Tensor:
    """(T, G, a, b) to (T*G, a, b) without a copy (the head sum keeps G = 1 in wider strides)."""
    return tensor[:, 0] if tensor.shape[1] == 1 else tensor.flatten(0, 1)


def _sum_heads(weights: Tensor) -> Tensor:
    """(T, heads, Q, U) to (T, 1, Q, U), in the place of the first head."""
    for head in range(1, weights.shape[1]):
        weights[:, 0].add_(weights[:, head])
    return weights[:, :1]


def _biased(run: _Run, windows: LocalWindows, scratch: Scratch) -> _Run:
    """The run with its bias, or without where its windows need none."""
    row_bias = windows.row_bias[run.rows, run.cell_rows]  # (tile rows, Uy)
    steps = torch.arange(run.cols.start, run.cols.stop).view(len(run.firsts), -1)
    cells = torch.tensor(run.firsts)[:, None] + torch.arange(run.width)  # (T, Ux)
    col_bias = windows.col_bias[steps[:, :, None], cells[:, None]]  # (T, tile cols, Ux)
    if not (row_bias.any() or col_bias.any()):
        return run
    tiles, queries, union = run.sizes
    bias = scratch.take("bias", tiles, *run.tile, *run.window)  # (T, tile r, tile c, Uy, Ux)
    torch.add(
        row_bias[None, :, None, :, None].to(bias),
        col_bias[:, None, :, None, :].to(bias),
        out=bias,
    )
    return replace(run, bias=bias.view(tiles, 1, queries, union))


def _runs(
    windows: LocalWindows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    score_copies: int,
    max_bytes: int,
    dtype: torch.dtype,
) -> Iterator[_Run]:
    """Cuts the fine grid into tiles and joins tiles side by side while they fit the budget."""
    if 0 in query.shape:
        return
    channels = query.shape[-1] + value.shape[-1]

    def tile_bytes(queries: int, union: int) -> int:
        scores = (score_copies * num_heads + 1) * queries * union
        return dtype.itemsize * (scores + (queries + union) * channels)

    axes = (
        _Axis.of(windows.row_bias, windows.origin[0]),
        _Axis.of(windows.col_bias, windows.origin[1]),
    )
    size = _tile_size(axes, windows.cell_size, max_bytes, tile_bytes)
    row_tiles, col_tiles = (axis.tiles(side) for axis, side in zip(axes, size, strict=True))
    for row in row_tiles:
        for _, same in groupby(col_tiles, key=lambda tile: tile.stop - tile.start):
            group = list(same)
            width = max(tile.last - tile.first for tile in group)
            firsts = [min(tile.first, key.shape[2] - width) for tile in group]
            queries = (row.stop - row.start) * (group[0].stop - group[0].start)
            count = max(1, max_bytes // tile_bytes(queries, (row.last - row.first) * width))
            for i in range(0, len(group), count):
                part = group[i : i + count]
                yield _Run(
                    rows=slice(row.start, row.stop),
                    cols=slice(part[0].start, part[-1].stop),
                    cell_rows=slice(row.first, row.last),
                    firsts=firsts[i : i + count],
                    width=width,
                    bias=None,
                )


@dataclass(frozen=True)
class _Axis:
    """Which cells the fine positions of an axis see: the first (L,), and the one after the last."""

    first: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    last: "np.ndarray[tuple[int], np.dtype[np.int64]]"
    origin: int

    @classmethod
    def of(cls, bias: Tensor, origin: int) -> "_Axis":
        """Of a bias (L, cells)."""
        visible = (bias > float("-inf")).numpy()
        first = visible.argmax(1)
        return cls(first, bias.shape[1] - visible[:, ::-1].argmax(1), origin)

    def __len__(self) -> int:
        return len(self.first)

    def tiles(self, size: int) -> list[_Tile]:
        """Cut the axis at multiples of ``size`` of the whole axis."""
        starts = [0, *range(size - self.origin % size, len(self), size)]
        firsts = np.minimum.reduceat(self.first, starts).tolist()
        lasts = np.maximum.reduceat(self.last, starts).tolist()
        stops = [*starts[1:], len(self)]
        return [_Tile(*tile) for tile in zip(starts, stops, firsts, lasts, strict=True)]


def _tile_size(
    axes: tuple[_Axis, _Axis],
    cell_size: tuple[float, float],
    max_bytes: int,
    tile_bytes: Callable[[int, int], int],
) -> tuple[int, int]:
    """The tile with the least work per query among those that fit the budget.

    Larger tiles share gathered keys and values but multiply with a wider union of windows.
    """
    choices: list[tuple[bool, float, tuple[int, int]]] = []
    for cells in _TILE_SIZES_IN_CELLS:
        size, union = [], 1
        for axis, pixels in zip(axes, cell_size, strict=True):
            size.append(min(len(axis), max(1, math.ceil(cells * pixels))))
            union *= max(tile.last - tile.first for tile in axis.tiles(size[-1]))
        queries = size[0] * size[1]
        needed = tile_bytes(queries, union)
        misfit = needed > max_bytes
        cost = float(needed) if misfit else union * (1 + _GATHER_COST / queries)
        choices.append((misfit, cost, (size[0], size[1])))
    return min(choices)[2]
