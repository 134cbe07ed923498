"""Root-mean-square normalisation of the last axis, in bands that stay in a cache.

    y = x * rstd * weight,    rstd = 1 / sqrt(mean(x^2) + eps)

Composed of single operators it costs more than the matrix product behind it: each of its six steps
reads and writes the whole map.

Legend: P positions, d channels, p positions of a band.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from upfeat.ops import reference
from upfeat.ops.runtime import new_large, run_blocks, sum_parts, wants_reference
from upfeat.ops.stream.moments import band_pixels


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root of the mean square of the last axis, times ``weight``.

    Args:
        x: (..., d).
        weight: (d,), in the type of ``x``.
        eps: added to the mean square.

    Returns:
        Shape and type of ``x``. Gradients flow to both; the backward pass keeps ``x`` alone.

    Raises:
        ValueError: shapes or types do not fit.

    Example:
        >>> import torch
        >>> rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), 0.0)
        tensor([[0.8485, 2.2627]])
    """
    if weight.dim() != 1 or x.shape[-1:] != weight.shape or x.dtype != weight.dtype:
        raise ValueError(
            f"weight must be ({x.shape[-1]},) in {x.dtype} for this input, got "
            f"{tuple(weight.shape)} in {weight.dtype}"
        )
    if wants_reference() or x.device.type != "cpu":  # an accelerator has one kernel for it
        return reference.rms_norm(x, weight, eps)
    rows: Tensor = _RmsNorm.apply(x.reshape(-1, len(weight)), weight, eps)  # (P, d)
    return rows.view(x.shape)


def _bands(x: Tensor) -> list[slice]:
    step = band_pixels(x)
    return [slice(start, start + step) for start in range(0, len(x), step)]


class _RmsNorm(torch.autograd.Function):
    """Keeps its input and one number for each position."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, rstd = new_large(x, *x.shape), x.new_empty(len(x), 1)

        def normalise(band: slice, _: None) -> None:
            norm = torch.linalg.vector_norm(x[band], dim=-1, keepdim=True)  # (p, 1)
            torch.rsqrt(norm.square_().div_(len(weight)).add_(eps), out=rstd[band])
            torch.mul(x[band], rstd[band], out=out[band]).mul_(weight)

        run_blocks(_bands(x), normalise, lambda: None, x.device)
        ctx.save_for_backward(x, weight, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x rstd: dx = rstd (weight g - n mean(weight g n)), dweight = sum(g n)."""
        x, weight, rstd = ctx.saved_tensors
        out = new_large(x, *x.shape)

        def back(band: slice, total: Tensor) -> None:
            normed = x[band] * rstd[band]  # (p, d)
            product = grad[band] * normed
            total += product.sum(0)
            slope = (product @ weight).div_(-len(weight))  # (p,)
            below = torch.mul(grad[band], weight, out=out[band])
            below.addcmul_(normed, slope[:, None]).mul_(rstd[band])

        totals = run_blocks(_bands(x), back, lambda: torch.zeros_like(weight), x.device)
        return out, sum_parts(totals), None
