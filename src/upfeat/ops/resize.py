"""Resizing of maps and images: bilinear, and antialiased where they shrink."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops._dispatch import wants_reference
from upfeat.ops.memory import new_large

FEW = 24  # channels up to which one channel after the other is quicker


def resize_bilinear_reference(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Plain PyTorch, see :func:`resize_bilinear`."""
    return F.interpolate(x, size, mode="bilinear")


def resize_bilinear(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map bilinearly, without aligned corners or antialiasing.

    Without gradients on the CPU the channels lie side by side in memory, so that places are looked
    up once for all of them, and the result on large pages (:mod:`upfeat.ops.memory`).

    Args:
        x: (B, C, h, w).
        size: (H', W').

    Returns:
        (B, C, H', W'), in any memory format.

    Example:
        >>> import torch
        >>> from upfeat.ops.resize import resize_bilinear
        >>> resize_bilinear(torch.tensor([[[[1.0, 2.0]]]]), (1, 4))[0, 0, 0].tolist()
        [1.0, 1.25, 1.75, 2.0]
    """
    if _in_one_piece(x):
        return resize_bilinear_reference(x, size)
    x = x.contiguous(memory_format=torch.channels_last)
    # (B, H', W', C) -> (B, C, H', W'), channels last in memory
    out = new_large(x, len(x), *size, x.shape[1]).permute(0, 3, 1, 2)
    with torch.no_grad():
        return torch.ops.aten.upsample_bilinear2d(x, list(size), False, None, None, out=out)


def resize_antialiased(
    x: Tensor, size: tuple[int, int], mode: Literal["bilinear", "bicubic"] = "bilinear"
) -> Tensor:
    """Resize a map whose kernel grows as the map shrinks, without aligned corners.

    The one call of torch's antialiased resize in the package: torch mixes up the channels of a
    channels_last map that becomes one pixel wide, and has no half precision on the CPU. So the map
    is made contiguous, and computed in float32 at least. Without gradients on the CPU that is done
    with a few channels at a time, so that a second map of the input's size is never held.

    Args:
        x: (B, C, h, w), floating point, in any memory format.
        size: (H', W').
        mode: the kernel. Bicubic (a = -0.5) overshoots the range of ``x``.

    Returns:
        (B, C, H', W') of the type of ``x``, contiguous.

    Example:
        >>> import torch
        >>> from upfeat.ops.resize import resize_antialiased
        >>> resize_antialiased(torch.tensor([[[[0.0, 0.0, 3.0, 3.0]]]]), (1, 1)).item()
        1.5
    """
    if _in_one_piece(x):
        return _antialiased(x, size, mode)
    out = new_large(x, *x.shape[:2], *size)
    for own, part in zip(out.split(FEW, dim=1), x.split(FEW, dim=1), strict=True):
        own.copy_(_antialiased(part, size, mode))
    return out


def _antialiased(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32)).contiguous()
    return F.interpolate(wide, size, mode=mode, antialias=True).to(x.dtype)


def _in_one_piece(x: Tensor) -> bool:
    """Whether torch's operator should resize the map as it is: under a graph, or few channels."""
    graph = wants_reference() or (torch.is_grad_enabled() and x.requires_grad)
    return graph or x.device.type != "cpu" or x.shape[1] <= FEW
