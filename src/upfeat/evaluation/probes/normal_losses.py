"""Losses of the normals probe, after Probe3D (El Banani et al., 2024, arXiv 2404.08636).

The uncertainty-aware loss is Bae et al., "Estimating and exploiting the aleatoric uncertainty in
surface normal estimation", ICCV 2021, arXiv 2109.09881, section 3. Legend: ``B`` batch,
``H W`` normal map.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.ops import cosine

__all__ = ["angular_loss", "uncertain_normals_loss"]

LEAST_ANGLE = 1e-4  # keeps cosines from +-1, where the angle has no gradient
KAPPA_OFFSET = 1.01


def _angles(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the angles in radians of all valid pixels (N,)."""
    if prediction.shape != target.shape or valid.shape != target.shape[:1] + target.shape[2:]:
        raise ValueError(
            "prediction and target must have one shape (B, 3, H, W) and valid (B, H, W), got "
            f"{shape_text(prediction)}, {shape_text(target)} and {shape_text(valid)}"
        )
    return cosine(prediction, target)[valid].clamp(LEAST_ANGLE - 1, 1 - LEAST_ANGLE).acos()


def angular_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean angle in radians over all valid pixels of the batch.

    Args:
        prediction: (B, 3, H, W), of any length.
        target: (B, 3, H, W).
        valid: (B, H, W), boolean; at least one pixel.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.normal_losses import angular_loss
        >>> up = torch.tensor([0.0, 1.0, 0.0])[None, :, None, None]
        >>> angular_loss(-up, up, torch.ones(1, 1, 1, dtype=torch.bool)).item() > 3.1
        True
    """
    return _angles(prediction, target, valid).mean()


def uncertain_normals_loss(outputs: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return ``ln(1 + exp(-pi k)) - ln(k^2 + 1) + k a``, mean over all valid pixels.

    ``a`` is the angle to the target in radians and ``k = elu(u) + 1.01`` the predicted certainty:
    the negative logarithm of a distribution of normals around the prediction.

    Args:
        outputs: (B, 4, H, W): a normal of any length, and ``u``.
        target: (B, 3, H, W).
        valid: (B, H, W), boolean; at least one pixel.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.normal_losses import uncertain_normals_loss
        >>> target, known = torch.ones(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
        >>> sure = torch.tensor([1.0, 1.0, 1.0, 3.0])[None, :, None, None]
        >>> unsure = torch.tensor([1.0, 1.0, 1.0, 0.0])[None, :, None, None]
        >>> losses = [uncertain_normals_loss(x, target, known).item() for x in (sure, unsure)]
        >>> losses[0] < losses[1]
        True
    """
    angle = _angles(outputs[:, :3], target, valid)
    kappa = F.elu(outputs[:, 3])[valid] + KAPPA_OFFSET
    spread = torch.log1p(torch.exp(-math.pi * kappa)) - torch.log(kappa.square() + 1)
    return (spread + kappa * angle).mean()
