"""Triton kernels of head-averaged attention: out = mean_h softmax(q_h k_h^T scale) @ V.

Forward: pass 1 takes the log-sum-exp per head; pass 2 builds a tile of the averaged weights from it
and multiplies it with the values into ONE accumulator, so no head has an accumulator of its own.

Backward, per chunk of queries, with P_h recomputed from the log-sum-exp and G = dO V^T / heads::

    A = mean_h P_h                       dV  = A^T dO
    delta_h = rowsum(P_h * G)            dS_h = P_h * (G - delta_h)
    dQ_h = scale * dS_h K_h              dK_h = scale * dS_h^T Q_h

G does not depend on the head: it is computed once per chunk and read by all of them. The chunk
bounds A and G (`block_bytes`).
"""

# Kernels are a language of their own: untyped, and tuples grow by concatenation.
# mypy: disable-error-code="no-untyped-def,assignment"
# ruff: noqa: RUF005

from collections.abc import Callable

import torch
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

# The backward of the keys sums over this many parts of a chunk side by side, to fill the device.
KEY_PARTS = 16


@triton.jit
def _head_tile(pointer, at, inside, head, stride_at, stride_channel, width, WIDTH: tl.constexpr):
    """(rows, WIDTH) channels of one head at positions ``at``; zeros outside."""
    offset, first = at.to(tl.int64) * stride_at, head * width
    return load_tile(pointer, offset, inside, first, first + width, stride_channel, WIDTH)


