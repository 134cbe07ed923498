"""The one table of tolerances: how far two correct computations may differ, by dtype.

Meant for values of order one. ``atol`` is absolute, ``rtol`` relative to the expected value.
Goldens are held to ``GOLDEN_ATOL`` in float32; ``FUSED_GOLDEN_ATOL`` where a fused sum reorders.
"""

from __future__ import annotations

import torch

GOLDEN_ATOL = 1e-5
FUSED_GOLDEN_ATOL = 5e-5

observed: list[float] = []
"""What `max_abs_difference` found in the test that runs; the goldens' are shown at the end."""

_TABLE: dict[torch.dtype, tuple[float, float]] = {
    # dtype: (atol, rtol)
    torch.float64: (1e-10, 1e-8),
    torch.float32: (1e-5, 1e-5),
    torch.float16: (5e-3, 5e-3),
    torch.bfloat16: (3e-2, 3e-2),
}


def tolerance(dtype: torch.dtype) -> dict[str, float]:
    """Returns keyword arguments for ``torch.testing.assert_close``: ``atol`` and ``rtol``."""
    if dtype not in _TABLE:
        raise ValueError(f"no tolerance for {dtype}; the table has {sorted(map(str, _TABLE))}")
    atol, rtol = _TABLE[dtype]
    return {"atol": atol, "rtol": rtol}


def max_abs_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Returns the largest absolute difference, computed in float64; shapes must be equal."""
    if actual.shape != expected.shape:
        raise ValueError(f"shapes differ: {tuple(actual.shape)} and {tuple(expected.shape)}")
    if actual.numel() == 0:
        return 0.0
    difference = float((actual.detach().double() - expected.detach().double()).abs().max())
    observed.append(difference)
    return difference
