"""Losses of the depth and normals probes, and the decoding of depth.

JAFAR's depth probe (arXiv 2506.11136) trains on ``sig + gradient``, Probe3D (arXiv 2404.08636) on
another mix of the two, FeatUp's probe on MiDaS' scale-and-shift-invariant loss (Ranftl et al.,
arXiv 1907.01341). All use ``g = ln(prediction + 0.001) - ln(target + 0.001)``
or depth itself. The loss of normals is Bae et al., "Estimating and exploiting the aleatoric
uncertainty in surface normal estimation", ICCV 2021, arXiv 2109.09881, section 3, as Probe3D uses
it. Statistics are over the valid pixels of a batch.

Legend: ``B`` batch, ``K`` bins, ``H W`` map of depth or normals.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.errors import shape_text
from upfeat.evaluation.metrics.regression import fit_scale_and_shift
from upfeat.ops import cosine

EPSILON = 1e-3  # added to depths before the logarithm
BIN_FLOOR = 0.1  # added to every rectified bin
GRADIENT_WEIGHT = 0.5
GRADIENT_STRIDES = (1, 2, 4, 6)
GRADIENT_DISTANCE = 2
SSI_STRIDES = (1, 2, 4, 8)
LEAST_ANGLE = 1e-4  # keeps cosines from +-1, where the angle has no gradient
KAPPA_OFFSET = 1.01


def bin_depth(logits: Tensor, min_depth: float = 1e-3, max_depth: float = 10.0) -> Tensor:
    """Turn logits of uniform bins into depth: ``sum_k p_k b_k``, p the rectified logits + 0.1.

    Logits (B, K, H, W) give (B, H, W), those of single pixels (N, K) give (N,), within the first
    and the last bin, ``min_depth`` and ``max_depth``.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.probes.losses import bin_depth
        >>> bin_depth(torch.tensor([[-1.0, 0.9, 0.0]]), 0, 10).round(decimals=4)
        tensor([5.])
    """
    count, exact = logits.shape[1], {"dtype": torch.float64, "device": logits.device}
    bins = torch.linspace(min_depth, max_depth, count, **exact)  # type: ignore[call-overload]
    # Weighted sum and sum of relu(z) + 0.1; the constant needs no map.
    columns = torch.stack([bins, torch.ones_like(bins)], 1)  # (K, 2)
    constant = BIN_FLOOR * columns.sum(0)[:, None].to(logits.dtype)  # (2, 1)
    columns, share = columns.to(logits.dtype), logits.relu()
    if logits.dim() == 2:
        sums = (share @ columns).T + constant  # (2, N)
        return sums[0] / sums[1]
    sums = columns.T @ share.flatten(2) + constant  # (B, 2, H*W)
    return (sums[:, 0] / sums[:, 1]).unflatten(1, logits.shape[2:])


def valid_depth(target: Tensor, max_depth: float = 10.0) -> Tensor:
    """Return where a target counts in the losses: ``0 < target <= max_depth``."""
    return (target > 0) & (target <= max_depth)


def _log_difference(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return g, and 0 where it is not valid (with no gradient there)."""
    if not prediction.shape == target.shape == valid.shape:
        raise ValueError(
            "prediction, target and valid must have one shape, got "
            f"{shape_text(prediction)}, {shape_text(target)} and {shape_text(valid)}"
        )
    ones = torch.ones_like(target)
    predicted, true = torch.where(valid, prediction, ones), torch.where(valid, target, ones)
    return (predicted + EPSILON).log() - (true + EPSILON).log()


def sig_loss(prediction: Tensor, target: Tensor, valid: Tensor, *, warm: bool = False) -> Tensor:
    """Return ``sqrt(var(g) + 0.15 mean(g)^2)`` over all valid pixels of the batch.

    All have one shape, ``valid`` has two pixels at least. ``warm`` leaves out the variance
    (unbiased), as JAFAR does for the first 100 iterations.
    """
    g = _log_difference(prediction, target, valid)[valid]
    bias = 0.15 * g.mean().square()
    return _root(bias if warm else g.var() + bias)


