"""Overlapping windows over an image, as sliding-window segmentation places them.

Legend: ``B`` batch, ``W`` words, ``H W'`` image.
"""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor

from upfeat.data.sizes import Size

__all__ = ["slide", "window_places"]


def window_places(size: Size, window: int, stride: int) -> Iterator[tuple[slice, slice]]:
    """Yield rows and columns of each window; the last of an axis is moved back into the image.

    Args:
        size: (H, W') of the image; a smaller side than the window's gives one window of its own
            length.
        window: side of the windows.
        stride: distance of two windows.

    Raises:
        ValueError: the stride would leave pixels out.

    Example:
        >>> from upfeat.evaluation.probes.windows import window_places
        >>> [(rows.start, columns.start) for rows, columns in window_places((4, 7), 4, 2)]
        [(0, 0), (0, 2), (0, 3)]
    """
    if not 0 < stride <= window:
        raise ValueError(f"the stride must be from 1 to the window, {window}, got {stride}")
    axes = []
    for side in size:
        count = max(side - window + stride - 1, 0) // stride + 1
        ends = [min(place * stride + window, side) for place in range(count)]
        axes.append([slice(max(end - window, 0), end) for end in ends])
    yield from ((rows, columns) for rows in axes[0] for columns in axes[1])


def slide(
    image: Tensor,
    function: Callable[[Tensor], Tensor],
    *,
    window: int,
    stride: int,
    multiple: int = 1,
    padding: Tensor | None = None,
) -> Tensor:
    """Average the outputs of a function on overlapping windows (ProxyCLIP's rule).

    Args:
        image: (B, 3, H, W').
        function: of a window (B, 3, s, t), sides multiples of ``multiple``; gives (B, W, s, t).
        window: side of the windows.
        stride: distance of two windows.
        multiple: windows are padded to multiples of this on both sides, the smaller half first;
            the padding is cut from what the function gives.
        padding: (3,) value of the padded pixels; None for 0.

    Returns:
        (B, W, H, W')

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.windows import slide
        >>> image = torch.rand(1, 3, 5, 9)
        >>> torch.allclose(slide(image, lambda part: part, window=4, stride=2, multiple=8), image)
        True
    """
    total, count = image.new_zeros(()), image.new_zeros(1, 1, *image.shape[-2:])
    height, width = image.shape[-2:]
    fill = image.new_zeros(3) if padding is None else padding.to(image)
    for rows, columns in window_places((height, width), window, stride):
        part = image[..., rows, columns]
        sides = [-side % multiple for side in part.shape[-2:]]
        top, left = sides[0] // 2, sides[1] // 2
        shifted = part - fill[:, None, None]
        padded = F.pad(shifted, (left, sides[1] - left, top, sides[0] - top))
        result = function(padded + fill[:, None, None])
        result = result[..., top : top + part.shape[-2], left : left + part.shape[-1]]
        if not total.dim():
            total = result.new_zeros(*result.shape[:2], height, width)
        total[..., rows, columns] += result
        count[..., rows, columns] += 1
    return total / count
