"""Centre-of-mass fields: where the features around a position that resemble it lie.

Paper: DiveUp (Liu et al., 2026, arXiv 2603.13571). Near zero within a region, a field points
inwards at its border, and has two channels whatever the features' width: fields of different
backbones can be compared.

The paper's similarity, temperature, treatment of borders and combination of the two reliabilities
were not within reach; chosen here: the cosine over 0.1, positions beyond the map left out, offsets
in units of the window's half side, and the sum of both reliabilities.

Legend: B batch, C channels, h w grid, n = window^2 offsets.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import check_map
from upfeat.objectives.losses import to_float32
from upfeat.ops import unit_vectors

__all__ = ["consensus_field", "field_loss", "mass_field", "reliability"]

WINDOW = 7
TEMPERATURE = 0.1


def neighbour_weights(features: Tensor, window: int, temperature: float) -> Tensor:
    """Softmax over the offsets of the cosine with the features there: (B, n, h, w), float32."""
    check_map(features, "features", "(B, C, h, w)")
    if window < 3 or window % 2 == 0:
        raise ValueError(f"window must be odd and at least 3, got {window}")
    unit, reach = unit_vectors(to_float32(features)), window // 2
    height, width = unit.shape[2:]
    padded = F.pad(unit, (reach,) * 4)
    inside = F.pad(unit.new_ones(1, height, width), (reach,) * 4)
    scores = []
    for row in range(window):
        for col in range(window):
            part = (slice(row, row + height), slice(col, col + width))
            similar = (unit * padded[(..., *part)]).sum(1) / temperature  # (B, h, w)
            scores.append(similar.masked_fill(inside[(..., *part)] == 0, -math.inf))
    return torch.stack(scores, dim=1).softmax(1)


def mass_field(features: Tensor, window: int = WINDOW, temperature: float = TEMPERATURE) -> Tensor:
    """Return the mean offset of a window, weighted by resemblance to its middle.

    Args:
        features: (B, C, h, w).
        window: side of the window, odd; positions beyond the map are left out.
        temperature: of the softmax over cosines.

    Returns:
        (B, 2, h, w), row and column in [-1, 1], the window's half side; float32 at least.

    Raises:
        ValueError: the window is even, or below 3.

    Example:
        Left and right of a vertical edge the field points away from it:

        >>> import torch
        >>> features = torch.zeros(1, 2, 9, 12)
        >>> features[:, 0, :, :6], features[:, 1, :, 6:] = 1, 1
        >>> field = mass_field(features, window=3)
        >>> [round(value, 2) for value in field[0, 1, 4, 4:8].tolist()]
        [0.0, -0.5, 0.5, 0.0]
    """
    return _mean_offset(neighbour_weights(features, window, temperature))


def _mean_offset(weights: Tensor) -> Tensor:
    """(B, n, h, w) to (B, 2, h, w)."""
    axis = torch.linspace(-1, 1, math.isqrt(weights.shape[1]), device=weights.device)
    offsets = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)  # (2, n)
    return torch.einsum("on,bnhw->bohw", offsets.to(weights.dtype), weights)


def reliability(features: Tensor, window: int = WINDOW, temperature: float = TEMPERATURE) -> Tensor:
    """Return how far a field of these features can be trusted: (B, 1, h, w) in [-2, 0].

    Minus the entropy of the weights, in units of the largest, minus the features' spikiness, their
    largest absolute channel over their norm.
    """
    return _reliability(features, neighbour_weights(features, window, temperature))


def _reliability(features: Tensor, weights: Tensor) -> Tensor:
    entropy = torch.special.entr(weights).sum(1, keepdim=True) / math.log(weights.shape[1])
    wide = to_float32(features)
    norm = wide.norm(dim=1, keepdim=True).clamp(min=torch.finfo(wide.dtype).tiny)
    return -entropy - wide.abs().amax(1, keepdim=True) / norm


def consensus_field(
    guides: Sequence[Tensor], window: int = WINDOW, temperature: float = TEMPERATURE
) -> Tensor:
    """Return the field of the most reliable of several maps, position by position.

    Args:
        guides: (B, C_i, h, w) each, of any widths.
        window: as in :func:`mass_field`.
        temperature: as in :func:`mass_field`.

    Returns:
        (B, 2, h, w).

    Example:
        >>> import torch
        >>> one, other = torch.randn(1, 8, 9, 9), torch.randn(1, 4, 9, 9)
        >>> consensus_field([one, other]).shape
        torch.Size([1, 2, 9, 9])
    """
    fields, trust = [], []
    for guide in guides:
        weights = neighbour_weights(guide, window, temperature)
        fields.append(_mean_offset(weights))
        trust.append(_reliability(guide, weights))
    best = torch.stack(trust).argmax(0, keepdim=True)  # (1, B, 1, h, w)
    return torch.stack(fields).gather(0, best.expand(-1, -1, 2, -1, -1))[0]


def field_loss(
    pred: Tensor,
    guides: Sequence[Tensor],
    window: int = WINDOW,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Return the mean absolute difference of a map's field from the guides' consensus.

    Args:
        pred: (B, C, h, w).
        guides: as in :func:`consensus_field`, of the same grid; no gradient reaches them.
        window: as in :func:`mass_field`.
        temperature: as in :func:`mass_field`.

    Example:
        >>> import torch
        >>> x = torch.randn(1, 8, 9, 9)
        >>> field_loss(3 * x, [x]).item() < 1e-6
        True
    """
    with torch.no_grad():
        wanted = consensus_field(guides, window, temperature)
    return F.l1_loss(mass_field(pred, window, temperature), wanted)
