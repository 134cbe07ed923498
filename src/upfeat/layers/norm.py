"""Normalisation of each position over its channels."""

import torch
from torch import Tensor, nn

from upfeat.ops import channel_layer_norm, rms_norm
from upfeat.ops.runtime import without_autocast


class RMSNorm(nn.RMSNorm):
    """``torch.nn.RMSNorm`` whose mean square is never taken in half precision.

    y = x / sqrt(mean(x^2) + eps) * weight over the last axis, eps = machine epsilon of the type it
    is computed in: float32 for half precision inputs (torch would take the far larger epsilon of
    the half type), else the input's own, as torch does.

    Example:
        >>> import torch
        >>> x = torch.randn(2, 5, 8)
        >>> torch.allclose(RMSNorm(8)(x), torch.nn.RMSNorm(8)(x))
        True
    """

    def __init__(self, normalized_shape: int) -> None:
        super().__init__(normalized_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis of ``x`` (..., d); same shape and type."""
        wide = torch.promote_types(x.dtype, torch.float32)
        eps = torch.finfo(wide).eps if self.eps is None else self.eps
        with without_autocast(x):
            return rms_norm(x.to(wide), self.weight.to(wide), eps).to(x.dtype)


class ChannelLayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` over the channels of maps (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise each pixel of ``x`` (B, C, H, W)."""
        return channel_layer_norm(x, self.weight, self.bias, self.eps)
