"""Triton kernels of windowed attention: the cells inside a query's bounds count once.

A window over the whole grid (AnyUp without a window) goes to the dense kernels.
"""

import torch
from torch import Tensor

from upfeat.ops.triton import _cells, _common, head_averaged_attention


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    grid_size: tuple[int, int],
    row_bounds: Tensor,
    col_bounds: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output (B, R*C, K) and, for the backward, the log-sum-exp (B, heads, R*C) in base 2."""
    if _is_whole(grid_size, row_bounds, col_bounds):
        return head_averaged_attention.forward(query, key, value, num_heads=num_heads, scale=scale)
    _common.check_covered(query, key, value, query.shape[-1] // num_heads)
    _common.check_order_free()
    if query.shape[0] * query.shape[1] * value.shape[2] == 0:
        raise NotImplementedError("nothing to compute")
    size = len(row_bounds), len(col_bounds)
    out, lse = _cells.forward(
        _grid(query, size), _grid(key, grid_size), _grid(value, grid_size),
        _plan(query, grid_size, row_bounds, col_bounds),
        num_heads=num_heads, groups=1, scale=scale,
    )  # fmt: skip
    return _tokens(out), (lse,)


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residuals: tuple[Tensor, ...],
    *,
    num_heads: int,
    scale: float,
    grid_size: tuple[int, int],
    row_bounds: Tensor,
    col_bounds: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each in its input's type and shape."""
    if _is_whole(grid_size, row_bounds, col_bounds):
        return head_averaged_attention.backward(
            grad_output, query, key, value, residuals, num_heads=num_heads, scale=scale
        )
    size = len(row_bounds), len(col_bounds)
    grad_query, grad_key, grad_value = _cells.backward(
        _grid(grad_output, size), _grid(query, size), _grid(key, grid_size),
        _grid(value, grid_size), residuals[0], _plan(query, grid_size, row_bounds, col_bounds),
        num_heads=num_heads, groups=1, scale=scale,
    )  # fmt: skip
    return _tokens(grad_query), _tokens(grad_key), _tokens(grad_value)


def _is_whole(grid_size: tuple[int, int], row_bounds: Tensor, col_bounds: Tensor) -> bool:
    return all(
        bool((bounds[:, 0] == 0).all() and (bounds[:, 1] == cells).all())
        for bounds, cells in zip((row_bounds, col_bounds), grid_size, strict=True)
    )


def _plan(
    query: Tensor, grid_size: tuple[int, int], row_bounds: Tensor, col_bounds: Tensor
) -> _cells.CellPlan:
    counts = []
    for bounds, cells in zip((row_bounds, col_bounds), grid_size, strict=True):
        cell = torch.arange(cells)
        counts.append((cell >= bounds[:, :1]) & (cell < bounds[:, 1:]))  # (L, cells)
    return _cells.make_plan(counts[0], counts[1], query.device)


def _grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H*W, C) tokens as a (B, C, H, W) view."""
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


def _tokens(grid: Tensor) -> Tensor:
    return grid.permute(0, 2, 3, 1).flatten(1, 2)  # (B, H*W, C)
