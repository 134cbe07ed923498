"""Attention of each pixel to the window of cells around its own, cells outside being zero.

The two operators of SAPA (arXiv 2209.12866): inner products of a pixel's query with the keys of a
k x k window, and the weighted sum of the window's values. Beyond the border keys and values are
zero: such taps have the logit 0, take their share of the softmax and give nothing.

On a grid with a border of zeros that is the windowed attention of ``upfeat.ops``, which computes
it forward and backward in bounded memory.

Legend: B batch, d query/key channels, K value channels, h w cells, s_y s_x pixels a cell, k window.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops import _dispatch
from upfeat.ops.windowed_attention import windowed_attention


def similarity_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int
) -> Tensor:
    """The definition: see `similarity_attention`."""
    scale = _check(query, key, value, kernel_size)
    dtype = _dispatch.compute_dtype(query, key, value)
    with _dispatch.without_autocast(query):
        windows = _windows(key.to(dtype), kernel_size, scale)  # (B, d, k * k, H', W')
        logits = (query.to(dtype)[:, :, None] * windows).sum(1, keepdim=True)  # similarity
        weights = logits.softmax(2)  # (B, 1, k * k, H', W')
        out = (weights * _windows(value.to(dtype), kernel_size, scale)).sum(2)  # attention
    return out.to(value.dtype)


def similarity_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int, *, max_bytes: int | None = None
) -> Tensor:
    """Average the values of a window of cells with softmax weights of the inner products.

    Args:
        query: (B, d, s_y * h, s_x * w), one for each pixel.
        key: (B, d, h, w).
        value: (B, K, h, w).
        kernel_size: k, odd; the window is centred at the cell that holds the pixel.
        max_bytes: bound on the temporaries.

    Returns:
        (B, K, s_y * h, s_x * w) in the type of ``value``; products are not scaled.

    Raises:
        ValueError: the shapes do not fit each other.

    Example:
        >>> import torch
        >>> query, ones = torch.zeros(1, 2, 4, 4), torch.ones(1, 2, 2, 2)
        >>> out = similarity_attention(query, ones, ones[:, :1], kernel_size=3)
        >>> round(out[0, 0, 0, 0].item(), 3)  # four of nine taps are inside
        0.444
    """
    if _dispatch.wants_reference():
        return similarity_attention_reference(query, key, value, kernel_size)
    scale = _check(query, key, value, kernel_size)
    reach = kernel_size // 2
    border = (reach,) * 4
    grid = (key.shape[2] + 2 * reach, key.shape[3] + 2 * reach)
    size = (query.shape[2], query.shape[3])
    out = windowed_attention(
        query.flatten(2).transpose(1, 2),  # (B, d, H', W') -> (B, N, d)
        F.pad(key, border).flatten(2).transpose(1, 2),  # -> (B, n, d)
        F.pad(value, border).flatten(2).transpose(1, 2),  # -> (B, n, K)
        num_heads=1,
        output_size=size,
        grid_size=grid,
        row_bounds=_bounds(size[0], scale[0], kernel_size),
        col_bounds=_bounds(size[1], scale[1], kernel_size),
        scale=1.0,
        max_bytes=max_bytes,
    )
    return out.transpose(1, 2).unflatten(2, size)  # (B, N, K) -> (B, K, H', W')


def _bounds(size: int, scale: int, kernel_size: int) -> Tensor:
    """First and last + 1 cell of the bordered grid that each pixel of an axis sees: (size, 2)."""
    first = torch.arange(size).div(scale, rounding_mode="floor")
    return torch.stack((first, first + kernel_size), dim=1)


def _windows(cells: Tensor, kernel_size: int, scale: tuple[int, int]) -> Tensor:
    """The window of every pixel: (B, C, h, w) -> (B, C, k * k, H', W'), zeros outside."""
    reach = kernel_size // 2
    taps = F.unfold(cells, kernel_size, padding=reach)  # (B, C * k * k, h * w)
    taps = taps.unflatten(1, (cells.shape[1], -1)).unflatten(3, cells.shape[2:])
    return taps.repeat_interleave(scale[0], 3).repeat_interleave(scale[1], 4)


def _check(query: Tensor, key: Tensor, value: Tensor, kernel_size: int) -> tuple[int, int]:
    """Pixels a cell along both axes, or ValueError."""
    if not (query.dim() == key.dim() == value.dim() == 4):
        raise ValueError(
            "query (B, d, H', W'), key (B, d, h, w) and value (B, K, h, w) must have four axes, "
            f"got {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}."
        )
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and positive, got {kernel_size}.")
    _dispatch.check_heads(query, key, 1, 1)
    _dispatch.check_same_place(query, key, value)
    if value.shape[2:] != key.shape[2:]:
        raise ValueError(
            f"key and value must share the grid, got {tuple(key.shape)} and {tuple(value.shape)}."
        )
    scale = (query.shape[2] // key.shape[2], query.shape[3] // key.shape[3])
    if min(scale) < 1 or query.shape[2:] != (scale[0] * key.shape[2], scale[1] * key.shape[3]):
        raise ValueError(
            f"queries for {tuple(query.shape[2:])} pixels are no whole multiple of the "
            f"{tuple(key.shape[2:])} cells."
        )
    return scale
