"""Distances between feature maps, and penalties on one map.

Every loss takes maps (B, C, h, w), computes in float32 at least, whatever the maps' dtype, and
returns a scalar. Legend: ``B`` batch, ``C`` channels, ``h w`` grid.
"""

from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from upfeat.errors import UnknownNameError, check_map, shape_text
from upfeat.objectives.draws import draw_like
from upfeat.ops._dispatch import wants_reference
from upfeat.ops.memory import new_large
from upfeat.ops.penalties import total_variation
from upfeat.ops.unit_vectors import unit_vectors

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
# The loss of each pixel; its gradient is a * pred + b * target: loss, a and b, (B, 1, h, w) each.
Slopes = tuple[Tensor, Tensor, Tensor]
PixelLoss = Callable[[Tensor, Tensor], Slopes]

COSINE_EPS = 1e-12  # added to squared norms, as in torch's cosine embedding loss
MIN_MAX_EPS = 1e-6
ENTROPY_FLOOR = 1e-7
BAND_BYTES = 2**20  # of one map, in the losses that are means over pixels


def widen(x: Tensor) -> Tensor:
    """Return half precision as float32, everything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
    return _mean_over_pixels(_cosine, pred, target)


def _cosine(pred: Tensor, target: Tensor) -> Slopes:
    dot = (pred * target).sum(1, keepdim=True)  # (B, 1, h, w), as all of these
    own = pred.square().sum(1, keepdim=True) + COSINE_EPS
    other = target.square().sum(1, keepdim=True) + COSINE_EPS
    inverse = (own * other).rsqrt()
    return 1 - dot * inverse, dot * inverse / own, -inverse


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
    return _mean_over_pixels(_min_max, pred, target)


def _min_max(pred: Tensor, target: Tensor) -> Slopes:
    scale = target.amax(1, keepdim=True) - target.amin(1, keepdim=True) + MIN_MAX_EPS
    weight = 1 / (scale.square() * pred.shape[1])  # (B, 1, h, w)
    return (pred - target).square().sum(1, keepdim=True) * weight, 2 * weight, -2 * weight


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
    return _mean_over_pixels(_both, pred, target)


def _both(pred: Tensor, target: Tensor) -> Slopes:
    pairs = zip(_cosine(pred, target), _min_max(pred, target), strict=True)
    loss, of_pred, of_target = (one + two for one, two in pairs)
    return loss, of_pred, of_target


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
    return F.mse_loss(widen(pred), widen(target))


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
    return F.l1_loss(widen(pred), widen(target))


def _mean_over_pixels(loss: PixelLoss, pred: Tensor, target: Tensor) -> Tensor:
    """Average a loss over all pixels: on a CPU of large maps band after band, else at once.

    There the temporaries of a whole map cost more time, as fresh memory, than the arithmetic.
    """
    small = pred.device.type != "cpu" or pred.numel() * 4 <= BAND_BYTES
    if target.requires_grad or small or wants_reference():
        return loss(widen(pred), widen(target))[0].mean()
    averaged: Tensor = _ByBands.apply(pred, target, loss)
    return averaged


class _ByBands(torch.autograd.Function):
    """A mean over pixels in bands of rows; the gradient is a sum of both maps, weighed by pixel."""

    @staticmethod
    def forward(ctx: Any, pred: Tensor, target: Tensor, loss: PixelLoss) -> Tensor:
        wide = torch.promote_types(pred.dtype, torch.float32)
        shape = (3, len(pred), 1, *pred.shape[2:])
        slopes = torch.empty(shape, dtype=wide, device=pred.device)  # loss, a and b of each pixel
        for place in _bands(pred):
            for map_, band in zip(
                slopes, loss(widen(pred[place]), widen(target[place])), strict=True
            ):
                map_[place] = band
        ctx.save_for_backward(pred, target, slopes[1:])
        return slopes[0].mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        pred, target, slopes = ctx.saved_tensors
        of_pred, of_target = slopes * (grad_output / slopes[0].numel())
        grad = _new_like(pred)
        for place in _bands(pred):
            band = widen(pred[place]) * of_pred[place]
            grad[place] = band.addcmul_(widen(target[place]), of_target[place])
        return grad, None, None


def _new_like(x: Tensor) -> Tensor:
    """An uninitialised map (B, C, h, w) whose channels lie as those of ``x``."""
    if x.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = x.shape
        return new_large(x, batch, height, width, channels).permute(0, 3, 1, 2)
    return new_large(x, *x.shape)


def _bands(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield bands of rows of single maps (B, C, h, w)."""
    batch, channels, height, width = x.shape
    step = max(1, BAND_BYTES // (4 * channels * width))
    for item in range(batch):
        for start in range(0, height, step):
            yield slice(item, item + 1), slice(None), slice(start, start + step)


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

    Example:
        >>> get_distance("mse").__name__
        'mse'
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
    return distance(F.adaptive_avg_pool2d(widen(pred), size), target)


def energy(x: Tensor) -> Tensor:
    """Return the squared norm of each pixel, (B, C, h, w) -> (B, 1, h, w).

    Example:
        >>> import torch
        >>> energy(torch.full((1, 2, 1, 1), 3.0)).item()
        18.0
    """
    return widen(x).square().sum(1, keepdim=True)


def entropy(weights: Tensor) -> Tensor:
    """Return -sum t log t over the last three axes, averaged over the rest.

    FeatUp's penalty on a reduction's kernel (B, 1, k, k); logarithms are cut at 1e-7.

    Example:
        >>> import torch
        >>> round(entropy(torch.full((1, 1, 2, 2), 0.25)).item(), 4)
        1.3863
    """
    weights = widen(weights)
    return -(weights * weights.clamp(min=ENTROPY_FLOOR).log()).sum((-3, -2, -1)).mean()


def random_projection(like: Tensor, channels: int, generator: torch.Generator) -> Tensor:
    """Draw one projection of the channels for each image: (B, C, channels), columns of norm 1.

    Args:
        like: map (B, C, h, w) that gives B, C and the device.
        channels: of the projected map (64 in LoftUp's released training, 30 in FeatUp's).
        generator: source of the draws.

    Example:
        >>> import torch
        >>> random_projection(torch.empty(2, 8, 1, 1), 3, torch.Generator()).norm(dim=1).shape
        torch.Size([2, 3])
    """
    drawn = draw_like(generator, widen(like), (like.shape[0], like.shape[1], channels))
    return unit_vectors(drawn)


def project(x: Tensor, projection: Tensor) -> Tensor:
    """Project the channels of (B, C, h, w) with (B, C, k): (B, k, h, w).

    Example:
        >>> import torch
        >>> project(torch.randn(2, 8, 4, 5), torch.randn(2, 8, 3)).shape
        torch.Size([2, 3, 4, 5])
    """
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
    for estimate, depth in zip(widen(pred).flatten(1), widen(target).flatten(1), strict=True):
        valid = torch.isfinite(depth) & (depth > 0)
        if valid.sum() < 2:
            continue
        losses.append((_standardized(estimate[valid]) - _standardized(depth[valid])).abs().mean())
    return torch.stack(losses).mean() if losses else widen(pred).sum() * 0


def _standardized(values: Tensor) -> Tensor:
    centred = values - values.median()
    return centred / centred.abs().mean().clamp(min=1e-6)
