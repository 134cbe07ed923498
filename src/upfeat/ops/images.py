"""Arithmetic on images: normalisation, and telling an image that lacks it."""

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

__all__ = ["Size", "known_normalized", "normalize", "raw_scale"]

Size: TypeAlias = tuple[int, int]
"""Height and width, in pixels or cells."""

_MARK = "_upfeat_normalized"
LOOKED_AT = 64  # rows and columns of an image whose values are looked at


def normalize(image: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(image - mean) / std`` of each channel of (B, 3, H, W).

    Example:
        >>> import torch
        >>> from upfeat.ops.images import normalize
        >>> normalize(torch.ones(1, 3, 1, 1), (0.5,) * 3, (0.25,) * 3).flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    # (3,) -> (3, 1, 1)
    return known_normalized(
        (image - image.new_tensor(mean)[:, None, None]) / image.new_tensor(std)[:, None, None]
    )


def known_normalized(image: Tensor) -> Tensor:
    """Mark an image as normalised, so that :func:`raw_scale` need not guess; return it.

    Example:
        >>> import torch
        >>> from upfeat.ops.images import known_normalized, raw_scale
        >>> raw_scale(known_normalized(torch.rand(1, 3, 8, 8)), (0.5,) * 3, (0.5,) * 3) is None
        True
    """
    if not torch.compiler.is_compiling():
        setattr(image, _MARK, True)
    return image


def raw_scale(
    image: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Literal["[0, 1]", "[0, 255]"] | None:
    """Return the range of an image that looks as if nobody had normalised it, or None.

    None for what :func:`normalize` returned. Else a guess from 64 x 64 of the values: none
    negative, some near 0, some beyond 0.5 and none beyond 1, where ``mean`` and ``std`` would
    make dark pixels negative; or values that no pixel can reach. A photo that was normalised has
    values on both sides of 0.

    Args:
        image: (B, 3, H, W).
        mean: what should have been taken from it, for each channel.
        std: what it should have been divided by then.

    Example:
        >>> import torch
        >>> from upfeat.ops.images import normalize, raw_scale
        >>> image, half = torch.rand(1, 3, 32, 32), (0.5, 0.5, 0.5)
        >>> raw_scale(image, half, half), raw_scale(255 * image, half, half)
        ('[0, 1]', '[0, 255]')
        >>> raw_scale(normalize(image, half, half), half, half) is None
        True
    """
    if getattr(image, _MARK, False):
        return None
    rows, cols = (max(1, side // LOOKED_AT) for side in image.shape[-2:])
    seen = torch.stack(image.detach()[:, :, ::rows, ::cols].aminmax())
    low, high = seen.tolist()
    darkest = min(-m / s for m, s in zip(mean, std, strict=True))
    brightest = max((1 - m) / s for m, s in zip(mean, std, strict=True))
    if low >= 0 and high > max(20.0, 4 * brightest):
        return "[0, 255]"
    if darkest < -0.2 and 0 <= low < 0.1 and 0.5 < high <= 1:
        return "[0, 1]"
    return None
