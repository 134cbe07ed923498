"""Losses of the three heads with learned weights.

PointBeV's (:class:`BevLoss`) are the protocol's. SimpleBeV's own differ in the centre and offset
terms and are here for comparison.

Kendall et al., "Multi-task learning using uncertainty", CVPR 2018, arXiv 1705.07115: a term ``L``
with the learned scalar ``s`` counts as ``exp(-s) L + s``.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["POSITIVE_WEIGHT", "BevLoss", "BevTargets", "simplebev_losses", "weighted_bce"]

POSITIVE_WEIGHT = 2.13
IGNORED_OFFSET = 255
EPSILON = 1e-6
# Factor of exp(-s) L and of s, in the order of the heads.
FACTORS = {"binimg": (10.0, 0.5), "centerness": (0.5, 0.5), "offsets": (0.5, 0.5)}


class BevTargets(NamedTuple):
    """Targets of the heads, for B frames.

    Attributes:
        binimg: (B, 1, X, Y), 1 where a vehicle is.
        valid: (B, 1, X, Y), 0 where a vehicle is too little visible to count.
        centerness: (B, 1, X, Y), 1 at a vehicle's centre.
        valid_centerness: (B, 1, X, Y).
        offsets: (B, 2, X, Y), rows and columns to the centre; 255 where no vehicle is.
    """

    binimg: Tensor
    valid: Tensor
    centerness: Tensor
    valid_centerness: Tensor
    offsets: Tensor


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum() / (mask.sum() + EPSILON)


def weighted_bce(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean cross-entropy of a mask's cells, positives counting 2.13 times.

    Args:
        logits: (B, 1, X, Y).
        target: the same shape, 0 or 1.
        mask: the same shape, 1 where a cell counts.
    """
    weight = logits.new_tensor(POSITIVE_WEIGHT)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)
    return _mean(each, mask)


class BevLoss(nn.Module):
    """Cross-entropy, squared error of the centre map, absolute error of the offsets.

    Args:
        heads: which terms count.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.losses import BevLoss, BevTargets
        >>> one = torch.ones(1, 1, 2, 2)
        >>> target = BevTargets(one, one, one, one, torch.zeros(1, 2, 2, 2))
        >>> found = {"binimg": 50 * one, "centerness": one, "offsets": torch.zeros(1, 2, 2, 2)}
        >>> round(BevLoss()(found, target)[0].item(), 6)
        0.0
    """

    def __init__(self, heads: tuple[str, ...] = tuple(FACTORS)) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in heads})

    def forward(
        self, found: Mapping[str, Tensor], target: BevTargets, sampled: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the terms.

        Args:
            found: of the heads; centerness in 0 to 1.
            target: the ground truth.
            sampled: (B, 1, X, Y), cells that count at all; None for all.
        """
        terms = self.terms(found, target, sampled)
        total = torch.stack(
            [
                FACTORS[name][0] * torch.exp(-scale) * terms[name] + FACTORS[name][1] * scale
                for name, scale in self.weights.items()
            ]
        )
        return total.mean(), terms

    def terms(
        self, found: Mapping[str, Tensor], target: BevTargets, sampled: Tensor | None
    ) -> dict[str, Tensor]:
        """Return each head's loss, 0 where no cell counts."""
        valid, centres = target.valid.to(target.binimg), target.valid_centerness.to(target.binimg)
        if sampled is not None:
            valid, centres = valid * sampled, centres * sampled
        inside = (target.offsets != IGNORED_OFFSET).to(valid) * valid  # (B, 2, X, Y)
        all_terms = {
            "binimg": lambda: weighted_bce(found["binimg"], target.binimg, valid),
            "centerness": lambda: _mean(
                (found["centerness"] - target.centerness).square(), centres
            ),
            "offsets": lambda: _mean((found["offsets"] - target.offsets).abs(), inside),
        }
        return {name: all_terms[name]() for name in self.weights}


def simplebev_losses(
    found: Mapping[str, Tensor], target: BevTargets, scales: Mapping[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return SimpleBeV's own total and terms.

    The centre map's error is balanced between cells above and below 0.5, the offsets' is summed
    over its two channels, and the total is a sum.

    Args:
        found: of the heads.
        target: the ground truth; offsets are 0 outside vehicles.
        scales: learned scalars of the terms.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.bev.losses import BevTargets, simplebev_losses
        >>> one, zero = torch.ones(1, 1, 2, 2), torch.zeros(1, 2, 2, 2)
        >>> found = {"binimg": 50 * one, "centerness": one, "offsets": zero}
        >>> scales = dict.fromkeys(found, torch.tensor(0.0))
        >>> target = BevTargets(one, one, one, one, zero)
        >>> round(simplebev_losses(found, target, scales)[0].item(), 6)
        0.0
    """
    error = (found["centerness"] - target.centerness).square()
    near, far = (target.centerness > 0.5).to(error), (target.centerness < 0.5).to(error)
    offsets = (found["offsets"] - target.offsets).abs().sum(1, keepdim=True)
    terms = {
        "binimg": weighted_bce(found["binimg"], target.binimg, target.valid),
        "centerness": 0.5 * (_mean(error, near) + _mean(error, far)),
        "offsets": _mean(offsets, target.binimg * target.valid),
    }
    total = torch.stack(
        [
            FACTORS[name][0] * torch.exp(-scales[name]) * term + FACTORS[name][1] * scales[name]
            for name, term in terms.items()
        ]
    )
    return total.sum(), terms
