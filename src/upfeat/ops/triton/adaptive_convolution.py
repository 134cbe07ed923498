"""Triton kernels of adaptive convolution: forward, gradient of the kernel, gradient of the source.

A program takes a block of pixels and a block of channels and walks over the taps. The gradient of
the source is gathered, not scattered: a cell knows the pixels whose windows hold it, so no sum runs
in arbitrary order. Every tap gets its gradient, unlike in FeatUp's CUDA extension. Legend as in
``upfeat.ops.filters.adaptive``; maps are channels last inside.
"""

# Kernels are a language of their own: untyped.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from upfeat.ops.triton import _common

PIXELS = 32


@triton.jit
def _forward_kernel(
    source, weights, out, side, cols, line, pixels, cells, channels, ratio,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per (block of pixels, image, block of channels): sums over the windows."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = at < pixels
    corner = at // cols // ratio * line + at % cols // ratio
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = inside[:, None] & (channel < channels)[None, :]
    own = (image * pixels + at) * side * side
    source += image * cells * channels
    mixed = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for tap in range(side * side):
        weight = tl.load(weights + own + tap, mask=inside, other=0.0).to(tl.float32)
        place = (corner + tap // side * line + tap % side).to(tl.int64) * channels
        seen = tl.load(source + place[:, None] + channel[None, :], mask=mask, other=0.0)
        mixed += weight[:, None] * seen.to(tl.float32)
    place = (image * pixels + at) * channels
    mixed = mixed.to(out.dtype.element_ty)
    tl.store(out + place[:, None] + channel[None, :], mixed, mask=mask)


@triton.jit
def _grad_kernel_kernel(
    grad_out, source, grad, side, cols, line, pixels, cells, channels, ratio,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per (block of pixels, image, tap): inner product of a pixel's gradient and its cell."""
    image = tl.program_id(1).to(tl.int64)
    tap = tl.program_id(2)
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = at < pixels
    cell = (at // cols // ratio + tap // side) * line + at % cols // ratio + tap % side
    from_grad = (image * pixels + at) * channels
    from_source = (image * cells + cell) * channels
    product = tl.zeros([PIXELS], tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = inside[:, None] & (channel < channels)[None, :]
        above = tl.load(grad_out + from_grad[:, None] + channel[None, :], mask=mask, other=0.0)
        seen = tl.load(source + from_source[:, None] + channel[None, :], mask=mask, other=0.0)
        product += tl.sum(above.to(tl.float32) * seen.to(tl.float32), axis=1)
    place = (image * pixels + at) * side * side + tap
    tl.store(grad + place, product.to(grad.dtype.element_ty), mask=inside)


@triton.jit
def _grad_source_kernel(
    grad_out, weights, grad, side, rows, cols, line, pixels, cells, channels, ratio,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per (block of cells, image, block of channels): what the pixels that see them ask."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for tap in range(side * side):
        for sub in range(ratio * ratio):
            i = (at // line - tap // side) * ratio + sub // ratio
            j = (at % line - tap % side) * ratio + sub % ratio
            inside = (at < cells) & (i >= 0) & (j >= 0) & (i < rows) & (j < cols)
            place = image * pixels + i * cols + j
            weight = tl.load(weights + place * side * side + tap, mask=inside, other=0.0)
            above = tl.load(
                grad_out + (place * channels)[:, None] + channel[None, :],
                mask=inside[:, None] & known[None, :],
                other=0.0,
            )
            total += weight.to(tl.float32)[:, None] * above.to(tl.float32)
    place = (image * cells + at) * channels
    total = total.to(grad.dtype.element_ty)
    mask = (at < cells)[:, None] & known[None, :]
    tl.store(grad + place[:, None] + channel[None, :], total, mask=mask)


def forward(source: Tensor, kernel: Tensor, *, ratio: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output (B, C, H, W); nothing is kept for the backward."""
    _common.check_covered(source, kernel, source, 1)
    if source.numel() * kernel.numel() == 0:
        raise NotImplementedError("nothing to compute")
    batch, channels, height, width = source.shape
    rows, cols, side = kernel.shape[1:4]
    last, weights = _last(source), kernel.contiguous()
    out = last.new_empty(batch, rows, cols, channels)
    block = _common.block(channels, 128)
    grid = (triton.cdiv(rows * cols, PIXELS), batch, triton.cdiv(channels, block))
    with _common.on_device(source):
        _forward_kernel[grid](
            last, weights, out, side, cols, width, rows * cols, height * width, channels, ratio,
            PIXELS=PIXELS, CHANNELS=block,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2), ()


def backward(
    grad_output: Tensor,
    source: Tensor,
    kernel: Tensor,
    residuals: tuple[Tensor, ...],
    *,
    ratio: int,
) -> tuple[Tensor, Tensor]:
    """Gradients of source and kernel, each in its input's type and shape."""
    batch, channels, height, width = source.shape
    rows, cols, side = kernel.shape[1:4]
    above, last, weights = _last(grad_output), _last(source), kernel.contiguous()
    to_source, to_kernel = torch.empty_like(last), torch.empty_like(weights)
    block = _common.block(channels, 128)
    sizes = (rows * cols, height * width, channels, ratio)
    blocks = {"PIXELS": PIXELS, "CHANNELS": block}
    with _common.on_device(source):
        _grad_kernel_kernel[triton.cdiv(rows * cols, PIXELS), batch, side * side](
            above, last, to_kernel, side, cols, width, *sizes, **blocks
        )
        grid = (triton.cdiv(height * width, PIXELS), batch, triton.cdiv(channels, block))
        _grad_source_kernel[grid](
            above, weights, to_source, side, rows, cols, width, *sizes, **blocks
        )
    return to_source.permute(0, 3, 1, 2), to_kernel


def _last(tensor: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C) in one piece."""
    return tensor.permute(0, 2, 3, 1).contiguous()
