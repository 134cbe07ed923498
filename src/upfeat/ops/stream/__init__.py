"""Full-resolution networks without a graph, computed by row strips in bounded memory.

A method writes its encoder as plain modules. Where no gradient is recorded, the contract's base
calls it within :func:`bounded`, and :func:`lazy` turns the image into a :class:`RowMap`: modules
that are called with it (1x1 and 3x3 convolutions, norms, activations, residuals, concatenation,
pooling) record what they would do, and rows are computed when they are read. Any other operator
gets the whole map. The result is that of the whole network to rounding.
"""

from upfeat.ops.stream.maps import (
    Map,
    RowMap,
    block_rows,
    bounded,
    deferred,
    lazy,
    prepare,
    read_ahead,
    whole,
)
from upfeat.ops.stream.recording import recorded_as, row_local

__all__ = [
    "Map",
    "RowMap",
    "block_rows",
    "bounded",
    "deferred",
    "lazy",
    "prepare",
    "read_ahead",
    "recorded_as",
    "row_local",
    "whole",
]
