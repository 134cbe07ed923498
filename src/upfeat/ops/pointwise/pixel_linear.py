"""A linear layer on every pixel of a large map: matrix products into memory that is reused.

``torch.nn.functional.linear`` asks the system for its result's memory in every call. On a CPU, for
maps of a hundred megabytes and few channels, that takes longer than the product; `new_large` is
quicker, in its forward and backward pass.

Legend: P pixels of all leading axes, c channels in, d channels out.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import has_torch_function

from upfeat.ops.runtime import LARGE, compute_dtype, new_large, wants_reference, without_autocast


def pixel_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``torch.nn.functional.linear(x, weight, bias)``; gradients flow once.

    Args:
        x: (..., c).
        weight: (d, c).
        bias: (d,).

    Returns:
        (..., d) in the type of ``x``, autocast's inside autocast.

    Example:
        >>> import torch
        >>> x, weight = torch.randn(2, 5, 3), torch.randn(4, 3)
        >>> torch.equal(pixel_linear(x, weight), torch.nn.functional.linear(x, weight))
        True
    """
    size = x[..., 0].numel() * len(weight) * x.element_size()
    if wants_reference() or x.device.type != "cpu" or size < LARGE:
        return F.linear(x, weight, bias)
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    with without_autocast(x):
        cast = None if bias is None else bias.to(dtype)
        pixels = x.to(dtype).flatten(0, -2)  # (P, c)
        out: Tensor = _PixelLinear.apply(pixels, weight.to(dtype), cast)
        return out.unflatten(0, x.shape[:-1])


def pointwise_conv(x: Tensor, weight: Tensor) -> Tensor:
    """Apply a 1x1 convolution without bias as one matrix product: (B, c, H, W) to (B, d, H, W).

    Args:
        x: (B, c, H, W).
        weight: (d, c, 1, 1).

    Example:
        >>> import torch
        >>> x, weight = torch.randn(2, 3, 5, 4), torch.randn(6, 3, 1, 1)
        >>> torch.allclose(pointwise_conv(x, weight), F.conv2d(x, weight), atol=1e-6)
        True
    """
    if has_torch_function((x,)):
        return F.conv2d(x, weight)
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, c)
    return pixel_linear(pixels, weight.flatten(1)).permute(0, 3, 1, 2)


class _PixelLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(pixels, weight)
        out = new_large(pixels, len(pixels), len(weight))
        if bias is None:
            return torch.mm(pixels, weight.T, out=out)
        return torch.addmm(bias, pixels, weight.T, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        pixels, weight = ctx.saved_tensors
        of_pixels = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_pixels = torch.mm(grad, weight, out=new_large(pixels, *pixels.shape))
        if ctx.needs_input_grad[1]:
            of_weight = grad.T @ pixels  # (d, c)
        if ctx.needs_input_grad[2]:
            of_bias = grad.sum(0, dtype=compute_dtype(grad)).to(grad.dtype)
        return of_pixels, of_weight, of_bias
