"""Assembling an output from bands of its rows, for methods that compute it so in inference."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from upfeat.layers.cross_attention import CrossAttentionQueriesAndKeys
from upfeat.layers.module_weights import named_weights
from upfeat.ops._dispatch import wants_reference
from upfeat.ops._workers import run_blocks, worker_count
from upfeat.ops.memory import new_large

BandFunction = Callable[[tuple[int, int], Tensor | None], Tensor]
"""Gives the output of rows (start, stop), written into a tensor (1, R * W', K) if there is one."""

# What one band of output rows with its queries takes in a plain call.
BAND_BYTES = 96 * 2**20


def needs_graph(module: nn.Module, *inputs: Tensor) -> bool:
    """Return whether the call must be made of ordinary differentiable operators.

    So it is where gradients are asked for, and where `wants_reference` says so.
    """
    if wants_reference():
        return True
    if not torch.is_grad_enabled():
        return False
    weights = (weight for _, weight in named_weights(module))
    return any(t.requires_grad for t in (*inputs, *weights))


def only_values_need_graph(
    module: nn.Module, image: Tensor, features: Tensor, values: Tensor
) -> bool:
    """Return whether gradients are asked for, and for the values alone."""
    return needs_graph(nn.Identity(), values) and not needs_graph(module, image, features)


def row_bands(height: int, row_bytes: int, max_bytes: int) -> Iterator[tuple[int, int]]:
    """Split ``height`` output rows into (start, stop) bands of at most ``max_bytes``.

    A band has at least one row; the bands are of about equal size.

    Example:
        >>> list(row_bands(10, row_bytes=4, max_bytes=16))
        [(0, 4), (4, 8), (8, 10)]
    """
    step = max(1, max_bytes // row_bytes)
    step = -(-height // -(-height // step))
    for start in range(0, height, step):
        yield start, min(start + step, height)


def query_row_bytes(
    attention: CrossAttentionQueriesAndKeys, values: Tensor, output_size: tuple[int, int]
) -> int:
    """Return what one output row takes: its values, and its queries on their way (six maps)."""
    width = values.shape[1] + 6 * attention.q_proj.in_features
    return output_size[1] * width * values.element_size()


def upsample_in_bands(
    prepare: Callable[[int], BandFunction],
    values: Tensor,
    output_size: tuple[int, int],
    row_bytes: int,
) -> Tensor:
    """Write bands of output rows straight into one output.

    Args:
        prepare: for one batch item returns the function that writes some of its rows.
        values: (B, K, h, w); gives batch, width, type and device.
        output_size: (H', W').
        row_bytes: what one output row with its temporaries takes.

    Returns:
        (B, K, H', W') in channels_last strides.
    """
    height, width = output_size
    out = new_large(values, values.shape[0], height * width, values.shape[1])  # (B, N, K)
    workers = worker_count(values.device)
    for item, pixels in enumerate(out):
        band = prepare(item)

        def write(rows: tuple[int, int], _: None, band: BandFunction, pixels: Tensor) -> None:
            band(rows, pixels[None, rows[0] * width : rows[1] * width])

        bands = list(row_bands(height, row_bytes, BAND_BYTES // workers))
        run_blocks(bands, partial(write, band=band, pixels=pixels), lambda: None, values.device)
        del band  # its maps make room for the next item's
    return out.unflatten(1, output_size).permute(0, 3, 1, 2)


def tile_in_bands(
    prepare: Callable[[int], BandFunction],
    values: Tensor,
    output_size: tuple[int, int],
    row_bytes: int,
    max_bytes: int,
    graph: bool = False,
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Yield bands of output rows as tiles (B, K, R, W').

    Args:
        prepare: as in `upsample_in_bands`; what it holds for all items is held until the end.
        values: as in `upsample_in_bands`.
        output_size: (H', W').
        row_bytes: what one output row of one item with its temporaries takes.
        max_bytes: for one tile.
        graph: each tile has a graph of its own that leads to the values; else there is none.
    """
    (batch, channels), (height, width) = values.shape[:2], output_size
    with torch.no_grad():
        bands = [prepare(item) for item in range(batch)]
    for rows in row_bands(height, row_bytes * batch, max_bytes):
        if graph:
            pixels = torch.cat([band(rows, None) for band in bands])  # (B, R * W', K)
        else:
            pixels = new_large(values, batch, (rows[1] - rows[0]) * width, channels)
            with torch.no_grad():
                for band, own in zip(bands, pixels.split(1), strict=True):
                    band(rows, own)
        tile = pixels.unflatten(1, (-1, width)).permute(0, 3, 1, 2)  # (B, K, R, W')
        yield slice(*rows), slice(0, width), tile
