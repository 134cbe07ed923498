"""Convolutions of row strips that carry their own border, channels last.

3x3 kernels with many channels in float32 and float64 on the CPU take Winograd's minimal filtering
F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308): 36 products for 16 outputs instead of 144, as 36
matrix products of sums of inputs. The sums are matrix products, too: over the 36 inputs of a tile
at once, which is more arithmetic than one axis after the other and far fewer operators. 1x1
kernels are one matrix product; all others are the framework's own convolution, which is faster
there.

Legend: C input and K output channels, R rows and W columns of a strip.
"""

import functools
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime import Buffers
from upfeat.ops.runtime.linear import (
    FEWEST_CHANNELS,
    accumulate_convolution,
    by_onednn,
    rows_product,
)

# Below this many channels the sums around the products cost more than the products save.
WINOGRAD_CHANNELS = 96
SIDE = 4  # of a tile of outputs
# Points 0, NEAR, -NEAR, FAR, -FAR at which its polynomials are taken, besides infinity: with these
# rounding errors are half those of the usual 1 and 2, five times the direct convolution's.
NEAR, FAR = 0.625, 1.5
# Tiles that Winograd computes at once: long matrices, buffers near the cache.
WINOGRAD_TILES = 112


@dataclass(frozen=True)
class Kernel:
    """A convolution prepared for :func:`convolve_rows` by :func:`prepare`."""

    weight: Tensor  # (K, C) for 1x1; (36, K, C) for Winograd; else (K, C, k, l), channels last
    bias: Tensor | None  # (K,)
    channels: tuple[int, int]  # (C, K)
    reach: tuple[int, int]  # rows and columns that the output is smaller by: d (k - 1), e (l - 1)
    dilation: tuple[int, int] = (1, 1)  # (d, e)
    winograd: bool = False

    @property
    def pointwise(self) -> bool:
        """Whether every pixel is taken by itself: 1x1."""
        return self.weight.dim() == 2

    def scaled(self, scale: Tensor, shift: Tensor) -> Self:
        """Return the kernel of ``scale * convolution + shift``, (K,) each: a norm is folded in."""
        axis = 1 if self.winograd else 0
        sides = [1] * (self.weight.dim() - axis - 1)
        bias = shift if self.bias is None else self.bias * scale + shift
        weight = self.weight * scale.view(-1, *sides)
        return replace(self, weight=weight.to(self.weight.dtype), bias=bias.to(self.weight.dtype))


def prepare(
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    winograd: bool | None = None,
    dilation: tuple[int, int] = (1, 1),
) -> Kernel:
    """Bring the weights of a convolution into the form that runs fastest.

    Args:
        weight: (K, C, k, l).
        bias: (K,) or None.
        dtype: of the maps.
        winograd: force the choice for 3x3; default: by channels, type and device.
        dilation: steps between the kernel's taps, in rows and columns.

    Example:
        >>> prepare(torch.zeros(5, 2, 3, 3), None, torch.float32).channels
        (2, 5)
    """
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    channels, size = (weight.shape[1], weight.shape[0]), (weight.shape[2], weight.shape[3])
    reach = dilation[0] * (size[0] - 1), dilation[1] * (size[1] - 1)
    if size == (1, 1):
        return Kernel(weight.flatten(1), bias, channels, reach)
    if winograd is None:
        exact = weight.device.type == "cpu" and dtype in (torch.float32, torch.float64)
        winograd = exact and min(channels) >= WINOGRAD_CHANNELS
    if size == (3, 3) and dilation == (1, 1) and winograd:
        return Kernel(_spread_weight(weight), bias, channels, reach, winograd=True)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Kernel(weight, bias, channels, reach, dilation)


