"""Normalisation of each position's features over the channels.

    y = (x - mean(x)) / sqrt(var(x) + eps)

Legend: B batch, C channels, h w grid.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import stream
from upfeat.ops.stream.nodes import layer_norm

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
