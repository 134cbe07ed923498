"""Attention whose weights are averaged over the heads and applied to shared values.

    out = 1/heads * sum_h softmax(q_h k_h^T * scale) @ value

The weights step of JAFAR (arXiv 2506.11136) and AnyUp (arXiv 2510.12764): an output position is a
convex combination of raw features, so values are neither projected nor split into heads.

Legend: B batch, N queries, n keys, d query/key channels, K value channels.
"""

import torch
from torch import Tensor

from upfeat.ops import _dispatch


def head_averaged_attention_weights(
    query: Tensor, key: Tensor, num_heads: int, *, scale: float | None = None
) -> Tensor:
    """Head-averaged attention weights, materialised; for pictures and tests.

    Args:
        query: (B, N, d), any float type.
        key: (B, n, d).
        num_heads: heads are consecutive groups of ``d / num_heads`` channels.
        scale: factor on the inner products, default ``(d / num_heads) ** -0.5``.

    Returns:
        (B, N, n); rows sum to 1. Computed in float32 at least, returned in the query's type.

    Raises:
        ValueError: if channels, heads or ranks do not fit.

    Example:
        >>> import torch
        >>> weights = head_averaged_attention_weights(torch.zeros(1, 2, 8), torch.zeros(1, 4, 8), 2)
        >>> weights[0, 0].tolist()
        [0.25, 0.25, 0.25, 0.25]
    """
    _check(query, key, None, num_heads)
    scale = _default_scale(query, num_heads) if scale is None else scale
    dtype = _dispatch.compute_dtype(query, key)
    with _dispatch.without_autocast(query):
        q = query.to(dtype).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, N, d/heads)
        k = key.to(dtype).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, n, d/heads)
        weights = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)  # (B, heads, N, n)
        return weights.mean(1).to(query.dtype)  # (B, N, n)


def head_averaged_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, *, scale: float | None = None
) -> Tensor:
    """The definition, with all weights in memory. See `head_averaged_attention`."""
    _check(query, key, value, num_heads)
    dtype = _dispatch.compute_dtype(query, key, value)
    with _dispatch.without_autocast(query):
        weights = head_averaged_attention_weights(
            query.to(dtype), key.to(dtype), num_heads, scale=scale
        )  # (B, N, n)
        return (weights @ value.to(dtype)).to(value.dtype)  # (B, N, K)


def head_averaged_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    num_heads: int,
    *,
    scale: float | None = None,
    max_bytes: int | None = None,
) -> Tensor:
    """Mean over heads of softmax attention, applied to one set of values.

    Args:
        query: (B, N, d), any float type, any strides.
        key: (B, n, d).
        value: (B, n, K); K is free.
        num_heads: heads are consecutive groups of ``d / num_heads`` channels.
        scale: factor on the inner products, default ``(d / num_heads) ** -0.5``.
        max_bytes: bound on the temporaries, default `DEFAULT_MAX_BYTES`. The result does not
            depend on it beyond rounding.

    Returns:
        (B, N, K) in the type of ``value``; scores and softmax are computed in float32 at least.

    Raises:
        ValueError: if shapes, heads, types or devices do not fit.

    Example:
        >>> import torch
        >>> query, key = torch.randn(1, 100, 32), torch.randn(1, 16, 32)
        >>> head_averaged_attention(query, key, torch.randn(1, 16, 7), num_heads=4).shape
        torch.Size([1, 100, 7])
    """
    return head_averaged_attention_reference(query, key, value, num_heads, scale=scale)


def _default_scale(query: Tensor, num_heads: int) -> float:
    return (query.shape[-1] / num_heads) ** -0.5


def _check(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int) -> None:
    value = key if value is None else value
    if not (query.dim() == key.dim() == value.dim() == 3):
        raise ValueError(
            "query (B, N, d), key (B, n, d) and value (B, n, K) must have three axes, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}."
        )
    _dispatch.check_heads(query, key, num_heads, -1)
    _dispatch.check_same_place(query, key, value)
    if key.shape[1] != value.shape[1] or key.shape[1] == 0:
        raise ValueError(
            f"key has {key.shape[1]} positions and value {value.shape[1]}; they must agree and "
            "be at least 1."
        )
