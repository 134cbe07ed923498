"""Principal components of feature maps: a sample of their positions, the directions, their shares.

Legend: ``C`` channels, ``h w`` grid, ``N`` sampled positions, ``K`` components.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from upfeat.errors import shape_text

__all__ = ["principal_components", "sample_positions", "three_channels"]

MOST_SAMPLES = 20_000
"""Positions of an image from which the directions of its channels are estimated."""


def sample_positions(
    features: Tensor | Sequence[Tensor], max_samples: int, seed: int = 0
) -> Tensor:
    """Return the features at positions of all maps, drawn at random where there are too many.

    Args:
        features: (C, h, w) or (B, C, h, w), or a sequence of such with one C and any sizes.
        max_samples: the most positions.
        seed: of the draw.

    Returns:
        (N, C), float64, in the order of the maps and of their positions.

    Raises:
        ValueError: maps of different widths, no maps, or values that are not finite.

    Example:
        >>> import torch
        >>> from upfeat.ops.principal import sample_positions
        >>> sample_positions([torch.rand(5, 4, 4), torch.rand(5, 2, 2)], 10).shape
        torch.Size([10, 5])
    """
    maps = [features] if isinstance(features, Tensor) else list(features)
    if not maps:
        raise ValueError("no feature maps to fit a basis to")
    for feature in maps:
        if feature.dim() not in (3, 4) or feature.numel() == 0:
            raise ValueError(
                f"feature maps must be (C, h, w) or (B, C, h, w), got {shape_text(feature)}"
            )
        if feature.shape[-3] != maps[0].shape[-3]:
            raise ValueError(
                f"all feature maps need the same number of channels, got {maps[0].shape[-3]} and "
                f"{feature.shape[-3]}; fit one basis for each backbone"
            )
    counts = [feature.numel() // feature.shape[-3] for feature in maps]
    total = sum(counts)
    keep = torch.arange(total)
    if total > max_samples:
        generator = torch.Generator().manual_seed(seed)
        keep = torch.randperm(total, generator=generator)[:max_samples].sort().values
    rows = []
    start = 0
    for feature, count in zip(maps, counts, strict=True):
        chosen = keep[(keep >= start) & (keep < start + count)] - start
        start += count
        # (..., C, h, w) -> (N, C)
        tokens = feature.detach().movedim(-3, -1).reshape(count, -1)
        rows.append(tokens[chosen.to(tokens.device)].to(maps[0].device, torch.float64))
    samples = torch.cat(rows)
    if not bool(samples.isfinite().all()):
        raise ValueError("the features hold NaN or infinite values; try a wider dtype")
    return samples


def three_channels(image: Tensor) -> Tensor:
    """Bring an image of any number of channels to three in [0, 1], each image on its own.

    One channel is repeated. Several are divided by their standard deviations, as bands may have
    different units, and projected on their first three principal components (fewer channels have
    fewer: the rest is 0.5). All components are divided by one number, so that a weak one stays
    weak: the range of the first between its 1st and 99th percentile becomes 1. What lies outside
    [0, 1] is clamped.

    Args:
        image: (B, N, H, W) of any units: bands of a satellite, a slice of a CT in Hounsfield units.

    Returns:
        (B, 3, H, W), in the type of ``image``; 0.5 everywhere if an image is constant.

    Raises:
        ValueError: another rank, or values that are not finite.

    Example:
        >>> import torch
        >>> from upfeat.ops.principal import three_channels
        >>> slice_of_ct = torch.tensor([[-1000.0, 40.0], [300.0, -1000.0]])[None, None]
        >>> three_channels(slice_of_ct)[0, :, 0].round(decimals=1)  # air is dark in all three
        tensor([[0.0000, 0.8000],
                [0.0000, 0.8000],
                [0.0000, 0.8000]])
    """
    if image.dim() != 4:
        raise ValueError(f"image must be (B, N, H, W), got {shape_text(image)}")
    return torch.stack([_three_channels(one) for one in image])


def _three_channels(image: Tensor) -> Tensor:
    """Map (N, H, W) to (3, H, W)."""
    samples = sample_positions(image, MOST_SAMPLES)  # (n, N)
    deviation = samples.std(0, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation, 0.0)
    mean, directions, _ = principal_components(samples * scale, 3)
    if image.shape[0] == 1:
        directions = directions[:1].expand(3, -1)
    flat = image.to(torch.float64).flatten(1)  # (N, H W)
    components = directions @ (flat * scale[:, None] - mean[:, None])  # (3, H W)
    low, high = (
        (samples * scale - mean).mv(directions[0]).quantile(samples.new_tensor([0.01, 0.99]))
    )
    spread = torch.where(high > low, high - low, 1.0)
    offsets = torch.full_like(components[:, :1], 0.5)
    offsets[: 3 if image.shape[0] == 1 else 1] -= (high + low) / (2 * spread)
    return (components / spread + offsets).clamp(0, 1).unflatten(1, image.shape[1:]).to(image)


def principal_components(samples: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean, the first principal directions and their shares of the variance.

    The eigenvectors of the covariance are unique up to sign; the sign is chosen so that the loading
    of largest magnitude is positive.

    Args:
        samples: (N, C), float64.
        count: K; rows beyond C are zero.

    Returns:
        The mean (C,), orthonormal rows (K, C) by falling variance, and shares (K,).

    Example:
        >>> import torch
        >>> from upfeat.ops.principal import principal_components
        >>> line = torch.linspace(0, 1, 9, dtype=torch.float64)[:, None] * torch.tensor([3.0, 4.0])
        >>> mean, components, explained = principal_components(line, 1)
        >>> [round(value, 6) for value in (*components[0].tolist(), explained.item())]
        [0.6, 0.8, 1.0]
    """
    mean = samples.mean(0)
    centered = samples - mean
    # (N, C) -> (C, C)
    covariance = centered.T @ centered / len(samples)
    variances, vectors = torch.linalg.eigh(covariance)  # ascending; columns are directions
    width = samples.shape[1]
    components, explained = samples.new_zeros(count, width), samples.new_zeros(count)
    found = min(count, width)
    components[:found] = _fix_signs(vectors.flip(1)[:, :found].T)
    total = variances.sum()
    if total > 0:
        explained[:found] = variances.flip(0)[:found].clamp(min=0) / total
    return mean, components, explained


def _fix_signs(components: Tensor) -> Tensor:
    """Flip rows (K, C) so that the loading of largest magnitude is positive."""
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return components * torch.where(largest < 0, -1.0, 1.0)
