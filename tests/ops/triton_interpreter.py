"""Triton kernels against the plain references, in Triton's interpreter; run by `test_triton.py`.

Not collected by itself: the interpreter must be chosen before Triton's first import.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import pytest
import torch
from torch import Tensor

from tests.tolerances import tolerance
from upfeat.ops import reference, window_bounds
from upfeat.ops.attention.local import Taps
from upfeat.ops.triton import load

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
# Largest difference of a gradient over its largest entry: the kernel rounds weights to the type of
# the values, and the interpreter cuts bfloat16 off where a device rounds.
GRADIENT = {FLOAT32: 1e-5, FLOAT16: 5e-3, BFLOAT16: 3e-2}


def compare(name, expected, query, key, value, **options) -> None:
    """Forward and the three gradients of a kernel against ``expected`` on float64 inputs."""
    kernel = load(name)
    output, residuals = kernel.forward(query, key, value, **options)
    exact = [t.double().requires_grad_() for t in (query, key, value)]
    wanted = expected(*exact)
    assert output.shape == wanted.shape
    assert output.dtype == value.dtype
    torch.testing.assert_close(output.double(), wanted.detach(), **tolerance(value.dtype))

    grad_output = torch.randn(wanted.shape).to(value.dtype)
    gradients = kernel.backward(grad_output, query, key, value, residuals, **options)
    wanted_gradients = torch.autograd.grad(wanted, exact, grad_output.double())
    for given, actual, exact_one in zip(
        (query, key, value), gradients, wanted_gradients, strict=True
    ):
        assert actual.shape == given.shape
        assert actual.dtype == given.dtype
        error = float((actual.double() - exact_one).abs().max())
        size = float(exact_one.abs().max())  # 0 where a query sees a single cell
        assert error < GRADIENT[value.dtype] * max(size, 0.01)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backward passes in several chunks also at these sizes."""
    monkeypatch.setattr(load("head_averaged_attention"), "block_bytes", lambda _: 1)
    monkeypatch.setattr(load("windowed_attention")._cells, "block_bytes", lambda _: 100_000)


def tokens(batch: int, length: int, channels: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, length, channels).to(dtype)


@pytest.mark.parametrize(
    ("batch", "queries", "keys", "heads", "width", "channels", "dtype"),
    [
        (2, 70, 33, 2, 12, 5, FLOAT32),  # tails everywhere, width no power of two, two chunks
        (1, 16, 1, 1, 16, 16, FLOAT32),  # one key
        (1, 33, 40, 3, 32, 140, FLOAT32),  # two value tiles
        (1, 32, 20, 4, 8, 300, BFLOAT16),  # 256 + 44 channels in two accumulators
        (1, 20, 20, 2, 16, 21, FLOAT16),
    ],
)
def test_head_averaged_attention(batch, queries, keys, heads, width, channels, dtype):
    scale = width**-0.5
    compare(
        "head_averaged_attention",
        lambda q, k, v: reference.head_averaged_attention(q, k, v, heads, scale=scale),
        tokens(batch, queries, heads * width, dtype),
        tokens(batch, keys, heads * width, dtype),
        tokens(batch, keys, channels, dtype),
        num_heads=heads,
        scale=scale,
    )


def test_head_averaged_attention_large_scores_strides_and_mixed_types():
    query = 30 * torch.randn(1, 16, 5, 7).flatten(2).transpose(1, 2)  # channels first in memory
    key = tokens(1, 21, 32, FLOAT32)[..., ::2]
    value = torch.randn(1, 4, 21).transpose(1, 2).bfloat16()
    compare(
        "head_averaged_attention",
        lambda q, k, v: reference.head_averaged_attention(q, k, v, 2, scale=0.4),
        query,
        key,
        value,
        num_heads=2,
        scale=0.4,
    )


def test_head_averaged_attention_refuses_wide_heads():
    q, k, v = tokens(1, 4, 256, FLOAT32), tokens(1, 4, 256, FLOAT32), tokens(1, 4, 3, FLOAT32)
    with pytest.raises(NotImplementedError, match="at most 128 channels"):
        load("head_averaged_attention").forward(q, k, v, num_heads=1, scale=1.0)


def test_head_averaged_attention_without_queries():
    kernel = load("head_averaged_attention")
    query, key, value = torch.zeros(1, 0, 8), torch.zeros(1, 4, 8), torch.zeros(1, 4, 3)
    output, residuals = kernel.forward(query, key, value, num_heads=2, scale=1.0)
    assert output.shape == (1, 0, 3)
    grads = kernel.backward(output, query, key, value, residuals, num_heads=2, scale=1.0)
    assert [tuple(g.shape) for g in grads] == [(1, 0, 8), (1, 4, 8), (1, 4, 3)]
    assert all(not g.any() for g in grads)


