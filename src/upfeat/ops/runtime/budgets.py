"""Every byte budget of the package, in one place.

What fits into them decides speed and memory, never a result beyond rounding.
"""

import torch

# A strip of a map that one core works on: it should stay in the core's cache between operators.
CACHE_BYTES = 2**20
# All strips of output rows of a plain call that are under way, one in each thread.
STRIP_BYTES = 16 * 2**20
# A piece of `Upsampler.tiles` by default.
TILE_BYTES = 256 * 2**20
# Whole maps of an image at full resolution that a plain call keeps; beyond it they are recomputed.
MAP_BYTES = 2304 * 2**20


def operator_bytes() -> int:
    """Return what the temporaries of one operator may take, all threads together.

    Half of the strips of which it computes a step.
    """
    return STRIP_BYTES // 2


def block_bytes(device: torch.device) -> int:
    """Return what a strip of a map may take that an operator works on at once.

    A core's cache holds it; an accelerator needs large kernels, for half a piece of the output.
    """
    return CACHE_BYTES if device.type == "cpu" else TILE_BYTES // 2
