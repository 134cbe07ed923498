"""Fourier features of coordinates and colours at exponentially spaced frequencies.

With frequencies w_k = exp(-2 + 12 k / (n - 1)) and learned phases P (LoftUp, arXiv 2504.14032; the
scheme is FeatUp's, arXiv 2403.10516):

    [sin(w_k x_i + P[0, k, i]), cos(w_k x_i + P[1, k, i])],   frequency slow, input fast

The highest frequency turns a rounding of the input into an angle 22026 times as large. Inputs,
frequencies and angles are therefore float32 at least, whatever the dtype of the weights.

Legend: m inputs, n frequencies, H W the grid.
"""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import stream


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
    frequencies = _frequencies(steps, inputs)
    phases = phases.to(inputs.dtype).reshape(2, steps, count, 1, 1)  # (2, n, m, 1, 1)
    angles = inputs.unsqueeze(-4) * frequencies[:, None, None, None]  # (..., n, m, H, W)
    waves = torch.cat(((angles + phases[0]).sin(), (angles + phases[1]).cos()), dim=-4)
    return waves.flatten(-4, -3)  # (..., 2n, m, H, W) -> (..., 2nm, H, W)


def _frequencies(steps: int, like: Tensor) -> Tensor:
    return torch.linspace(-2, 10, steps, device=like.device, dtype=like.dtype).exp()


def pixel_features(colors: Tensor, phases: Tensor) -> Tensor:
    """Describe the pixels of an image: Fourier features of place and colour, and the colours.

    Args:
        colors: (B, 3, H, W), float32 or float64.
        phases: (2, m, n): with m = 5 places and colours pass the sines, and the colours stand
            behind them; with m = 2 the places alone are described.

    Returns:
        (B, 10 n + 3, H, W) or (B, 4 n, H, W) in the dtype of ``colors``.

    Example:
        >>> pixel_features(torch.rand(1, 3, 4, 5), torch.zeros(2, 5, 7)).shape
        torch.Size([1, 73, 4, 5])
    """
    if has_torch_function((colors,)):
        return handle_torch_function(pixel_features, (colors,), colors, phases)
    grid = inclusive_grid((colors.shape[2], colors.shape[3]), colors.device).to(colors.dtype)
    return describe(grid.expand(len(colors), -1, -1, -1), colors, phases)


def describe(places: Tensor, colors: Tensor, phases: Tensor) -> Tensor:
    """Return :func:`pixel_features` for places (..., 2, H, W) and their colours (..., 3, H, W).

    Example:
        >>> describe(torch.zeros(2, 4, 5), torch.rand(3, 4, 5), torch.zeros(2, 2, 7)).shape
        torch.Size([28, 4, 5])
    """
    if phases.shape[1] == 2:
        return fourier_features(places, phases)
    return torch.cat((fourier_features(torch.cat((places, colors), -3), phases), colors), -3)


@stream.recorded_as(pixel_features)
def _by_rows(colors: Any, phases: Tensor) -> Any:
    size, colored = (colors.shape[2], colors.shape[3]), phases.shape[1] == 5
    count, steps = phases.shape[1:]
    waves = 2 * count * steps

    def features(strip: Tensor, rows: tuple[int, int], out: Tensor) -> Tensor:
        places = inclusive_grid(size, strip.device, slice(*rows)).to(out.dtype).permute(1, 2, 0)
        inputs = torch.cat((places, strip), -1) if colored else places  # (R, W, m)
        angles = out[:, :, :waves].unflatten(2, (2, steps, count))  # (R, W, 2, n, m), in place
        frequencies = _frequencies(steps, out)[:, None]
        shifts = phases.detach().to(out.dtype).reshape(2, steps, count)
        # Product and sum are rounded one after the other, as above: high frequencies show it.
        for part, wave_ in enumerate((torch.sin_, torch.cos_)):
            wave_(
                torch.mul(inputs[:, :, None], frequencies, out=angles[:, :, part]).add_(
                    shifts[part]
                )
            )
        if colored:
            out[:, :, waves:] = strip
        return out

    return stream.row_local(colors, features, waves + 3 * colored)