@pytest.mark.parametrize(
    ("batch", "size", "grid", "ratio", "heads", "width", "channels", "dtype"),
    [
        (2, (9, 11), (4, 5), 0.1, 2, 12, 7, FLOAT32),  # non-integer ratio, tails
        (1, (8, 16), (4, 8), 0.01, 2, 16, 70, FLOAT32),  # one or two cells, two value tiles
        (1, (7, 9), (5, 6), 0.6, 1, 16, 3, FLOAT32),  # nearly everything
        (1, (6, 6), (3, 4), 0.0, 2, 8, 4, FLOAT32),  # no window: the dense kernels
        (1, (10, 8), (5, 7), 0.2, 4, 8, 20, BFLOAT16),
        (1, (9, 4), (8, 6), 0.3, 2, 16, 9, FLOAT16),
    ],
)
def test_windowed_attention(batch, size, grid, ratio, heads, width, channels, dtype):
    row_bounds, col_bounds = window_bounds(size, grid, ratio)
    scale = width**-0.5
    compare(
        "windowed_attention",
        lambda q, k, v: reference.windowed_attention(
            q, k, v, heads, output_size=size, grid_size=grid, window_ratio=ratio, scale=scale
        ),
        tokens(batch, size[0] * size[1], heads * width, dtype),
        tokens(batch, grid[0] * grid[1], heads * width, dtype),
        tokens(batch, grid[0] * grid[1], channels, dtype),
        num_heads=heads,
        scale=scale,
        grid_size=grid,
        row_bounds=row_bounds,
        col_bounds=col_bounds,
    )


def test_windowed_attention_part_of_the_output():
    size, grid, rows, cols = (20, 14), (6, 7), (3, 12), (2, 13)
    row_bounds, col_bounds = window_bounds(size, grid, 0.15)
    compare(
        "windowed_attention",
        lambda q, k, v: reference.windowed_attention(
            q,
            k,
            v,
            2,
            output_size=size,
            grid_size=grid,
            window_ratio=0.15,
            rows=rows,
            cols=cols,
            scale=0.5,
        ),
        tokens(1, 9 * 11, 16, FLOAT32),
        tokens(1, 42, 16, FLOAT32),
        tokens(1, 42, 6, FLOAT32),
        num_heads=2,
        scale=0.5,
        grid_size=grid,
        row_bounds=row_bounds[slice(*rows)],
        col_bounds=col_bounds[slice(*cols)],
    )


