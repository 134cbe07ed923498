"""Pre-activation residual blocks of 1x1 convolutions, and the encoders made of them.

Legend: B batch, c channels in, d channels out, H W map.
"""

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import check_odd
from upfeat.ops import BlockWeights, pointwise_conv, pointwise_residual
from upfeat.ops.images import reflect_pad


class PointwiseResidualBlock(nn.Module):
    """x + conv2(SiLU(GN2(conv1(SiLU(GN1(x)))))), all convolutions 1x1 and without bias.

    Group norms have 8 groups, eps 1e-5 and an affine part. If the widths differ, the identity gives
    way to a 1x1 convolution ``shortcut``.

    Args:
        in_dim: channels c, a multiple of 8.
        out_dim: channels d, a multiple of 8; default ``in_dim``.

    Raises:
        ValueError: a width is no multiple of 8.

    Example:
        >>> import torch
        >>> PointwiseResidualBlock(16, 32)(torch.rand(1, 16, 5, 6)).shape
        torch.Size([1, 32, 5, 6])
    """

    groups = 8

    def __init__(self, in_dim: int, out_dim: int | None = None) -> None:
        super().__init__()
        out_dim = in_dim if out_dim is None else out_dim
        if in_dim % self.groups or out_dim % self.groups:
            raise ValueError(
                f"group norm needs widths that are multiples of {self.groups}, got {in_dim} "
                f"and {out_dim}"
            )
        self.norm1 = nn.GroupNorm(self.groups, in_dim)
        self.conv1 = nn.Conv2d(in_dim, out_dim, 1, bias=False)
        self.norm2 = nn.GroupNorm(self.groups, out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 1, bias=False)
        same = in_dim == out_dim
        self.shortcut = None if same else nn.Conv2d(in_dim, out_dim, 1, bias=False)

    def weights(self) -> BlockWeights:
        """Return the weights in the form that the operators take."""
        return BlockWeights(
            self.norm1.weight,
            self.norm1.bias,
            self.conv1.weight.flatten(1),
            self.norm2.weight,
            self.norm2.bias,
            self.conv2.weight.flatten(1),
            None if self.shortcut is None else self.shortcut.weight.flatten(1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, c, H, W) to (B, d, H, W)."""
        return pointwise_residual(x, self.weights(), self.groups, self.norm1.eps)


class ReflectConvolution(nn.Conv2d):
    """Convolution with reflect padding k // 2 and without bias, to channels_last.

    A 1x1 convolution runs as one matrix product, which needs neither padding nor a copy.

    Args:
        in_dim: channels of the input.
        out_dim: channels of the output.
        kernel_size: k, odd.

    Raises:
        ValueError: k is even.

    Example:
        >>> import torch
        >>> ReflectConvolution(3, 8, 1)(torch.rand(1, 3, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int) -> None:
        check_odd(kernel_size, "kernel_size")
        super().__init__(
            in_dim,
            out_dim,
            kernel_size,
            padding=kernel_size // 2,
            padding_mode="reflect",
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x`` (B, c, H, W) to (B, d, H, W)."""
        if self.kernel_size != (1, 1):
            return F.conv2d(reflect_pad(x, self.kernel_size[0] // 2), self.weight)
        return pointwise_conv(x, self.weight)


class PointwiseEncoder(nn.Sequential):
    """A first convolution with reflect padding, without bias, and two residual blocks.

    Args:
        in_dim: channels of the input.
        out_dim: channels d of everything after the first convolution.
        kernel_size: of the first convolution, odd.

    Example:
        >>> import torch
        >>> PointwiseEncoder(3, 16, kernel_size=3)(torch.rand(1, 3, 5, 6)).shape
        torch.Size([1, 16, 5, 6])
    """

    def __init__(self, in_dim: int, out_dim: int, kernel_size: int = 1) -> None:
        first = ReflectConvolution(in_dim, out_dim, kernel_size)
        super().__init__(first, PointwiseResidualBlock(out_dim), PointwiseResidualBlock(out_dim))

    @property
    def first(self) -> nn.Conv2d:
        """The first convolution."""
        return cast(nn.Conv2d, self[0])

    @property
    def blocks(self) -> list[PointwiseResidualBlock]:
        """The residual blocks."""
        return [cast(PointwiseResidualBlock, block) for block in list(self)[1:]]
