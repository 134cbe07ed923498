"""Memory and threads of the CPU: byte budgets, and loops over strips of output rows."""

from upfeat.ops.runtime.budgets import MAP_BYTES, STRIP_BYTES, TILE_BYTES
from upfeat.ops.runtime.strips import Output, assemble, join_strips, row_strips

__all__ = [
    "MAP_BYTES",
    "STRIP_BYTES",
    "TILE_BYTES",
    "Output",
    "assemble",
    "join_strips",
    "row_strips",
]
