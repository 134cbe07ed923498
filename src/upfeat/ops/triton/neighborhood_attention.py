"""Triton kernels of cross-scale neighbourhood attention: a cell may count several times.

For a non-integer ratio several of a query's dilated positions can lie in one cell; the softmax over
positions then equals a softmax over cells with those multiplicities.
"""

import torch
from torch import Tensor

from upfeat.ops.triton import _cells, _common


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    head_values: str,
    row_cells: Tensor,
    col_cells: Tensor,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output (B, C, R, C') and, for the backward, the log-sum-exp (B, heads, R*C') in base 2."""
    _common.check_covered(query, key, value, query.shape[1] // num_heads)
    _common.check_order_free()
    if query.numel() * value.numel() == 0:
        raise NotImplementedError("nothing to compute")
    out, lse = _cells.forward(
        query, key, value, _plan(key, row_cells, col_cells),
        num_heads=num_heads, groups=_groups(head_values, num_heads), scale=scale,
    )  # fmt: skip
    return out, (lse,)


def backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residuals: tuple[Tensor, ...],
    *,
    num_heads: int,
    scale: float,
    head_values: str,
    row_cells: Tensor,
    col_cells: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each in its input's type and shape."""
    return _cells.backward(
        grad_output, query, key, value, residuals[0], _plan(key, row_cells, col_cells),
        num_heads=num_heads, groups=_groups(head_values, num_heads), scale=scale,
    )  # fmt: skip


def _groups(head_values: str, num_heads: int) -> int:
    return num_heads if head_values == "grouped" else 1


def _plan(key: Tensor, row_cells: Tensor, col_cells: Tensor) -> _cells.CellPlan:
    counts = [
        torch.zeros(len(of_axis), length, dtype=torch.int32).scatter_add_(
            1, of_axis, torch.ones_like(of_axis, dtype=torch.int32)
        )
        for of_axis, length in zip((row_cells, col_cells), key.shape[2:], strict=True)
    ]
    return _cells.make_plan(counts[0], counts[1], key.device)
