"""Fourier features of coordinates and colours at exponentially spaced frequencies.

With frequencies w_k = exp(-2 + 12 k / (n - 1)) and learned phases P (LoftUp, arXiv 2504.14032; the
scheme is FeatUp's, arXiv 2403.10516):

    [sin(w_k x_i + P[0, k, i]), cos(w_k x_i + P[1, k, i])],   frequency slow, input fast

The highest frequency turns a rounding of the input into an angle 22026 times as large. Inputs,
frequencies and angles are therefore float32 at least, whatever the dtype of the weights.

Legend: m inputs, n frequencies, H W the grid.
"""

import torch
from torch import Tensor


def inclusive_grid(
    size: tuple[int, int], device: torch.device, rows: slice = slice(None)
) -> Tensor:
    """Row and column of every position of some rows, from -1 to 1 inclusive: (2, R, W) in float32.

    Example:
        >>> inclusive_grid((1, 3), torch.device("cpu"))[1].tolist()
        [[-1.0, 0.0, 1.0]]
    """
    row = torch.linspace(-1, 1, size[0], device=device, dtype=torch.float32)[rows]
    col = torch.linspace(-1, 1, size[1], device=device, dtype=torch.float32)
    return torch.stack(torch.meshgrid(row, col, indexing="ij"))


def fourier_features(inputs: Tensor, phases: Tensor) -> Tensor:
    """Return the features of each position.

    Args:
        inputs: (..., m, H, W), float32 or float64.
        phases: (2, m, n) for the sines and the cosines. The published phases are *stored* (m, n)
            but *read* in memory order as (n, m); so are these.

    Returns:
        (..., 2 n m, H, W) in the dtype of ``inputs``: sines, then cosines.

    Example:
        >>> fourier_features(torch.zeros(3, 4, 5), torch.zeros(2, 3, 7)).sum((1, 2))[20:23].tolist()
        [0.0, 20.0, 20.0]
    """
    count, steps = phases.shape[1:]
    frequencies = torch.linspace(-2, 10, steps, device=inputs.device, dtype=inputs.dtype).exp()
    phases = phases.to(inputs.dtype).reshape(2, steps, count, 1, 1)  # (2, n, m, 1, 1)
    angles = inputs.unsqueeze(-4) * frequencies[:, None, None, None]  # (..., n, m, H, W)
    waves = torch.cat(((angles + phases[0]).sin(), (angles + phases[1]).cos()), dim=-4)
    return waves.flatten(-4, -3)  # (..., 2n, m, H, W) -> (..., 2nm, H, W)