@triton.jit
def _lse_kernel(
    q, k, lse, num_queries, num_keys, heads, width, qk_scale,
    q_b, q_n, q_c, k_b, k_n, k_c,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pass 1, per (query block, image and head): log2-sum-exp2 of the scores."""
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    query = _head_tile(q + image * q_b, rows, rows < num_queries, head, q_n, q_c, width, WIDTH)
    top = tl.full([BLOCK_M], HIDDEN, tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, num_keys, BLOCK_N):
        cells = start + tl.arange(0, BLOCK_N)
        seen = cells < num_keys
        key = _head_tile(k + image * k_b, cells, seen, head, k_n, k_c, width, WIDTH)
        scores = scores_in_base_2(query, key, seen, qk_scale)  # (M, N)
        top, total = online_sum(scores, top, total)
    place = tl.program_id(1).to(tl.int64) * num_queries + rows
    tl.store(lse + place, top + tl.log2(total), mask=rows < num_queries)


@triton.jit
def _weights_tile(
    queries, k, levels, cells, seen, width, qk_scale, k_n, k_c,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """(M, N) weights summed over the heads, from each head's queries and log-sum-exp."""
    weights = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for head in tl.static_range(HEADS):
        key = _head_tile(k, cells, seen, head, k_n, k_c, width, WIDTH)
        weights += tl.exp2(
            scores_in_base_2(queries[head], key, seen, qk_scale) - levels[head][:, None]
        )
    return weights


@triton.jit
def _all_heads(
    q, lse, lse_h, rows, inside, width, q_n, q_c, HEADS: tl.constexpr, WIDTH: tl.constexpr
):
    """Tuples over heads: the queries of a block and their log-sum-exp, both loaded once."""
    queries = ()
    levels = ()
    for head in tl.static_range(HEADS):
        queries = queries + (_head_tile(q, rows, inside, head, q_n, q_c, width, WIDTH),)
        levels = levels + (tl.load(lse + head * lse_h + rows, mask=inside, other=0.0),)
    return queries, levels


@triton.jit
def _average_kernel(
    q, k, v, lse, out, num_queries, num_keys, channels, tiles, width, qk_scale,
    q_b, q_n, q_c, k_b, k_n, k_c, v_b, v_n, v_c,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, WIDE: tl.constexpr, REST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Pass 2, per (query block, image and value tile of WIDE + REST channels).

    Two accumulators, because blocks are powers of two and 384 channels are 256 + 128.
    """
    image = (tl.program_id(1) // tiles).to(tl.int64)
    first = tl.program_id(1) % tiles * (WIDE + REST)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_queries
    queries, levels = _all_heads(
        q + image * q_b, lse + image * HEADS * num_queries, num_queries, rows, inside, width,
        q_n, q_c, HEADS, WIDTH,
    )  # fmt: skip
    v += image * v_b
    mixed = tl.zeros([BLOCK_M, WIDE], tl.float32)
    if REST > 0:
        mixed_rest = tl.zeros([BLOCK_M, REST], tl.float32)
    for start in range(0, num_keys, BLOCK_N):
        cells = start + tl.arange(0, BLOCK_N)
        seen = cells < num_keys
        weights = _weights_tile(
            queries, k + image * k_b, levels, cells, seen, width, qk_scale, k_n, k_c,
            HEADS, WIDTH, BLOCK_M, BLOCK_N,
        ).to(v.dtype.element_ty)  # fmt: skip
        offset = cells.to(tl.int64) * v_n
        mixed += dot(weights, load_tile(v, offset, seen, first, channels, v_c, WIDE))
        if REST > 0:
            value = load_tile(v, offset, seen, first + WIDE, channels, v_c, REST)
            mixed_rest += dot(weights, value)
    out += image * num_queries * channels
    place = rows.to(tl.int64) * channels
    store_tile(out, mixed / HEADS, place, inside, first, channels, WIDE)
    if REST > 0:
        store_tile(out, mixed_rest / HEADS, place, inside, first + WIDE, channels, REST)


@triton.jit
def _mean_kernel(
    q, k, v, lse, grad_out, mean, grad_mean, num_queries, num_keys, channels, width, qk_scale,
    lse_b, lse_h, q_b, q_n, q_c, k_b, k_n, k_c, v_b, v_n, v_c, o_b, o_n, o_c,
    HEADS: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Per (query block, key block, image): a tile of A and of G, both written."""
    image = tl.program_id(2).to(tl.int64)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    cells = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = rows < num_queries
    seen = cells < num_keys
    queries, levels = _all_heads(
        q + image * q_b, lse + image * lse_b, lse_h, rows, inside, width, q_n, q_c, HEADS, WIDTH
    )
    weights = _weights_tile(
        queries, k + image * k_b, levels, cells, seen, width, qk_scale, k_n, k_c,
        HEADS, WIDTH, BLOCK_M, BLOCK_N,
    )  # fmt: skip
    corner = tl.program_id(1) * BLOCK_N
    place = (image * num_queries + rows) * num_keys
    store_tile(mean, weights / HEADS, place, inside, corner, num_keys, BLOCK_N)
    grad_out += image * o_b
    v += image * v_b
    grad = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for first in range(0, channels, CHANNELS):
        offset = rows.to(tl.int64) * o_n
        grad_tile = load_tile(grad_out, offset, inside, first, channels, o_c, CHANNELS)
        offset = cells.to(tl.int64) * v_n
        value = load_tile(v, offset, seen, first, channels, v_c, CHANNELS)
        grad += dot(grad_tile, tl.trans(value))
    store_tile(grad_mean, grad / HEADS, place, inside, corner, num_keys, BLOCK_N)


@triton.jit
def _grad_tile(grad_mean, rows, cells, num_queries, num_keys):
    """(M, N) tile of G of one image."""
    offset = rows.to(tl.int64)[:, None] * num_keys + cells[None, :]
    mask = (rows < num_queries)[:, None] & (cells < num_keys)[None, :]
    return tl.load(grad_mean + offset, mask=mask, other=0.0)


@triton.jit
def _grad_query_kernel(
    q, k, lse, grad_mean, delta, grad_q, num_queries, num_keys, heads, width, qk_scale, scale,
    lse_b, lse_h, q_b, q_n, q_c, k_b, k_n, k_c, g_b, g_n,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Per (query block, image and head): delta over all keys first, then dQ. Writes both."""
    image = (tl.program_id(1) // heads).to(tl.int64)
    head = tl.program_id(1) % heads
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = rows < num_queries
    query = _head_tile(q + image * q_b, rows, inside, head, q_n, q_c, width, WIDTH)
    level = tl.load(lse + image * lse_b + head * lse_h + rows, mask=inside, other=0.0)
    k += image * k_b
    grad_mean += image * num_queries * num_keys
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, num_keys, BLOCK_N):
        cells = start + tl.arange(0, BLOCK_N)
        seen = cells < num_keys
        key = _head_tile(k, cells, seen, head, k_n, k_c, width, WIDTH)
        weights = tl.exp2(scores_in_base_2(query, key, seen, qk_scale) - level[:, None])
        row_sum += tl.sum(weights * _grad_tile(grad_mean, rows, cells, num_queries, num_keys), 1)
    grad = tl.zeros([BLOCK_M, WIDTH], tl.float32)
    for start in range(0, num_keys, BLOCK_N):
        cells = start + tl.arange(0, BLOCK_N)
        seen = cells < num_keys
        key = _head_tile(k, cells, seen, head, k_n, k_c, width, WIDTH)
        weights = tl.exp2(scores_in_base_2(query, key, seen, qk_scale) - level[:, None])
        centred = _grad_tile(grad_mean, rows, cells, num_queries, num_keys) - row_sum[:, None]
        grad += dot((weights * centred).to(key.dtype), key)
    tl.store(delta + tl.program_id(1).to(tl.int64) * num_queries + rows, row_sum, mask=inside)
    grad_q += image * g_b + head * width
    store_tile(grad_q, grad * scale, rows.to(tl.int64) * g_n, inside, 0, width, WIDTH)


@triton.jit
def _grad_key_kernel(
    q, k, lse, grad_mean, delta, grad_k, num_queries, num_keys, heads, width, qk_scale, scale,
    per_part, lse_b, lse_h, q_b, q_n, q_c, k_b, k_n, k_c,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Per (key block, part of the queries, image and head): adds to this part's dK.

    Every program owns its piece of ``grad_k``, so the sum does not depend on the order of running.
    """
    image = (tl.program_id(2) // heads).to(tl.int64)
    head = tl.program_id(2) % heads
    cells = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    seen = cells < num_keys
    key = _head_tile(k + image * k_b, cells, seen, head, k_n, k_c, width, WIDTH)
    q += image * q_b
    lse += image * lse_b + head * lse_h
    delta += tl.program_id(2).to(tl.int64) * num_queries
    grad_mean += image * num_queries * num_keys
    grad = tl.zeros([BLOCK_N, WIDTH], tl.float32)
    first = tl.program_id(1) * per_part
    for start in range(first, tl.minimum(first + per_part, num_queries), BLOCK_M):
        rows = start + tl.arange(0, BLOCK_M)
        inside = rows < num_queries
        query = _head_tile(q, rows, inside, head, q_n, q_c, width, WIDTH)
        level = tl.load(lse + rows, mask=inside, other=0.0)
        row_sum = tl.load(delta + rows, mask=inside, other=0.0)
        weights = tl.exp2(scores_in_base_2(query, key, seen, qk_scale) - level[:, None])
        centred = _grad_tile(grad_mean, rows, cells, num_queries, num_keys) - row_sum[:, None]
        grad += dot(tl.trans((weights * centred).to(query.dtype)), query)
    images = tl.num_programs(2) // heads
    grad_k += (tl.program_id(1) * images + image) * num_keys * heads * width + head * width
    offset = cells.to(tl.int64) * (heads * width)
    grad = grad * scale + load_tile(grad_k, offset, seen, 0, width, 1, WIDTH)
    store_tile(grad_k, grad, offset, seen, 0, width, WIDTH)


def _configs(*choices: tuple[int, int, int, int]) -> list[triton.Config]:
    """(BLOCK_M, BLOCK_N, warps, stages) each."""
    return [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in choices
    ]


# Measured on the first call of each type, head and channel count; not anew for each image size.
_LSE = triton.autotune(
    configs=_configs((128, 128, 8, 3), (128, 64, 4, 3), (64, 128, 4, 3), (128, 128, 4, 2)),
    key=["WIDTH"],
)(_lse_kernel)
_AVERAGE = triton.autotune(
    configs=_configs((128, 32, 8, 2), (64, 64, 8, 2), (128, 64, 8, 2), (64, 32, 4, 2)),
    key=["HEADS", "WIDTH", "WIDE", "REST"],
)(_average_kernel)


def _fixed_blocks(query: Tensor) -> dict[str, int]:
    """Blocks that are not measured. Exact float32 products hold their factors in registers."""
    if _common.interpreted():
        return {"BLOCK_M": 32, "BLOCK_N": 32}
    size = 32 if query.dtype == torch.float32 else 64
    return {"BLOCK_M": size, "BLOCK_N": size, "num_stages": 1 if size == 32 else 3}


def _value_tiles(channels: int, whole: bool) -> tuple[int, int, int]:
    """(WIDE, REST, number of tiles): at most 256 + 128 channels in the registers at once."""
    if whole or channels <= 256:
        wide = _common.block(channels, 128 if whole else 256)
        return wide, 0, triton.cdiv(channels, wide)
    if channels <= 384:
        return 256, _common.block(channels - 256), 1
    tiles_of_256, tiles_of_384 = triton.cdiv(channels, 256), triton.cdiv(channels, 384)
    if tiles_of_384 * 384 <= tiles_of_256 * 256:
        return 256, 128, tiles_of_384
    return 256, 0, tiles_of_256


def forward(
    query: Tensor, key: Tensor, value: Tensor, *, num_heads: int, scale: float
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output (B, N, K) and, for the backward, the log-sum-exp (B, heads, N) in base 2."""
    _common.check_covered(query, key, value, query.shape[-1] // num_heads)
    query, key = _common.one_type(query, key)
    batch, num_queries, dim = query.shape
    num_keys, channels = value.shape[1:]
    out = value.new_empty(batch, num_queries, channels)
    lse = torch.empty(batch, num_heads, num_queries, device=query.device, dtype=torch.float32)
    if lse.numel() == 0:
        return out, (lse,)
    width = dim // num_heads
    whole = torch.float32 in (query.dtype, value.dtype)
    wide, rest, tiles = _value_tiles(channels, whole)
    fixed = _fixed_blocks(query) if whole or _common.interpreted() else None
    take_lse, take_average = (_LSE, _AVERAGE) if fixed is None else (_lse_kernel, _average_kernel)
    launch = {"WIDTH": _common.block(width), **(fixed or {})}

    def grid(per_image: int) -> Callable[[dict[str, int]], tuple[int, int]]:
        return lambda meta: (triton.cdiv(num_queries, meta["BLOCK_M"]), batch * per_image)

    with _common.on_device(query):
        take_lse[grid(num_heads)](
            query, key, lse, num_queries, num_keys, num_heads, width, scale * LOG2_E,
            *query.stride(), *key.stride(), **launch,
        )  # fmt: skip
        if channels:
            take_average[grid(tiles)](
                query, key, value, lse, out, num_queries, num_keys, channels, tiles, width,
                scale * LOG2_E, *query.stride(), *key.stride(), *value.stride(),
                HEADS=num_heads, WIDE=wide, REST=rest, **launch,
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each in its input's type and shape."""
    (lse,) = residuals
    types = query.dtype, key.dtype, value.dtype
    query, key = _common.one_type(query, key)
    batch, num_queries, dim = query.shape
    num_keys = key.shape[1]
    grad_query = torch.empty((batch, num_queries, dim), device=query.device, dtype=query.dtype)
    parts = 2 if _common.interpreted() else KEY_PARTS
    grad_keys = torch.zeros(
        (parts, batch, num_keys, dim), device=key.device, dtype=torch.float32
    )  # one per part
    grad_value = torch.zeros(value.shape, device=value.device, dtype=torch.float32)
    size = 4 + value.element_size()
    chunk = max(64, block_bytes(key.device) // (size * max(1, batch * num_keys)) // 64 * 64)
    for start in range(0, num_queries if batch else 0, chunk):
        rows = slice(start, min(start + chunk, num_queries))
        _backward_chunk(
            grad_output[:, rows], query[:, rows], key, value, lse[:, :, rows],
            grad_query[:, rows], grad_keys, grad_value, num_heads, scale,
        )  # fmt: skip
    return grad_query.to(types[0]), grad_keys.sum(0).to(types[1]), grad_value.to(types[2])


def _backward_chunk(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    lse: Tensor,
    grad_query: Tensor,
    grad_keys: Tensor,
    grad_value: Tensor,
    num_heads: int,
    scale: float,
) -> None:
    """Fills the chunk's rows of ``grad_query`` and adds its share to the other two."""
    batch, num_queries, dim = query.shape
    num_keys, channels = value.shape[1:]
    width = dim // num_heads
    launch = {"WIDTH": _common.block(width), **_fixed_blocks(query)}
    block_m, block_n = launch["BLOCK_M"], launch["BLOCK_N"]
    blocks, key_blocks = triton.cdiv(num_queries, block_m), triton.cdiv(num_keys, block_n)
    mean = value.new_empty(batch, num_queries, num_keys)
    grad_mean = torch.empty_like(mean, dtype=torch.float32)
    delta = torch.empty(batch, num_heads, num_queries, device=query.device, dtype=torch.float32)
    levels = lse.stride()[:2]
    parts = grad_keys.shape[0]
    with _common.on_device(query):
        _mean_kernel[(blocks, key_blocks, batch)](
            query, key, value, lse, grad_output, mean, grad_mean, num_queries, num_keys, channels,
            width, scale * LOG2_E, *levels, *query.stride(), *key.stride(), *value.stride(),
            *grad_output.stride(), HEADS=num_heads, CHANNELS=_common.block(channels, 32), **launch,
        )  # fmt: skip
        grad_value += torch.bmm(mean.transpose(1, 2), grad_output.to(mean.dtype))
        _grad_query_kernel[(blocks, batch * num_heads)](
            query, key, lse, grad_mean, delta, grad_query, num_queries, num_keys, num_heads, width,
            scale * LOG2_E, scale, *levels, *query.stride(), *key.stride(),
            *grad_query.stride()[:2], **launch,
        )  # fmt: skip
        _grad_key_kernel[(key_blocks, parts, batch * num_heads)](
            query, key, lse, grad_mean, delta, grad_keys, num_queries, num_keys, num_heads, width,
            scale * LOG2_E, scale, triton.cdiv(blocks, parts) * block_m, *levels, *query.stride(),
            *key.stride(), **launch,
        )  # fmt: skip
