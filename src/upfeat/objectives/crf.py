"""A contrastive random field over sampled pixels: what is near and looks alike is alike.

FeatUp's regulariser for its joint bilateral upsampler (its released code; the pairwise potentials
are those of a dense CRF: an appearance and a smoothness kernel).

Legend: ``B`` batch, ``C`` channels, ``H W`` map, ``n`` sampled pixels.
"""

import torch
from torch import Tensor

from upfeat.errors import check_map, shape_text
from upfeat.objectives.losses import to_float32

__all__ = ["crf_loss", "draw_pixels"]

APPEARANCE, SMOOTHNESS = 10.0, 3.0  # weights of the two kernels
PLACE_VARIANCE, COLOR_VARIANCE, NEAR_VARIANCE = 0.1, 0.15, 0.005


def draw_pixels(generator: torch.Generator, size: tuple[int, int], count: int) -> Tensor:
    """Draw rows and columns of pixels, with repetition: (2, n).

    Example:
        >>> import torch
        >>> draw_pixels(torch.Generator(), (4, 6), 5).shape
        torch.Size([2, 5])
    """
    device = generator.device
    drawn = [torch.randint(n, (count,), generator=generator, device=device) for n in size]
    return torch.stack(drawn)


def crf_loss(features: Tensor, guidance: Tensor, pixels: Tensor) -> Tensor:
    """Return the mean over all pairs of |f_i - f_j|^2 times the affinity of i and j.

    With places p as shares of the sides and colours c:
    10 exp(-|dp|^2 / 0.2 - |dc|^2 / 0.3) + 3 exp(-|dp|^2 / 0.01).

    Args:
        features: (B, C, H, W).
        guidance: (B, 3, H, W), normalised.
        pixels: (2, n), rows and columns, the same for all images.

    Raises:
        ValueError: the maps differ in size.

    Example:
        >>> import torch
        >>> pixels = draw_pixels(torch.Generator(), (4, 6), 5)
        >>> crf_loss(torch.ones(1, 8, 4, 6), torch.rand(1, 3, 4, 6), pixels).item()
        0.0
    """
    check_map(features, "features", "(B, C, H, W)")
    if features.shape[0] != guidance.shape[0] or features.shape[2:] != guidance.shape[2:]:
        raise ValueError(
            "features and guidance must share batch and size, got "
            f"{shape_text(features)} and {shape_text(guidance)}; resize the image"
        )
    pixels = pixels.to(features.device)
    sides = torch.tensor(features.shape[2:], device=features.device)
    place = (pixels / sides[:, None])[None].to(to_float32(features))  # (1, 2, n)
    rows, columns = pixels
    place_square = _pairs(place)
    color_square = _pairs(to_float32(guidance)[:, :, rows, columns])
    affinity = APPEARANCE * torch.exp(
        -place_square / (2 * PLACE_VARIANCE) - color_square / (2 * COLOR_VARIANCE)
    ) + SMOOTHNESS * torch.exp(-place_square / (2 * NEAR_VARIANCE))
    return (_pairs(to_float32(features)[:, :, rows, columns]) * affinity).mean()


def _pairs(x: Tensor) -> Tensor:
    """Squared distances between all columns, (B, C, n) -> (B, n, n)."""
    with torch.autocast(x.device.type, enabled=False):
        square = x.square().sum(1)
        return (square[:, :, None] + square[:, None] - 2 * x.mT @ x).clamp(min=0)
