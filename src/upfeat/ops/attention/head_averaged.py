"""Attention whose weights are averaged over the heads and applied to shared values.

    out = 1/heads * sum_h softmax(q_h k_h^T * scale) @ value

The weights step of JAFAR (arXiv 2506.11136) and AnyUp (arXiv 2510.12764): an output position is a
convex combination of raw features, so values are neither projected nor split into heads.

Legend: B batch, N queries, n keys, d query/key channels, K value channels.
"""

from functools import partial

import torch
from torch import Tensor

from upfeat.ops import reference
from upfeat.ops.runtime import (
    CACHE_BYTES,
    Scratch,
    dispatch,
    new_large,
    run_blocks,
    sum_parts,
    worker_count,
)
from upfeat.ops.symbolic import exporting, pieces

# A block of queries should stay in its core's cache between the steps; but below some queries the
# matrix products slow down more than the other steps gain.
_LEAST_QUERIES = 48
_JOINED = 4  # blocks that share one product with the values


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
    dtype = dispatch.compute_dtype(query, key)
    with dispatch.without_autocast(query):
        q = query.to(dtype).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, N, d/heads)
        k = key.to(dtype).unflatten(-1, (num_heads, -1)).transpose(1, 2)  # (B, heads, n, d/heads)
        weights = torch.softmax(q @ k.transpose(-1, -2) * scale, dim=-1)  # (B, heads, N, n)
        return weights.mean(1).to(query.dtype)  # (B, N, n)


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
        max_bytes: bound on the temporaries, default `operator_bytes`. The result does not
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
    _check(query, key, value, num_heads)
    if exporting():
        return _exported(query, key, value, num_heads, scale)
    if dispatch.wants_reference():
        return reference.head_averaged_attention(query, key, value, num_heads, scale=scale)
    scale = _default_scale(query, num_heads) if scale is None else scale
    return _BOUNDED(query, key, value, max_bytes, num_heads=num_heads, scale=scale)


