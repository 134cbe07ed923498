"""Gaussian blur of maps with mirrored borders."""

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops._dispatch import without_autocast
from upfeat.ops.padding import reflect_pad

BLUR_KERNEL = 5


def gaussian_blur(image: Tensor, sigma: float, kernel_size: int = BLUR_KERNEL) -> Tensor:
    """Blur every channel of (B, C, H, W) with a Gaussian cut to an odd kernel, borders mirrored.

    Example:
        >>> import torch
        >>> gaussian_blur(torch.ones(1, 3, 8, 8), 1.0).allclose(torch.ones(1, 3, 8, 8))
        True
    """
    reach = kernel_size // 2
    offsets = torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device)
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    taps = taps / taps.sum()
    batch, channels, height, width = image.shape
    padded = reflect_pad(image, reach)
    planes = padded.reshape(batch * channels, 1, height + 2 * reach, width + 2 * reach)
    with without_autocast(image):
        planes = F.conv2d(planes, taps.view(1, 1, -1, 1))
        planes = F.conv2d(planes, taps.view(1, 1, 1, -1))
    return planes.reshape(batch, channels, height, width)
