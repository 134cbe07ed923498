"""Penalties on one map, and the error that a predicted scale weighs.

Legend: ``B`` batch, ``C`` channels, ``h w`` grid.
"""

import torch
from torch import Tensor

from upfeat.errors import check_map


def total_variation(x: Tensor) -> Tensor:
    """Return the sum of squared differences of neighbours, over B C h w.

    As released with LoftUp and FeatUp: vertical and horizontal pairs, both divided by the number
    of all values. Computed in float32 at least.

    Args:
        x: (B, C, h, w).

    Example:
        >>> import torch
        >>> total_variation(torch.tensor([[[[0.0, 2.0]]]])).item()
        2.0
    """
    check_map(x, "x", "(B, C, h, w)")
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    return (x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum()) / x.numel()


def magnitude(x: Tensor) -> Tensor:
    """Return the norm of each pixel's channels, (B, C, h, w) -> (B, 1, h, w).

    Example:
        >>> import torch
        >>> magnitude(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).item()
        5.0
    """
    return x.norm(dim=1, keepdim=True)


def uncertain_error(square: Tensor, scale: Tensor) -> Tensor:
    """Return the mean of squared errors in units of a predicted scale, plus its logarithm.

    The likelihood of FeatUp (arXiv 2403.10516, equation 2): square / (2 s^2) + log s.

    Args:
        square: squared errors (B, C, h, w).
        scale: s, (B, 1, h, w), positive.

    Example:
        >>> import torch
        >>> square, scale = torch.full((1, 2, 1, 1), 8.0), torch.full((1, 1, 1, 1), 2.0)
        >>> round(uncertain_error(square, scale).item(), 4)
        1.6931
    """
    return (square / (2 * scale.square()) + scale.log()).mean()