def _exported(
    query: Tensor, key: Tensor, value: Tensor, num_heads: int, scale: float | None
) -> Tensor:
    """The definition, for some queries after the others where their number is known."""
    parts = [
        reference.head_averaged_attention(query[:, part], key, value, num_heads, scale=scale)
        for part in pieces(query.shape[1], num_heads * key.shape[1])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _blocks(
    num_queries: int, floats_per_query: int, query: Tensor, dtype: torch.dtype, max_bytes: int
) -> list[slice]:
    """Slices of queries whose buffers together fit in ``max_bytes``."""
    share = max_bytes // worker_count(query.device)
    size = max(1, share // (floats_per_query * dtype.itemsize))
    return [slice(i, min(i + size, num_queries)) for i in range(0, num_queries, size)]


def _split_heads(tokens: Tensor, num_heads: int, buffer: Tensor) -> Tensor:
    """(L, d) tokens to (heads, L, d/heads) in ``buffer``, in its type."""
    return buffer.copy_(tokens.unflatten(-1, (num_heads, -1)).transpose(0, 1))


def _sum_heads(weights: Tensor) -> Tensor:
    """(heads, L, n) to the sum over heads, (L, n), in the place of the first head."""
    for head in range(1, len(weights)):
        weights[0].add_(weights[head])
    return weights[0]


def _mean_softmax(scores: Tensor, out: Tensor) -> Tensor:
    """Softmax per head and mean over heads, (L, heads, n) to ``out`` (L, n); ``scores`` are lost.

    The heads of a query lie side by side, so that their mean is a small product, which reads them
    only once.
    """
    length, heads, _ = scores.shape
    torch.softmax(scores, -1, out=scores)
    torch.bmm(scores.new_full((length, 1, heads), 1 / heads), scores, out=out[:, None])
    return out


def _fill_weights(weights: Tensor, queries: Tensor, k: Tensor, step: int, scratch: Scratch) -> None:
    """Write the averaged weights (L, n) of queries (L, heads, d/heads), ``step`` at a time."""
    num_heads, _, num_keys = k.shape
    for start in range(0, len(queries), step):
        q = queries[start : start + step].to(k.dtype)
        scores = scratch.take("scores", len(q), num_heads, num_keys)
        torch.bmm(q.transpose(0, 1), k, out=scores.transpose(0, 1))
        here = weights[start:][: len(q)]
        if weights.dtype == k.dtype:
            _mean_softmax(scores, here)
        else:
            here.copy_(_mean_softmax(scores, scratch.take("mean", len(q), num_keys)))


def _scaled_keys(key: Tensor, num_heads: int, scale: float, dtype: torch.dtype) -> Tensor:
    """Keys (n, d) as (heads, d/heads, n), scaled."""
    k = (key.to(dtype) * scale).unflatten(-1, (num_heads, -1))  # (n, heads, d/heads)
    return k.permute(1, 2, 0).contiguous()  # (heads, d/heads, n)


def _cached_budget(floats: int, query: Tensor, dtype: torch.dtype, max_bytes: int) -> int:
    """Bytes for the blocks of all workers, so that each stays in its core's cache."""
    if query.device.type != "cpu":
        return max_bytes
    least = _LEAST_QUERIES * floats * dtype.itemsize
    return min(max_bytes, max(5 * CACHE_BYTES, least) * worker_count(query.device))


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    num_heads: int,
    scale: float,
    max_bytes: int,
) -> Tensor:
    """Blocks of queries: scores of all heads, softmax, mean over heads, ONE product with V."""
    batch, num_queries, width = query.shape
    num_keys, channels = value.shape[1:]
    dtype = dispatch.compute_dtype(query, key, value)
    mix = dispatch.matmul_dtype(value, dtype)
    floats = (num_heads + 1 + _JOINED) * num_keys + width + _JOINED * channels
    out = new_large(value, batch, num_queries, channels)
    budget = _cached_budget(floats, query, dtype, max_bytes)
    # The scores of a few queries at a time; the product with V, which leaves the cache, of many.
    blocks = _blocks(num_queries, floats, query, dtype, budget)
    step = blocks[0].stop if blocks else 1
    starts = range(0, num_queries, _JOINED * step)
    blocks = [slice(i, min(i + _JOINED * step, num_queries)) for i in starts]
    for b in range(batch):
        k = _scaled_keys(key[b], num_heads, scale, dtype)
        v = value[b].to(mix)  # (n, K)
        queries = query[b].unflatten(-1, (num_heads, -1))  # (N, heads, d/heads)
        target = out[b]

        def attend(
            rows: slice,
            scratch: Scratch,
            queries: Tensor = queries,
            k: Tensor = k,
            v: Tensor = v,
            target: Tensor = target,
        ) -> None:
            length = rows.stop - rows.start
            weights = scratch.take("mix", length, num_keys, dtype=mix)
            _fill_weights(weights, queries[rows], k, step, scratch)
            if target.dtype == mix:
                torch.mm(weights, v, out=target[rows])
            else:
                mixed = scratch.take("mixed", length, channels, dtype=mix)
                target[rows] = torch.mm(weights, v, out=mixed)

        run_blocks(blocks, attend, lambda: Scratch(query, dtype), query.device)
    return out


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
) -> tuple[Tensor | None, ...]:
    """Weights again per block P_h; with G = dO V^T / heads: dS_h = P_h (G - rowsum(P_h G))."""
    batch, num_queries, width = query.shape
    num_keys = key.shape[1]
    head_width = width // num_heads
    dtype = dispatch.compute_dtype(query, key, value)
    floats = (2 * num_heads + 1) * num_keys + width + value.shape[-1]
    grad_query = query.new_empty(query.shape)
    grad_key = torch.empty_like(key)
    grad_value = torch.empty_like(value)
    for b in range(batch):
        k = _scaled_keys(key[b], num_heads, scale, dtype)  # (heads, d/heads, n)
        v = value[b].to(dtype) / num_heads  # (n, K)

        def attend(
            rows: slice,
            sums: _Sums,
            b: int = b,
            k: Tensor = k,
            v: Tensor = v,
        ) -> None:
            scratch = sums.scratch
            length = rows.stop - rows.start
            q = scratch.take("query", num_heads, length, head_width)
            _split_heads(query[b, rows], num_heads, q)
            grad_out = grad_output[b, rows].to(dtype)  # (L, K)
            weights = scratch.take("scores", num_heads, length, num_keys)
            torch.bmm(q, k, out=weights)
            torch.softmax(weights, -1, out=weights)
            if needs[0] or needs[1]:
                grad_mean = scratch.take("grad_mean", length, num_keys)
                torch.mm(grad_out, v.t(), out=grad_mean)
                grad_scores = scratch.take("grad_scores", num_heads, length, num_keys)
                torch.mul(weights, grad_mean, out=grad_scores)
                row_sum = grad_scores.sum(-1, keepdim=True)  # (heads, L, 1)
                grad_scores.addcmul_(weights, row_sum, value=-1)
                sums.key.baddbmm_(q.transpose(1, 2), grad_scores)
                torch.bmm(grad_scores, k.transpose(1, 2), out=q)
                grad_query[b, rows].unflatten(-1, (num_heads, -1)).copy_(q.transpose(0, 1))
            if needs[2]:
                sums.value.addmm_(_sum_heads(weights).t(), grad_out)

        blocks = _blocks(num_queries, floats, query, dtype, max_bytes)
        make = partial(_Sums, k, v, query)
        parts = run_blocks(blocks, attend, make, query.device)
        grad_k, grad_v = (sum_parts([getattr(part, n) for part in parts]) for n in ("key", "value"))
        grad_key[b] = (grad_k * scale).flatten(0, 1).T  # (heads, d/heads, n) -> (n, d)
        grad_value[b] = grad_v / num_heads
    grads = (grad_query, grad_key, grad_value)
    return tuple(grad if need else None for grad, need in zip(grads, needs, strict=True))


class _Sums:
    """What one worker adds up of the gradients of a batch item, and its buffers."""

    def __init__(self, key: Tensor, value: Tensor, query: Tensor) -> None:
        self.key, self.value = torch.zeros_like(key), torch.zeros_like(value)
        self.scratch = Scratch(query, key.dtype)


def _default_scale(query: Tensor, num_heads: int) -> float:
    return (query.shape[-1] / num_heads) ** -0.5


def _check(query: Tensor, key: Tensor, value: Tensor | None, num_heads: int) -> None:
    value = key if value is None else value
    if not (query.dim() == key.dim() == value.dim() == 3):
        raise ValueError(
            "query (B, N, d), key (B, n, d) and value (B, n, K) must have three axes, got "
            f"{tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}."
        )
    dispatch.check_heads(query, key, num_heads, -1)
    dispatch.check_same_place(query, key, value)
    if key.shape[1] != value.shape[1] or key.shape[1] == 0:
        raise ValueError(
            f"key has {key.shape[1]} positions and value {value.shape[1]}; they must agree and "
            "be at least 1."
        )


_BOUNDED = dispatch.BoundedOperator("head_averaged_attention", _forward, _backward)
