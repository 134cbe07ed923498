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
    x = _wide(x)
    return (x.diff(dim=2).square().sum() + x.diff(dim=3).square().sum()) / x.numel()


def magnitude(x: Tensor) -> Tensor:
    """Return the norm of each pixel's channels, (B, C, h, w) -> (B, 1, h, w), float32 at least.

    Example:
        >>> import torch
        >>> magnitude(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).item()
        5.0
    """
    return _wide(x).norm(dim=1, keepdim=True)


def uncertain_error(square: Tensor, log_scale: Tensor) -> Tensor:
    """Return the mean of squared errors in units of a predicted scale, plus its logarithm.

    The likelihood of FeatUp (arXiv 2403.10516, equation 2): square / (2 s^2) + log s. The scale
    comes as its logarithm, and the sum is taken in float32 at least: neither s nor its square fits
    a float where features are large.

    Args:
        square: squared errors (B, C, h, w).
        log_scale: log s, (B, 1, h, w).

    Example:
        >>> import torch
        >>> square, scale = torch.full((1, 2, 1, 1), 8.0), torch.full((1, 1, 1, 1), 2.0)
        >>> round(uncertain_error(square, scale.log()).item(), 4)
        1.6931
    """
    square, log_scale = _wide(square), _wide(log_scale)
    return (square * (-2 * log_scale).exp() / 2 + log_scale).mean()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
