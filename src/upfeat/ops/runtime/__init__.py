"""How operators run: memory and byte budgets, threads and row strips, the choice of a path."""

from upfeat.ops.runtime.budgets import (
    CACHE_BYTES,
    MAP_BYTES,
    STRIP_BYTES,
    TILE_BYTES,
    block_bytes,
    operator_bytes,
)
from upfeat.ops.runtime.dispatch import (
    compute_dtype,
    counting_operations,
    is_transformed,
    output_dtype,
    records_graph,
    tracing,
    wants_reference,
    without_autocast,
)
from upfeat.ops.runtime.draws import DrawsFrom
from upfeat.ops.runtime.memory import (
    LARGE,
    Buffers,
    Scratch,
    ThreadScratch,
    check_fits,
    new_large,
    recycled_memory,
)
from upfeat.ops.runtime.strips import Output, assemble, join_strips, row_strips
from upfeat.ops.runtime.threads import Block, run_blocks, sum_parts, worker_count

__all__ = [
    "CACHE_BYTES",
    "LARGE",
    "MAP_BYTES",
    "STRIP_BYTES",
    "TILE_BYTES",
    "Block",
    "Buffers",
    "DrawsFrom",
    "Output",
    "Scratch",
    "ThreadScratch",
    "assemble",
    "block_bytes",
    "check_fits",
    "compute_dtype",
    "counting_operations",
    "is_transformed",
    "join_strips",
    "new_large",
    "operator_bytes",
    "output_dtype",
    "records_graph",
    "recycled_memory",
    "row_strips",
    "run_blocks",
    "sum_parts",
    "tracing",
    "wants_reference",
    "without_autocast",
    "worker_count",
]
