"""Every byte budget of the package, in one place.

What fits into them decides speed and memory, never a result beyond rounding.
"""

# A strip of a map that one core works on: it should stay in the core's cache between operators.
CACHE_BYTES = 2**19
# The same on an accelerator, which needs large kernels.
DEVICE_BYTES = 128 * 2**20
# Temporaries of one call of an operator, all threads together.
OPERATOR_BYTES = 8 * 2**20
# All strips of output rows of a plain call that are under way, one in each thread.
STRIP_BYTES = 16 * 2**20
# A piece of `Upsampler.tiles` by default.
TILE_BYTES = 256 * 2**20
# Whole maps of an image at full resolution that a plain call keeps; beyond it they are recomputed.
MAP_BYTES = 2304 * 2**20
