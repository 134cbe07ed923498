"""Convolutions of row strips that carry their own border, channels last.

3x3 kernels with many channels in float32 and float64 on the CPU take Winograd's minimal filtering
F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308): 16 products for 4 outputs instead of 36, as 16
matrix products whose operands are sums of at most four inputs. 1x1 kernels are one matrix product;
all others are the framework's own convolution, which is faster there.

Legend: C input and K output channels, R rows and W columns of a strip.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime import Buffers
from upfeat.ops.runtime.linear import rows_product

# Below this many channels the sums around the products cost more than the products save.
WINOGRAD_CHANNELS = 192
# Tiles of 2x2 outputs that Winograd computes at once: long matrices, buffers near the cache.
WINOGRAD_TILES = 512


@dataclass(frozen=True)
class Kernel:
    """A k x k convolution prepared for :func:`convolve_rows` by :func:`prepare`."""

    weight: Tensor  # (K, C) for 1x1; (16, K, C) for Winograd; else (K, C, k, k), channels last
    bias: Tensor | None  # (K,)
    channels: tuple[int, int]  # (C, K)
    size: int  # k
    winograd: bool = False

    def scaled(self, scale: Tensor, shift: Tensor) -> Self:
        """Return the kernel of ``scale * convolution + shift``, (K,) each: a norm is folded in."""
        axis = 1 if self.winograd else 0
        sides = [1] * (self.weight.dim() - axis - 1)
        bias = shift if self.bias is None else self.bias * scale + shift
        weight = self.weight * scale.view(-1, *sides)
        return replace(self, weight=weight.to(self.weight.dtype), bias=bias.to(self.weight.dtype))


def prepare(
    weight: Tensor, bias: Tensor | None, dtype: torch.dtype, winograd: bool | None = None
) -> Kernel:
    """Bring the weights of a convolution into the form that runs fastest.

    Args:
        weight: (K, C, k, k).
        bias: (K,) or None.
        dtype: of the maps.
        winograd: force the choice for 3x3; default: by channels, type and device.

    Example:
        >>> prepare(torch.zeros(5, 2, 3, 3), None, torch.float32).channels
        (2, 5)
    """
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    channels, size = (weight.shape[1], weight.shape[0]), weight.shape[2]
    if size == 1:
        return Kernel(weight.flatten(1), bias, channels, size)
    if winograd is None:
        exact = weight.device.type == "cpu" and dtype in (torch.float32, torch.float64)
        winograd = exact and min(channels) >= WINOGRAD_CHANNELS
    if size == 3 and winograd:
        return Kernel(_spread_weight(weight), bias, channels, size, winograd=True)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Kernel(weight, bias, channels, size)


def convolve_rows(strip: Tensor, kernel: Kernel, out: Tensor, buffers: Buffers) -> Tensor:
    """Convolve rows that carry their own border.

    Args:
        strip: (R + k - 1, W + k - 1, C).
        kernel: of :func:`prepare`.
        out: (R, W, K), contiguous.
        buffers: of the calling thread.

    Returns:
        (R, W, K), in ``out`` or in fresh memory.

    Example:
        >>> weight, image = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 9, 8)
        >>> strip, out = image[0].permute(1, 2, 0), torch.empty(7, 6, 4)
        >>> kernel = prepare(weight, None, image.dtype)
        >>> rows = convolve_rows(strip, kernel, out, Buffers())
        >>> expected = torch.nn.functional.conv2d(image, weight)[0].permute(1, 2, 0)
        >>> torch.allclose(rows, expected, atol=1e-5)
        True
    """
    if kernel.size == 1:
        pixels = rows_product(strip.flatten(0, 1), kernel.weight, kernel.bias)
        return pixels.view(out.shape)
    if kernel.winograd:
        return _convolve_by_tiles(strip, kernel, out, buffers)
    image = strip.permute(2, 0, 1)[None]  # (1, C, R + k - 1, W + k - 1), channels last
    return F.conv2d(image, kernel.weight, kernel.bias)[0].permute(1, 2, 0)


# -- Winograd's filtering --------------------------------------------------------------------------


def _spread_weight(weight: Tensor) -> Tensor:
    """G g G^T for every pair of channels: (K, C, 3, 3) to (16, K, C)."""
    half = 0.5
    rows = weight.new_tensor([[1, 0, 0], [half, half, half], [half, -half, half], [0, 0, 1]])
    spread = torch.einsum("ia,jb,kcab->ijkc", rows.double(), rows.double(), weight.double())
    return spread.flatten(0, 1).to(weight.dtype).contiguous()


def _convolve_by_tiles(strip: Tensor, kernel: Kernel, out: Tensor, buffers: Buffers) -> Tensor:
    """Convolve a few rows at a time; odd sides are computed with one more row or column."""
    rows, cols = out.shape[:2]
    even = cols + cols % 2
    step = 2 * max(1, 2 * WINOGRAD_TILES // even)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        source, target = strip[start : start + count + 2], out[start : start + count]
        if count % 2 == 0 and cols == even:
            _winograd(source, kernel, target, buffers)
            continue
        tall = count + count % 2
        grown = buffers.take(strip, strip.dtype, tall + 2, even + 2, strip.shape[2]).zero_()
        grown[: count + 2, : cols + 2] = source
        result = buffers.take(out, out.dtype, tall, even, out.shape[2])
        _winograd(grown, kernel, result, buffers)
        target.copy_(result[:count, :cols])
        buffers.give(grown)
        buffers.give(result)
    return out


def _winograd(padded: Tensor, kernel: Kernel, out: Tensor, buffers: Buffers) -> None:
    """F(2x2, 3x3) on tiles of 4x4 inputs; both sides of ``out`` are even."""
    rows, cols = out.shape[0] // 2, out.shape[1] // 2  # of tiles
    wide, deep = kernel.channels
    tall = buffers.take(padded, padded.dtype, 4, rows, 2 * cols + 2, wide)
    spread = buffers.take(padded, padded.dtype, 4, rows, cols, wide)
    sums = buffers.take(out, out.dtype, 2, 4, rows, cols, deep)
    _spread([padded[i : i + 2 * rows : 2] for i in range(4)], tall)
    for i in range(4):
        _spread([tall[i, :, j : j + 2 * cols : 2] for j in range(4)], spread)
        for j in range(4):
            product = rows_product(spread[j].flatten(0, 1), kernel.weight[4 * i + j])
            if (i, j) == (1, 1) and kernel.bias is not None:
                product += kernel.bias  # this one enters each of the four outputs once
            _add_product(product.view(rows, cols, deep), i, sums[:, j])
    for i in range(2):
        left, right = (out[i::2, j::2] for j in range(2))
        torch.add(sums[i, 0], sums[i, 1], out=left).add_(sums[i, 2])
        torch.sub(sums[i, 1], sums[i, 2], out=right).sub_(sums[i, 3])
    for one in (tall, spread, sums):
        buffers.give(one)


def _spread(source: list[Tensor], out: Tensor) -> None:
    """B^T: four inputs in a line to the four factors of the products."""
    torch.sub(source[0], source[2], out=out[0])
    torch.add(source[1], source[2], out=out[1])
    torch.sub(source[2], source[1], out=out[2])
    torch.sub(source[1], source[3], out=out[3])


def _add_product(product: Tensor, i: int, sums: Tensor) -> None:
    """A^T, product by product: the four of a column to two sums."""
    if i == 0:
        sums[0].copy_(product)
    elif i < 3:
        sums[0].add_(product)
    if i == 1:
        sums[1].copy_(product)
    elif i > 1:
        sums[1].sub_(product)
