"""Distances between feature maps, and penalties on one map.

Every loss takes maps (B, C, h, w), computes in float32 at least, whatever the maps' dtype, and
returns a scalar. Legend: ``B`` batch, ``C`` channels, ``h w`` grid.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import UnknownNameError, check_map, shape_text
from upfeat.objectives._channel_sums import (
    Products,
    channel_products,
    products_and_distance,
    squared_distance,
    to_float32,
)
from upfeat.objectives.draws import draw_like
from upfeat.ops import unit_vectors
from upfeat.ops.images import total_variation

__all__ = [
    "Distance",
    "cosine_loss",
    "cosine_mse",
    "downsampling_loss",
    "energy",
    "entropy",
    "get_distance",
    "l1",
    "min_max_mse",
    "mse",
    "project",
    "random_projection",
    "scale_shift_invariant_l1",
    "total_variation",
]

Distance = Literal["cosine_mse", "cosine", "min_max_mse", "mse", "l1"]

COSINE_EPS = 1e-12  # added to squared norms, as in torch's cosine embedding loss
MIN_MAX_EPS = 1e-6
ENTROPY_FLOOR = 1e-7


def check_pair(pred: Tensor, target: Tensor) -> None:
    """Raise ``ValueError`` unless both are maps of one shape."""
    check_map(pred, "pred", "(B, C, h, w)")
    check_map(target, "target", "(B, C, h, w)")
    if pred.shape != target.shape:
        raise ValueError(
            f"pred and target must have one shape (B, C, h, w), got {shape_text(pred)} and "
            f"{shape_text(target)}; ask the upsampler for the target's size, and compare "
            "features of one backbone"
        )


def cosine_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all pixels of 1 - cos(pred, target).

    The first term of JAFAR's equation for its loss; 1e-12 is added to each squared norm.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).

    Example:
        >>> import torch
        >>> x = torch.randn(1, 8, 4, 4)
        >>> cosine_loss(2 * x, x).abs().item() < 1e-6
        True
    """
    check_pair(pred, target)
    return _cosine(channel_products(pred, target)).mean()


def _cosine(products: Products) -> Tensor:
    """Return 1 - cos of each pixel, (B, 1, h, w)."""
    norms = (products.pred + COSINE_EPS) * (products.target + COSINE_EPS)
    return 1 - products.both * norms.rsqrt()


def min_max_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean square difference after the target's min-max scaling of each pixel.

    With m and M the least and the largest channel of the *target* at a pixel, both maps become
    (x - m) / (M - m + 1e-6). Second term of JAFAR's loss, and the normalised form in NAF's code.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).

    Example:
        >>> import torch
        >>> target = torch.tensor([0.0, 10.0]).view(1, 2, 1, 1)
        >>> round(min_max_mse(target + 1, target).item(), 4)
        0.01
    """
    check_pair(pred, target)
    return _min_max(squared_distance(pred, target), target).mean()


def _min_max(distance: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the channels of a squared distance in units of the target's range."""
    largest, least = target.amax(1, keepdim=True), target.amin(1, keepdim=True)  # (B, 1, h, w)
    scale = to_float32(largest) - to_float32(least) + MIN_MAX_EPS
    return distance / (scale.square() * target.shape[1])


def cosine_mse(pred: Tensor, target: Tensor) -> Tensor:
    """Return :func:`cosine_loss` + :func:`min_max_mse`: the loss of JAFAR and of AnyUp.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).

    Example:
        >>> import torch
        >>> x = torch.randn(1, 8, 4, 4)
        >>> cosine_mse(x, x).abs().item() < 1e-6
        True
    """
    check_pair(pred, target)
    products, distance = products_and_distance(pred, target)
    return (_cosine(products) + _min_max(distance, target)).mean()


def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean square difference: NAF's loss, LoftUp's first stage.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).

    Example:
        >>> import torch
        >>> mse(torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), 3.0)).item()
        9.0
    """
    check_pair(pred, target)
    return F.mse_loss(to_float32(pred), to_float32(target))


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).

    Example:
        >>> import torch
        >>> l1(torch.zeros(1, 2, 1, 1), torch.full((1, 2, 1, 1), -3.0)).item()
        3.0
    """
    check_pair(pred, target)
    return F.l1_loss(to_float32(pred), to_float32(target))


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine_mse": cosine_mse,
    "cosine": cosine_loss,
    "min_max_mse": min_max_mse,
    "mse": mse,
    "l1": l1,
}


