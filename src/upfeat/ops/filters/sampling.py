"""Bilinear sampling of a map at given positions, each group of channels at its own.

What DySample (arXiv 2308.15085) does with its learned positions. Torch's ``grid_sample`` serves it:
it keeps nothing but its inputs for the backward pass and no temporaries beside the output, so there
is no second bounded version here; the plain definition stands beside it for tests.

Legend: B batch, C channels, g groups, h w the map, H' W' the positions.
"""

from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime import dispatch


def grouped_sampling_reference(features: Tensor, positions: Tensor) -> Tensor:
    """The definition, four corners each: see `grouped_sampling`."""
    groups = _check(features, positions)
    dtype = dispatch.compute_dtype(features, positions)
    height, width = features.shape[2:]
    grouped = features.to(dtype).unflatten(1, (groups, -1)).flatten(3)  # (B, g, C / g, h * w)
    x, y = positions.to(dtype).unbind(2)  # (B, g, H', W')
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.detach().floor(), y.detach().floor()
    out = grouped.new_zeros(())
    for row in (top, top + 1):
        for col in (left, left + 1):
            weight = (1 - (y - row).abs()) * (1 - (x - col).abs())  # (B, g, H', W')
            cell = row.clamp(max=height - 1) * width + col.clamp(max=width - 1)
            cell = cell.long().flatten(2)[:, :, None].expand(-1, -1, grouped.shape[2], -1)
            picked = grouped.gather(3, cell).unflatten(3, x.shape[2:])  # (B, g, C / g, H', W')
            out = out + weight[:, :, None] * picked
    return out.flatten(1, 2).to(features.dtype)


def grouped_sampling(features: Tensor, positions: Tensor) -> Tensor:
    """Sample each group of channels at its positions; beyond the map its border goes on.

    Args:
        features: (B, C, h, w).
        positions: (B, g, 2, H', W'), column (x) then row (y) in pixels of the map, whose first
            pixel has its centre at 0.

    Returns:
        (B, C, H', W') in the type of ``features``, computed in float32 at least: half precision
        cannot tell positions.

    Raises:
        ValueError: the shapes do not fit each other.

    Example:
        >>> import torch
        >>> features = torch.tensor([[[[0.0, 1.0, 2.0]]]])
        >>> positions = torch.tensor([0.5, 7.0]).reshape(1, 1, 1, 1, 2).expand(1, 1, 2, 1, 2)
        >>> grouped_sampling(features, positions).flatten().tolist()
        [0.5, 2.0]
    """
    groups = _check(features, positions)
    dtype = dispatch.compute_dtype(features, positions)
    size = positions.new_tensor((features.shape[3], features.shape[2]), dtype=dtype)
    with dispatch.without_autocast(features):
        grid = positions.to(dtype).movedim(2, -1)  # (B, g, H', W', 2)
        grid = (2 * grid + 1) / size - 1  # -1 and 1 are the outer edges of the map
        grouped = features.to(dtype).unflatten(1, (groups, -1)).flatten(0, 1)  # (B * g, C / g, ...)
        out = F.grid_sample(grouped, grid.flatten(0, 1), padding_mode="border", align_corners=False)
    return out.unflatten(0, (-1, groups)).flatten(1, 2).to(features.dtype)


def _check(features: Tensor, positions: Tensor) -> int:
    """Groups, or ValueError."""
    if features.dim() != 4 or positions.dim() != 5 or positions.shape[2] != 2:
        raise ValueError(
            "features (B, C, h, w) and positions (B, g, 2, H', W') are wanted, got "
            f"{tuple(features.shape)} and {tuple(positions.shape)}."
        )
    groups = positions.shape[1]
    if positions.shape[0] != features.shape[0] or groups < 1 or features.shape[1] % groups:
        raise ValueError(
            f"features {tuple(features.shape)} and positions {tuple(positions.shape)} do not fit: "
            "one batch size and groups that divide the channels are wanted."
        )
    if features.device != positions.device:
        raise ValueError(
            f"features are on {features.device}, positions on {positions.device}; move them to "
            "one device."
        )
    return groups
