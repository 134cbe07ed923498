"""Memory and threads of the CPU: byte budgets, and loops over strips of output rows."""

from upfeat.ops.runtime.strips import (
    CALL_BYTES,
    MAP_BYTES,
    STRIP_BYTES,
    TILE_BYTES,
    Output,
    assemble,
    join_strips,
    row_strips,
)

__all__ = [
    "CALL_BYTES",
    "MAP_BYTES",
    "STRIP_BYTES",
    "TILE_BYTES",
    "Output",
    "assemble",
    "join_strips",
    "row_strips",
]
