"""A strided convolution that is right on maps of one or two columns."""

from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.ops.symbolic import exporting


class StridedConv2d(nn.Conv2d):
    """``nn.Conv2d`` with a stride whose output may be one column wide.

    PyTorch's CPU kernels for bfloat16 read memory that nobody wrote where such an output has one
    column, forward and in the gradient of the weight. On a map of at most two columns every
    position is computed, and those of the stride are taken. Parameters are those of ``nn.Conv2d``.

    Example:
        >>> import torch
        >>> narrow = torch.randn(1, 4, 9, 1, dtype=torch.bfloat16)
        >>> convolution = StridedConv2d(4, 8, 3, stride=2, padding=1, dtype=torch.bfloat16)
        >>> bool(convolution(narrow).isfinite().all())
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        if exporting() or x.shape[3] > 2:
            return super().forward(x)
        dense = F.conv2d(x, self.weight, self.bias, 1, self.padding, self.dilation, self.groups)
        return dense[:, :, :: self.stride[0], :: self.stride[1]]