def convolve_rows(strip: Tensor, kernel: Kernel, out: Tensor, buffers: Buffers) -> Tensor:
    """Convolve rows that carry their own border.

    Args:
        strip: (R + rows, W + columns, C), more by the kernel's reach.
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
    if kernel.pointwise:
        rows_product(strip.flatten(0, 1), kernel.weight, kernel.bias, out.flatten(0, 1))
        return out
    if kernel.winograd:
        return _convolve_by_tiles(strip, kernel, out, buffers)
    image = strip.permute(2, 0, 1)[None]  # (1, C, R + rows, W + columns), channels last
    dense = kernel.dilation == (1, 1)
    if dense and min(kernel.channels) >= FEWEST_CHANNELS and by_onednn(strip, kernel.weight):
        accumulate_convolution(image, kernel.weight, kernel.bias, out.permute(2, 0, 1)[None])
        return out
    result = F.conv2d(image, kernel.weight, kernel.bias, dilation=kernel.dilation)
    return result[0].permute(1, 2, 0)


# -- Winograd's filtering --------------------------------------------------------------------------


def _spread_weight(weight: Tensor) -> Tensor:
    """G g G^T for every pair of channels: (K, C, 3, 3) to (36, K, C)."""
    near, far = NEAR**2, FAR**2
    rows = [[1 / (near * far), 0, 0]]
    for point, norm in ((NEAR, 2 * near * (near - far)), (FAR, 2 * far * (far - near))):
        rows += [[1 / norm, sign * point / norm, point**2 / norm] for sign in (1, -1)]
    factors = weight.new_tensor([*rows, [0, 0, 1]], dtype=torch.float64)
    spread = weight.new_empty(36, *weight.shape[:2])
    for part, out in zip(weight.split(16), spread.split(16, dim=1), strict=True):  # 64 bit is large
        double = torch.einsum("ia,jb,kcab->ijkc", factors, factors, part.double())
        out.copy_(double.flatten(0, 1))
    return spread


def _convolve_by_tiles(strip: Tensor, kernel: Kernel, out: Tensor, buffers: Buffers) -> Tensor:
    """Convolve a few rows at a time; sides that tiles do not fill are computed beyond their end."""
    rows, cols = out.shape[:2]
    full = -(-cols // SIDE) * SIDE
    step = SIDE * max(1, SIDE * WINOGRAD_TILES // full)
    for start in range(0, rows, step):
        count = min(step, rows - start)
        source, target = strip[start : start + count + 2], out[start : start + count]
        if count % SIDE == 0 and cols == full:
            _winograd(source, kernel, target, buffers)
            continue
        tall = -(-count // SIDE) * SIDE
        grown = buffers.take(strip, strip.dtype, tall + 2, full + 2, strip.shape[2]).zero_()
        grown[: count + 2, : cols + 2] = source
        result = buffers.take(out, out.dtype, tall, full, out.shape[2])
        _winograd(grown, kernel, result, buffers)
        target.copy_(result[:count, :cols])
        buffers.give(grown)
        buffers.give(result)
    return out


def _winograd(padded: Tensor, kernel: Kernel, out: Tensor, buffers: Buffers) -> None:
    """F(4x4, 3x3) on tiles of 6x6 inputs; both sides of ``out`` are multiples of 4."""
    spread, gather = _transforms(padded.dtype, padded.device)
    tiles = padded.unfold(0, 6, SIDE).unfold(1, 6, SIDE)  # (R/4, W/4, C, 6, 6)
    (rows, cols), (wide, deep) = tiles.shape[:2], kernel.channels
    inputs = buffers.take(padded, padded.dtype, 36, rows * cols, wide)
    inputs.view(6, 6, rows, cols, wide).copy_(tiles.permute(3, 4, 0, 1, 2))
    sums = buffers.take(padded, padded.dtype, 36, rows * cols, wide)
    torch.mm(spread, inputs.flatten(1), out=sums.flatten(1))
    buffers.give(inputs)
    products = buffers.take(out, out.dtype, 36, rows * cols, deep)
    torch.bmm(sums, kernel.weight.mT, out=products)
    buffers.give(sums)
    result = buffers.take(out, out.dtype, SIDE * SIDE, rows * cols, deep)
    torch.mm(gather, products.flatten(1), out=result.flatten(1))
    # (4 4, R/4 W/4, K) -> (R/4, 4, W/4, 4, K)
    tiles = result.view(SIDE, SIDE, rows, cols, deep).permute(2, 0, 3, 1, 4)
    target = out.view(rows, SIDE, cols, SIDE, deep)
    if kernel.bias is None:
        target.copy_(tiles)
    else:
        torch.add(tiles, kernel.bias, out=target)
    buffers.give(products)
    buffers.give(result)


@functools.lru_cache(maxsize=8)
def _transforms(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """B^T and A^T of both axes: (36, 36) of a tile's inputs, (16, 36) of its products."""
    near, far = NEAR**2, FAR**2
    points = ((NEAR, far), (-NEAR, far), (FAR, near), (-FAR, near))  # and the square of the others
    spread = [
        [near * far, 0, -near - far, 0, 1, 0],
        *([0, -point * other, -other, point, 1, 0] for point, other in points),
        [0, near * far, 0, -near - far, 0, 1],
    ]
    gather = [
        [float(power == 0), *(point**power for point, _ in points), float(power == SIDE - 1)]
        for power in range(SIDE)
    ]
    factors = (torch.tensor(one, dtype=torch.float64) for one in (spread, gather))
    inputs, outputs = (torch.kron(one, one).to(device, dtype) for one in factors)
    return inputs, outputs
