"""Attention of each pixel to the window of cells around its own, cells outside being zero.

The two operators of SAPA (arXiv 2209.12866): inner products of a pixel's query with the keys of a
k x k window, and the weighted sum of the window's values. Beyond the border keys and values are
zero: such taps have the logit 0, take their share of the softmax and give nothing.

In bounded memory both are the operators of ``upfeat.ops.filters.reassembly`` on a grid with a
border of zeros; only the k * k weights of the pixels are kept.

Legend: B batch, d query/key channels, K value channels, h w cells, s_y s_x pixels a cell, k window.
"""

from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.filters.reassembly import window_products, window_reassembly
from upfeat.ops.runtime import dispatch


def similarity_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: int
) -> Tensor:
    """The definition: see `similarity_attention`."""
    scale = _check(query, key, value, kernel_size)
    dtype = dispatch.compute_dtype(query, key, value)
    with dispatch.without_autocast(query):
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
        max_bytes: bound on the buffers of both steps, beside the weights.

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
    if dispatch.wants_reference():
        return similarity_attention_reference(query, key, value, kernel_size)
    _check(query, key, value, kernel_size)
    border = (kernel_size // 2,) * 4
    logits = window_products(query, F.pad(key, border), kernel_size, max_bytes=max_bytes)
    weights = logits.softmax(1)[:, None]  # (B, 1, k * k, H', W')
    return window_reassembly(F.pad(value, border), weights, kernel_size, max_bytes=max_bytes)


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
    dispatch.check_heads(query, key, 1, 1)
    dispatch.check_same_place(query, key, value)
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