@pytest.mark.parametrize(
    ("batch", "size", "grid", "kernel_size", "head_values", "heads", "channels", "dtype"),
    [
        (2, (12, 8), (4, 4), 3, "grouped", 2, 6, FLOAT32),  # integer ratio
        (1, (17, 13), (5, 4), 3, "grouped", 2, 10, FLOAT32),  # repeated and skipped cells
        (1, (9, 12), (4, 6), (3, 2), "shared", 3, 7, FLOAT32),  # even kernel
        (1, (9, 10), (4, 5), (3, 5), "grouped", 1, 70, FLOAT32),  # two value tiles
        (1, (8, 8), (4, 4), 3, "grouped", 2, 20, BFLOAT16),
        (1, (8, 9), (4, 4), 3, "shared", 2, 5, FLOAT16),
    ],
)
def test_neighborhood_attention(
    batch, size, grid, kernel_size, head_values, heads, channels, dtype
):
    kernels = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    tables = [
        reference.neighbor_cells(length, cells, kernel, length // cells)
        for length, cells, kernel in zip(size, grid, kernels, strict=True)
    ]
    width = 12
    query = torch.randn(batch, heads * width, *size).to(dtype)
    key = torch.randn(batch, heads * width, *grid).to(dtype)
    compare(
        "neighborhood_attention",
        lambda q, k, v: reference.cross_scale_neighborhood_attention(
            q, k, v, heads, kernel_size=kernels, head_values=head_values, scale=0.3
        ),
        query.contiguous(memory_format=torch.channels_last),
        key,
        torch.randn(batch, channels, *grid).to(dtype),
        num_heads=heads,
        scale=0.3,
        head_values=head_values,
        row_cells=tables[0],
        col_cells=tables[1],
    )


def test_neighborhood_attention_part_of_the_output():
    size, grid, rows, cols = (20, 18), (5, 4), (4, 15), (3, 12)
    row_cells = reference.neighbor_cells(20, 5, 3, 4)[slice(*rows)]
    col_cells = reference.neighbor_cells(18, 4, 3, 4)[slice(*cols)]
    compare(
        "neighborhood_attention",
        lambda q, k, v: reference.cross_scale_neighborhood_attention(
            q, k, v, 2, kernel_size=3, output_size=size, rows=rows, cols=cols, scale=0.3
        ),
        torch.randn(1, 24, 11, 9),
        torch.randn(1, 24, *grid),
        torch.randn(1, 6, *grid),
        num_heads=2,
        scale=0.3,
        head_values="grouped",
        row_cells=row_cells,
        col_cells=col_cells,
    )


def test_windowed_and_neighborhood_attention_refuse_where_order_must_be_fixed():
    bounds = window_bounds((4, 4), (2, 2), 0.1)
    q, k, v = tokens(1, 16, 8, FLOAT32), tokens(1, 4, 8, FLOAT32), tokens(1, 4, 3, FLOAT32)
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(NotImplementedError, match="arbitrary order"):
            load("windowed_attention").forward(
                q, k, v, num_heads=2, scale=1.0, grid_size=(2, 2),
                row_bounds=bounds[0], col_bounds=bounds[1],
            )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(
    ("batch", "grid", "ratio", "channels", "padding", "dtype"),
    [
        (2, (4, 5), (2, 2), 7, "replicate", FLOAT32),
        (1, (6, 3), (1, 3), 140, "reflect", FLOAT32),  # two blocks of channels
        (1, (3, 4), (2, 2), 20, "replicate", BFLOAT16),
        (1, (1, 7), (4, 1), 9, "reflect", FLOAT16),
    ],
)
def test_local_attender(batch, grid, ratio, channels, padding, dtype):
    offsets = tuple((row, col) for row in (-2, 0, 1) for col in (-1, 0, 2))
    kernel, taps = load("local_attender"), Taps(offsets, padding)
    logits = torch.randn(batch, 9, grid[0] * ratio[0], grid[1] * ratio[1]).to(dtype)
    value = torch.randn(batch, channels, *grid).to(dtype)
    output, residuals = kernel.forward(logits, value, taps=taps)
    exact = [t.double().requires_grad_() for t in (logits, value)]
    wanted = reference.local_attender(*exact, offsets, padding=padding)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), wanted.detach(), **tolerance(dtype))
    above = torch.randn(wanted.shape).to(dtype)
    gradients = kernel.backward(above, logits, value, residuals, taps=taps)
    wanted_gradients = torch.autograd.grad(wanted, exact, above.double())
    for given, actual, right in zip((logits, value), gradients, wanted_gradients, strict=True):
        assert actual.shape == given.shape
        assert actual.dtype == dtype
        error = float((actual.double() - right).abs().max())
        assert error < GRADIENT[dtype] * float(right.abs().max())


@pytest.mark.parametrize(
    ("batch", "size", "side", "ratio", "channels", "dtype"),
    [
        (2, (6, 5), 3, 1, 5, FLOAT32),  # tails everywhere
        (1, (7, 9), 7, 2, 20, FLOAT32),  # the last cells have pixels on one side only
        (1, (8, 4), 3, 4, 140, BFLOAT16),  # two blocks of channels
        (1, (1, 3), 1, 1, 9, FLOAT16),
    ],
)
def test_adaptive_convolution(batch, size, side, ratio, channels, dtype):
    module = load("adaptive_convolution")
    cells = [-(-n // ratio) + side - 1 for n in size]
    source = torch.randn(batch, channels, *cells).to(dtype)
    weights = (torch.randn(batch, *size, side, side) / side).to(dtype)
    output, residuals = module.forward(source, weights, ratio=ratio)
    exact = [t.double().requires_grad_() for t in (source, weights)]
    wanted = reference.adaptive_convolution(*exact, ratio)
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), wanted.detach(), **tolerance(dtype))
    above = torch.randn(wanted.shape).to(dtype)
    gradients = module.backward(above, source, weights, residuals, ratio=ratio)
    wanted_gradients = torch.autograd.grad(wanted, exact, above.double())
    for given, actual, right in zip((source, weights), gradients, wanted_gradients, strict=True):
        assert actual.shape == given.shape
        assert actual.dtype == dtype
        error = float((actual.double() - right).abs().max())
        assert error < GRADIENT[dtype] * float(right.abs().max())
