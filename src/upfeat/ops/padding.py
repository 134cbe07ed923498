"""Borders of maps, of any width: also wider than the map."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Padding = Literal["replicate", "reflect"]


def border_index(length: int, reach: int, padding: Padding) -> Tensor:
    """Cells of one axis with ``reach`` more on both sides, named by the cells they repeat.

    Args:
        length: cells of the axis.
        reach: cells to add on each side; it may exceed the length.
        padding: ``"replicate"`` repeats the border, ``"reflect"`` mirrors without it.

    Returns:
        (length + 2 reach,) int64 on the CPU.

    Example:
        >>> border_index(4, 2, "reflect").tolist(), border_index(4, 2, "replicate").tolist()
        ([2, 1, 0, 1, 2, 3, 2, 1], [0, 0, 0, 1, 2, 3, 3, 3])
    """
    place = torch.arange(-reach, length + reach)
    if padding == "replicate":
        return place.clamp(0, length - 1)
    period = max(1, 2 * (length - 1))
    place = place % period
    return place.minimum(period - place) if length > 1 else torch.zeros_like(place)


def reflect_pad(x: Tensor, reach: int) -> Tensor:
    """Mirror a map at its outermost pixels: (B, C, H, W) to (B, C, H + 2 reach, W + 2 reach).

    As torch's reflect padding, which refuses maps that are no larger than the border: here the
    mirrored map is mirrored again, and a single row or column repeated.

    Example:
        >>> reflect_pad(torch.tensor([[[[1.0, 2.0]]]]), 2)[0, 0, 0].tolist()
        [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]
    """
    if reach == 0:
        return x
    if reach < min(x.shape[2:]):
        return F.pad(x, [reach] * 4, mode="reflect")
    for axis in (2, 3):
        x = x.index_select(axis, border_index(x.shape[axis], reach, "reflect").to(x.device))
    return x