def get_distance(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss behind a name of :data:`Distance`.

    Raises:
        UnknownNameError: there is none; the message lists the names.
    """
    if name not in _DISTANCES:
        raise UnknownNameError("distance", name, _DISTANCES)
    return _DISTANCES[name]


def downsampling_loss(
    pred: Tensor, target: Tensor, distance: Callable[[Tensor, Tensor], Tensor] = cosine_mse
) -> Tensor:
    """Compare a map, averaged down to the target's grid, with the target (AnyUp).

    Args:
        pred: (B, C, H', W').
        target: (B, C, h, w), not larger.
        distance: of two maps (B, C, h, w).

    Raises:
        ValueError: the target is larger.

    Example:
        >>> import torch
        >>> target = torch.randn(1, 4, 3, 3)
        >>> finer = target.repeat_interleave(2, 2).repeat_interleave(2, 3)
        >>> downsampling_loss(finer, target).abs().item() < 1e-6
        True
    """
    check_map(pred, "pred", "(B, C, H', W')")
    check_map(target, "target", "(B, C, h, w)")
    if any(p < t for p, t in zip(pred.shape[2:], target.shape[2:], strict=True)):
        raise ValueError(
            f"pred {shape_text(pred)} must not be smaller than target {shape_text(target)}: it is "
            "averaged down to the target's grid"
        )
    size = (target.shape[2], target.shape[3])
    return distance(F.adaptive_avg_pool2d(to_float32(pred), size), target)


def energy(x: Tensor) -> Tensor:
    """Return the squared norm of each pixel, (B, C, h, w) -> (B, 1, h, w).

    Example:
        >>> import torch
        >>> energy(torch.full((1, 2, 1, 1), 3.0)).item()
        18.0
    """
    return to_float32(x).square().sum(1, keepdim=True)


def entropy(weights: Tensor) -> Tensor:
    """Return -sum t log t over the last three axes, averaged over the rest.

    FeatUp's penalty on a reduction's kernel (B, 1, k, k); logarithms are cut at 1e-7.

    Example:
        >>> import torch
        >>> round(entropy(torch.full((1, 1, 2, 2), 0.25)).item(), 4)
        1.3863
    """
    weights = to_float32(weights)
    return -(weights * weights.clamp(min=ENTROPY_FLOOR).log()).sum((-3, -2, -1)).mean()


def random_projection(like: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Draw one projection of the channels for each image: (B, C, channels), columns of norm 1.

    Args:
        like: map (B, C, h, w) that gives B, C and the device.
        channels: of the projected map (64 in LoftUp's released training, 30 in FeatUp's).
        generator: source of the draws.
    """
    drawn = draw_like(generator, to_float32(like), (like.shape[0], like.shape[1], channels))
    return unit_vectors(drawn)


def project(x: Tensor, projection: Tensor) -> Tensor:
    """Project the channels of (B, C, h, w) with (B, C, k): (B, k, h, w)."""
    return torch.einsum("bchw,bck->bkhw", x.to(projection.dtype), projection)


def scale_shift_invariant_l1(pred: Tensor, target: Tensor) -> Tensor:
    """Compare depth maps up to scale and shift.

    Each map of each image is shifted by its median and divided by its mean absolute deviation from
    it, over the valid pixels (finite and positive in the target), then compared by absolute
    differences (the scale- and shift-invariant loss of MiDaS, arXiv 1907.01341, section 5).

    Args:
        pred: (B, 1, H, W).
        target: (B, 1, H, W). Images without two valid pixels are left out.

    Example:
        >>> import torch
        >>> depth = torch.rand(2, 1, 6, 6) + 1
        >>> scale_shift_invariant_l1(3 * depth - 7, depth).item() < 1e-5
        True
    """
    check_pair(pred, target)
    losses = []
    for estimate, depth in zip(
        to_float32(pred).flatten(1), to_float32(target).flatten(1), strict=True
    ):
        valid = torch.isfinite(depth) & (depth > 0)
        if valid.sum() < 2:
            continue
        losses.append((_standardized(estimate[valid]) - _standardized(depth[valid])).abs().mean())
    return torch.stack(losses).mean() if losses else to_float32(pred).sum() * 0


def _standardized(values: Tensor) -> Tensor:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp(min=1e-6)
