"""FeatUp's learned reductions of a fine map to the backbone's grid (arXiv 2403.10516, section 3.1).

Windows of k x k pixels start every ``(H - k) // (h - 1)`` pixels: they overlap or leave gaps
where the map is no whole number of windows.

Legend: B batch, C channels, H W fine map, h w grid, k side of a window.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from upfeat.errors import shape_text
from upfeat.ops.images import gaussian_blur

SCALE_OFFSET, SCALE_FLOOR = 0.1, 1e-4  # of the predicted scale in FeatUp's uncertain loss


def _strides(x: Tensor, k: int, size: tuple[int, int] | None) -> tuple[tuple[int, int], ...]:
    """Grid and steps of the windows; without a size they are whole, side by side."""
    sides = (x.shape[2], x.shape[3])
    if size is None:
        if any(side % k for side in sides):
            raise ValueError(
                f"the sides of {shape_text(x)} must be multiples of the kernel size {k}; resize "
                "the map, or name the size of the result"
            )
        return (sides[0] // k, sides[1] // k), (k, k)
    steps = [(side - k) // max(n - 1, 1) for side, n in zip(sides, size, strict=True)]
    if (
        any(side < k for side in sides)
        or min(size) < 1
        or any(step < 1 and n > 1 for step, n in zip(steps, size, strict=True))
    ):
        raise ValueError(
            f"{shape_text(x)} has no {size[0]}x{size[1]} different windows of {k}x{k} pixels; "
            "take a smaller kernel or a larger map"
        )
    return size, (max(steps[0], 1), max(steps[1], 1))


def _reach(x: Tensor, size: tuple[int, int], steps: tuple[int, int], k: int) -> Tensor:
    """Cut off what no window sees."""
    rows, cols = ((n - 1) * step + k for n, step in zip(size, steps, strict=True))
    return x[:, :, :rows, :cols]


class SimpleDownsampler(nn.Module):
    """One kernel for all cells and channels, positive and of sum one: a learned blur."""

    def __init__(self, kernel_size: int) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.kernel_params = nn.Parameter(torch.ones(kernel_size, kernel_size))

    def kernel(self) -> Tensor:
        """The kernel (1, 1, k, k)."""
        positive = self.kernel_params.abs()
        return (positive / positive.sum())[None, None]

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        output_size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Reduce (B, C, H, W) to (B, C, h, w).

        Raises:
            ValueError: the windows do not fit.
        """
        size, steps = _strides(x, self.kernel_size, output_size)
        x = _reach(x, size, steps, self.kernel_size)
        planes = x.flatten(0, 1)[:, None]  # (B C, 1, H, W)
        return F.conv2d(planes, self.kernel(), stride=steps)[:, 0].unflatten(0, x.shape[:2])


class AttentionDownsampler(nn.Module):
    """Each cell is a mean of its window, weighted by a softmax that sees the features.

    Args:
        dim: channels C.
        kernel_size: k.
        blur: blur the map first (5x5, sigma 1, mirrored border).
    """

    dropout = 0.2
    window_dropout = 0.2

    def __init__(self, dim: int, kernel_size: int, blur: bool = True) -> None:
        super().__init__()
        self.kernel_size, self.blur = kernel_size, blur
        self.attention = nn.Linear(dim, 1)
        self.weight = nn.Parameter(1 + 0.01 * torch.randn(kernel_size, kernel_size))
        self.bias = nn.Parameter(0.01 * torch.randn(kernel_size, kernel_size))

    def forward(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        *,
        output_size: tuple[int, int] | None = None,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Reduce (B, C, H, W) to (B, C, h, w).

        Args:
            x: the fine map.
            generator: of both dropouts: of values in training, and of whole windows' logits in
                training and evaluation alike, as in FeatUp's code. None switches both off. A
                value that several windows see is dropped for all of them.
            output_size: (h, w); default whole windows side by side.
            kept: (B, h, w) instead of drawn windows: 1 where the logits are kept.

        Raises:
            ValueError: the windows do not fit.
        """
        k = self.kernel_size
        (height, width), steps = _strides(x, k, output_size)
        x = gaussian_blur(x, 1.0) if self.blur else x
        x = _reach(x, (height, width), steps, k)
        seen = x
        if generator is not None and self.training:
            seen = x * (_uniform(generator, x, x.shape) > self.dropout) / (1 - self.dropout)
        logits = self.attention(seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, 1, H, W)
        logits = F.unfold(logits, k, stride=steps)  # (B, k k, h w)
        logits = logits.unflatten(2, (height, width)).permute(0, 2, 3, 1)  # (B, h, w, k k)
        if kept is None and generator is not None:
            kept = _uniform(generator, x, logits.shape[:3]) > self.window_dropout
        if kept is not None:
            logits = logits * kept[..., None]
        weights = (logits * self.weight.flatten() + self.bias.flatten()).softmax(-1)
        windows = x.unfold(2, k, steps[0]).unfold(3, k, steps[1])  # (B, C, h, w, k, k), a view
        return torch.einsum("bhwij,bchwij->bchw", weights.unflatten(-1, (k, k)), windows)


class ScaleNet(nn.Conv2d):
    """Predicts from a cell's features how far off its reconstruction may be."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, 1, kernel_size=1)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(0.1)  # the start: nearly the same scale everywhere

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> a scale (B, 1, h, w)."""
        return self.log(features).exp()

    def log(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> the logarithm of the scale, (B, 1, h, w)."""
        return (super().forward(features) + SCALE_OFFSET).clamp(min=math.log(SCALE_FLOOR))

    def error(self, square: Tensor, features: Tensor) -> Tensor:
        """Return the mean of squared errors (B, K, h, w) in units of the features' scale."""
        return uncertain_error(square, self.log(features))


def _uniform(generator: torch.Generator, like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [0, 1) that are the same on every device."""
    return torch.rand(tuple(shape), generator=generator, device=generator.device).to(like.device)


def uncertain_error(square: Tensor, log_scale: Tensor) -> Tensor:
    """Return the mean of squared errors in units of a predicted scale, plus its logarithm.

    The likelihood of FeatUp (arXiv 2403.10516, equation 2): square / (2 s^2) + log s. The scale
    comes as its logarithm, and the sum is taken in float32 at least: neither s nor its square fits
    a float where features are large.
    """
    square, log_scale = (
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in (square, log_scale)
    )
    return (square * (-2 * log_scale).exp() / 2 + log_scale).mean()