def _root(square: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero instead of infinite."""
    positive = square > 0
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def gradient_loss(
    prediction: Tensor, target: Tensor, valid: Tensor, *, released: bool = False
) -> Tensor:
    """Return half the sum over four scales of the mean ``|g(i) - g(i + 2)|`` along both axes.

    The scales take every 1st, 2nd, 4th and 6th row and column; the differences of a scale are
    divided by its number of valid pixels.

    All are (B, 1, H, W). ``released`` takes the differences along the first two axes, batch and
    channel, as JAFAR's released code does; they are 0 for a batch of two.
    """
    if prediction.dim() != 4 or prediction.shape[1] != 1:
        raise ValueError(f"prediction must be (B, 1, H, W), got {shape_text(prediction)}")
    axes = (0, 1) if released else (2, 3)
    g = _log_difference(prediction, target, valid)
    total = g.new_zeros(())
    for stride in GRADIENT_STRIDES:
        scale, known = g[..., ::stride, ::stride], valid[..., ::stride, ::stride]
        count = known.sum()
        if int(count):
            total = total + sum(_steps(scale, known, axis) for axis in axes) / count
    return GRADIENT_WEIGHT * total


def _steps(g: Tensor, known: Tensor, axis: int) -> Tensor:
    """Return the sum of |g(i) - g(i + 2)| where both are known."""
    length = g.shape[axis] - GRADIENT_DISTANCE
    if length < 1:
        return g.new_zeros(())
    first, second = g.narrow(axis, 0, length), g.narrow(axis, GRADIENT_DISTANCE, length)
    both = known.narrow(axis, 0, length) & known.narrow(axis, GRADIENT_DISTANCE, length)
    return ((first - second).abs() * both).sum()


def probe3d_loss(
    prediction: Tensor, target: Tensor, valid: Tensor, *, released: bool = False
) -> Tensor:
    """Return Probe3D's loss: ``10 sqrt(mean(g^2) - 0.85 mean(g)^2)`` plus :func:`gradient_loss`."""
    g = _log_difference(prediction, target, valid)[valid]
    spread = _root(g.square().mean() - 0.85 * g.mean().square())
    return 10 * spread + gradient_loss(prediction, target, valid, released=released)


def midas_ssi_loss(
    prediction: Tensor, target: Tensor, valid: Tensor, *, alpha: float = 0.5
) -> Tensor:
    """Return MiDaS' loss, which is blind to scale and shift of each image's prediction.

    Half the mean squared error of the fitted prediction, plus ``alpha`` times the mean difference
    of neighbours' errors on four scales (every 1st, 2nd, 4th, 8th pixel); means over all valid
    pixels of the batch.

    All are (B, H, W), depths or inverse depths.
    """
    mask = valid.to(prediction.dtype)
    scale, shift = (
        x.to(prediction.dtype)[:, None, None] for x in fit_scale_and_shift(prediction, target, mask)
    )
    error = mask * (scale * prediction + shift - target)
    total = error.square().sum() / (2 * mask.sum()).clamp(min=1)
    for stride in SSI_STRIDES:
        e, m = error[:, ::stride, ::stride], mask[:, ::stride, ::stride]
        rows = (e[:, 1:] - e[:, :-1]).abs() * m[:, 1:] * m[:, :-1]
        columns = (e[..., 1:] - e[..., :-1]).abs() * m[..., 1:] * m[..., :-1]
        total = total + alpha * (rows.sum() + columns.sum()) / m.sum().clamp(min=1)
    return total


# -- normals -------------------------------------------------------------------------------------


def _angles(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the angles in radians of all valid pixels (N,)."""
    if prediction.shape != target.shape or valid.shape != target.shape[:1] + target.shape[2:]:
        raise ValueError(
            "prediction and target must have one shape (B, 3, H, W) and valid (B, H, W), got "
            f"{shape_text(prediction)}, {shape_text(target)} and {shape_text(valid)}"
        )
    return cosine(prediction, target)[valid].clamp(LEAST_ANGLE - 1, 1 - LEAST_ANGLE).acos()


def angular_loss(prediction: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean angle in radians between normals (B, 3, H, W), where ``valid`` (B, H, W)."""
    return _angles(prediction, target, valid).mean()


def uncertain_normals_loss(outputs: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return ``ln(1 + exp(-pi k)) - ln(k^2 + 1) + k a``, mean over all valid pixels.

    ``a`` is the angle to the target in radians and ``k = elu(u) + 1.01`` the predicted certainty:
    the negative logarithm of a distribution of normals around the prediction.

    The outputs (B, 4, H, W) are a normal of any length, and ``u``; target (B, 3, H, W) and valid
    (B, H, W), with at least one pixel.
    """
    angle = _angles(outputs[:, :3], target, valid)
    kappa = F.elu(outputs[:, 3])[valid] + KAPPA_OFFSET
    spread = torch.log1p(torch.exp(-math.pi * kappa)) - torch.log(kappa.square() + 1)
    return (spread + kappa * angle).mean()
