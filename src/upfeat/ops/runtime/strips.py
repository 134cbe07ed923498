"""Loops over strips of output rows.

Legend: B batch, K channels, H' W' output, R rows of a strip.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from upfeat.ops.runtime.budgets import STRIP_BYTES
from upfeat.ops.runtime.dispatch import wants_reference
from upfeat.ops.runtime.memory import new_large, recycled_memory
from upfeat.ops.runtime.threads import run_blocks, worker_count


def row_strips(height: int, row_bytes: int, max_bytes: int) -> Iterator[slice]:
    """Cut ``height`` output rows into strips of about equal height and at most ``max_bytes``.

    A strip has at least one row.

    Example:
        >>> list(row_strips(10, row_bytes=4, max_bytes=16))
        [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    step = min(height, max(1, max_bytes // max(row_bytes, 1)))
    step = -(-height // -(-height // step))
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def join_strips(
    function: Callable[[Tensor, slice], Tensor], x: Tensor, height: int, row_bytes: int
) -> Tensor:
    """Compute a map by strips of rows and join them, (B, C, height, W).

    Under a graph what a strip is made of is computed again for the gradients; a trace and a
    transform of ``torch.func`` have one strip.

    Args:
        function: ``function(x, rows)`` gives the rows of a slice; differentiable.
        x: what the map is made of.
        height: rows of the map.
        row_bytes: what one row takes with its temporaries.
    """
    if wants_reference():
        return function(x, slice(0, height))
    strips = list(row_strips(height, row_bytes, STRIP_BYTES))
    if len(strips) > 1 and torch.is_grad_enabled():
        parts = [checkpoint(function, x, rows, use_reentrant=False) for rows in strips]
    else:
        parts = [function(x, rows) for rows in strips]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def row_blocks(height: int, block: int, workers: int) -> Iterator[slice]:
    """Cut ``height`` output rows into about equal blocks of at most ``block``, for all workers.

    Example:
        >>> [rows.stop - rows.start for rows in row_blocks(10, 4, workers=2)]
        [3, 3, 3, 1]
    """
    count = -(-height // block)
    count = min(height, -(-count // workers) * workers)
    yield from row_strips(height, 1, -(-height // count))


def assemble(
    decode: Callable[[slice], Tensor],
    height: int,
    row_bytes: int,
    out: "Output",
    item: slice,
    *,
    block: int = 0,
    least: int = 1,
    ahead: Callable[[slice], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> None:
    """Compute all strips of some items' output, on a CPU in parallel, and put them in place.

    Args:
        decode: gives the rows of a slice, (b, K, R, W').
        height: H'.
        row_bytes: what one output row takes with its temporaries.
        out: takes the strips.
        item: the items' place in the batch.
        least: rows of a strip, also where they take more than the budget.
        block: rows whose inputs should be computed at once, 0 where it makes no difference.
        ahead: ``ahead(rows)`` computes those inputs; the strips of ``rows`` are decoded within it.
    """
    device = out.like.device
    workers = worker_count(device)
    limit = max(STRIP_BYTES // workers, least * row_bytes)
    strips = list(row_strips(height, row_bytes, limit))

    def write(rows: slice, _: None) -> None:
        out.put(item, rows, decode(rows))

    def write_block(rows: slice, _: None) -> None:
        with ahead(rows):
            for part in row_strips(rows.stop - rows.start, row_bytes, limit):
                write(slice(rows.start + part.start, rows.start + part.stop), None)

    with recycled_memory():  # a strip lies where the one before it lay
        if block <= strips[0].stop:
            run_blocks(strips, write, lambda: None, device)
        else:
            blocks = list(row_blocks(height, block, workers))
            run_blocks(blocks, write_block, lambda: None, device)


class Output:
    """The output of a call, allocated in the memory layout of the first strip that is put into it.

    Args:
        like: a tensor on the device of the output.
        batch: B.
        height: H'.
    """

    def __init__(self, like: Tensor, batch: int, height: int) -> None:
        self.like, self.batch, self.height = like.new_empty(0), batch, height
        self.map: Tensor | None = None
        self._lock = threading.Lock()

    def put(self, item: slice, rows: slice, strip: Tensor) -> None:
        """Write a strip (b, K, R, W')."""
        items, channels, height, width = strip.shape
        if self.map is None:
            with self._lock:
                if (items, height) == (self.batch, self.height):
                    self.map = strip
                    return
                if self.map is None:
                    self.map = self._new(strip, channels, width)
        self.map[item, :, rows] = strip

    def _new(self, strip: Tensor, channels: int, width: int) -> Tensor:
        if channels > 1 and strip.stride(1) == 1:  # channels last
            shape = (self.batch, self.height, width, channels)
            return new_large(self.like, *shape, dtype=strip.dtype).permute(0, 3, 1, 2)
        return new_large(self.like, self.batch, channels, self.height, width, dtype=strip.dtype)

    def result(self) -> Tensor:
        """Return the whole output (B, K, H', W')."""
        if self.map is None:
            raise RuntimeError("no strip was put into the output")
        return self.map
