"""Convolutions of row strips that carry their own border, channels last.

3x3 kernels with many channels in float32 and float64 on the CPU take Winograd's minimal filtering
F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308); 1x1 kernels are one matrix product; all others are
the framework's own convolution, which is faster there.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops import banded_convolution
from upfeat.ops._dispatch import Scratch


class Kernel(NamedTuple):
    """A k x k convolution prepared for :func:`convolve_rows` by :func:`prepare`."""

    weight: Tensor  # (C, K) for 1x1; (K, C, k, k), channels last
    bias: Tensor | None  # (K,)
    channels: tuple[int, int]  # (C, K)
    size: int  # k
    winograd: banded_convolution.Kernel | None = None


def prepare(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Kernel:
    """Bring the weights (K, C, k, k) of a convolution into the form that runs fastest."""
    weight = weight.detach().to(dtype)
    bias = None if bias is None else bias.detach().to(dtype)
    channels, size = (weight.shape[1], weight.shape[0]), weight.shape[2]
    if size == 1:
        return Kernel(weight.flatten(1).T.contiguous(), bias, channels, size)
    if size == 3:
        zeros = weight.new_zeros(channels[1]) if bias is None else bias
        special = banded_convolution.prepare_kernel(weight, zeros)
        if special.winograd:
            return Kernel(weight, bias, channels, size, special)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return Kernel(weight, bias, channels, size)


def convolve_rows(strip: Tensor, kernel: Kernel, out: Tensor) -> Tensor:
    """Convolve (R + k - 1, W + k - 1, C) to (R, W, K), in ``out`` or in fresh memory."""
    if kernel.size == 1:
        pixels, result = strip.flatten(0, 1), out.view(-1, out.shape[2])
        if kernel.bias is None:
            torch.mm(pixels, kernel.weight, out=result)
        else:
            torch.addmm(kernel.bias, pixels, kernel.weight, out=result)
        return out
    if kernel.winograd is not None:
        scratch = Scratch(strip, strip.dtype)
        return banded_convolution.convolve_rows(strip.contiguous(), kernel.winograd, scratch)
    image = strip.permute(2, 0, 1)[None]  # (1, C, R + k - 1, W + k - 1), channels last
    return F.conv2d(image, kernel.weight, kernel.bias)[0].permute(1, 2, 0)
