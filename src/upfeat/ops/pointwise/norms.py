"""Norms of each position over its channels, and of vectors.

Legend: B batch, C channels, h w grid.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import stream
from upfeat.ops.stream.nodes import layer_norm

__all__ = [
    "channel_layer_norm",
    "channel_norm",
    "cosine",
    "magnitude",
    "unit_vectors",
]

EPS = 1e-5


def channel_norm(features: Tensor) -> Tensor:
    """Bring each position's features to mean 0 and standard deviation 1 over the channels.

    Args:
        features: (B, C, h, w).

    Returns:
        (B, C, h, w), in float32 at least. Applied twice, it changes nothing but rounding.

    Example:
        >>> import torch
        >>> normal = channel_norm(3 + 5 * torch.randn(1, 64, 4, 4))
        >>> torch.allclose(normal.mean(1), torch.zeros(1, 4, 4), atol=1e-5)
        True
    """
    wide = features.to(torch.promote_types(features.dtype, torch.float32))
    tokens = wide.permute(0, 2, 3, 1)  # (B, C, h, w) -> (B, h, w, C)
    return F.layer_norm(tokens, tokens.shape[-1:], eps=EPS).permute(0, 3, 1, 2)


def channel_layer_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = EPS
) -> Tensor:
    """Apply layer norm over the channels of a map.

    Args:
        x: (B, C, H, W).
        weight: (C,) or None.
        bias: (C,) or None.
        eps: added to the variance.

    Returns:
        (B, C, H, W), channels last in memory.

    Example:
        >>> import torch
        >>> norm = channel_layer_norm(torch.randn(1, 64, 4, 4), None, None)
        >>> torch.allclose(norm.mean(1), torch.zeros(1, 4, 4), atol=1e-5)
        True
    """
    if has_torch_function((x,)):
        return handle_torch_function(channel_layer_norm, (x,), x, weight, bias, eps)
    pixels = x.permute(0, 2, 3, 1)  # (B, H, W, C)
    return F.layer_norm(pixels, pixels.shape[-1:], weight, bias, eps).permute(0, 3, 1, 2)


@stream.recorded_as(channel_layer_norm)
def _by_rows(x: Any, weight: Tensor | None, bias: Tensor | None, eps: float = EPS) -> Any:
    def normalise(strip: Tensor, rows: tuple[int, int], out: Tensor) -> Tensor:
        return layer_norm(strip, weight, bias, eps, out)

    return stream.row_local(x, normalise)


def unit_vectors(x: Tensor, dim: int = 1) -> Tensor:
    """Divide vectors by their Euclidean norm; a vector of zeros stays zero.

    Computed in float32 at least: torch's own bound on the norm, 1e-12, is zero in float16, where a
    single vector of zeros becomes NaN.

    Args:
        x: (..., C, ...), floating point.
        dim: the axis of the vectors.

    Returns:
        The shape and type of ``x``.

    Example:
        >>> import torch
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]).half()).tolist()
        [[0.60009765625, 0.7998046875], [0.0, 0.0]]
    """
    return F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=dim).to(x.dtype)


def cosine(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    """Return the cosine of pairs of vectors, in float32 at least; 0 where one is zero.

    Args:
        a: (..., C, ...), floating point.
        b: as ``a``.
        dim: the axis of the vectors, which the result lacks.

    Example:
        >>> import torch
        >>> cosine(torch.zeros(1, 8).half(), torch.ones(1, 8).half()).tolist()
        [0.0]
    """
    a, b = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (a, b))
    return F.cosine_similarity(a, b, dim=dim)


def magnitude(x: Tensor) -> Tensor:
    """Return the norm of each pixel's channels, (B, C, h, w) -> (B, 1, h, w), float32 at least.

    Example:
        >>> import torch
        >>> magnitude(torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)).item()
        5.0
    """
    return x.to(torch.promote_types(x.dtype, torch.float32)).norm(dim=1, keepdim=True)
