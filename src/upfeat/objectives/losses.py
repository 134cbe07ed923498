"""Distances between feature maps, and penalties on one map.

Every loss takes maps (B, C, h, w), computes in float32 at least, whatever the maps' dtype, and
returns a scalar. The sums over the channels of large maps on a CPU, and their gradient, are
computed band by band: the temporaries of a whole map are fresh memory and take longer than the
arithmetic. Legend: ``B`` batch, ``C`` channels, ``h w`` grid.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from upfeat.errors import UnknownNameError, check_map, shape_text
from upfeat.objectives.draws import draw_like
from upfeat.ops import unit_vectors
from upfeat.ops.images import total_variation
from upfeat.ops.runtime import CACHE_BYTES, new_large, wants_reference

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
    "token_structure",
    "total_variation",
]

Distance = Literal["cosine_mse", "cosine", "min_max_mse", "mse", "l1", "token_structure"]

COSINE_EPS = 1e-12  # added to squared norms, as in torch's cosine embedding loss
MIN_MAX_EPS = 1e-6
ENTROPY_FLOOR = 1e-7
TOKEN_EPS, TOKEN_TEMPERATURE = 1e-5, 0.5  # of ViT-Up's loss


def to_float32(x: Tensor) -> Tensor:
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


# -- sums over the channels at each pixel ----------------------------------------------------------


class Products(NamedTuple):
    """Sums over the channels of pred^2, target^2 and pred target, (B, 1, h, w) each."""

    pred: Tensor
    target: Tensor
    both: Tensor


def channel_products(pred: Tensor, target: Tensor) -> Products:
    """Return the squared norms and the product of the pixels' channels, differentiable."""
    return Products(*_channel_sums(pred, target, products=True, distance=False))


def squared_distance(pred: Tensor, target: Tensor) -> Tensor:
    """Return the squared distance of each pixel's channels, (B, 1, h, w), differentiable."""
    return _channel_sums(pred, target, products=False, distance=True)[0]


def products_and_distance(pred: Tensor, target: Tensor) -> tuple[Products, Tensor]:
    """Return :func:`channel_products` and :func:`squared_distance` with one gradient map."""
    *products, distance = _channel_sums(pred, target, products=True, distance=True)
    return Products(*products), distance


def _channel_sums(
    pred: Tensor, target: Tensor, *, products: bool, distance: bool
) -> tuple[Tensor, ...]:
    small = pred.device.type != "cpu" or pred.numel() * 4 <= 2 * CACHE_BYTES
    if small or wants_reference():
        return _plain(pred, target, products, distance)
    sums: tuple[Tensor, ...] = _BandedSums.apply(pred, target, products, distance)
    return sums


def _plain(pred: Tensor, target: Tensor, products: bool, distance: bool) -> tuple[Tensor, ...]:
    """The definition: up to four maps (B, 1, h, w) of at least float32."""
    pred, target = to_float32(pred), to_float32(target)
    terms = []
    if products:
        terms += [(a * b).sum(1, keepdim=True) for a, b in ((pred, pred), (target, target))]
        terms += [(pred * target).sum(1, keepdim=True)]
    if distance:
        terms += [(pred - target).square().sum(1, keepdim=True)]
    return tuple(terms)


class _BandedSums(torch.autograd.Function):
    """The definition in bands of rows; the gradient is a sum of both maps, weighed by pixel."""

    @staticmethod
    def forward(
        ctx: Any, pred: Tensor, target: Tensor, products: bool, distance: bool
    ) -> tuple[Tensor, ...]:
        wide = torch.promote_types(pred.dtype, torch.float32)
        shape = (len(pred), 1, *pred.shape[2:])
        sums = [pred.new_empty(shape, dtype=wide) for _ in range(3 * products + distance)]
        for band in _bands(pred):
            for whole, part in zip(
                sums, _plain(pred[band], target[band], products, distance), strict=True
            ):
                whole[band] = part
        ctx.save_for_backward(pred, target)
        ctx.products, ctx.distance = products, distance
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        pred, target = ctx.saved_tensors
        zero = torch.zeros_like(grads[0])
        of_pred, of_target, of_both = grads[:3] if ctx.products else (zero, zero, zero)
        of_distance = grads[-1] if ctx.distance else zero
        cross = of_both - 2 * of_distance  # each map's weight in the other's gradient
        needs = ctx.needs_input_grad
        return (
            _weighed(pred, 2 * (of_pred + of_distance), target, cross) if needs[0] else None,
            _weighed(target, 2 * (of_target + of_distance), pred, cross) if needs[1] else None,
            None,
            None,
        )


def _weighed(x: Tensor, x_weight: Tensor, y: Tensor, y_weight: Tensor) -> Tensor:
    """Return x_weight x + y_weight y, maps (B, C, h, w) and weights (B, 1, h, w), laid out as x."""
    if x.is_contiguous(memory_format=torch.channels_last):
        batch, channels, height, width = x.shape
        result = new_large(x, batch, height, width, channels).permute(0, 3, 1, 2)
    else:
        result = new_large(x, *x.shape)
    for band in _bands(x):
        part = to_float32(x[band]) * x_weight[band]
        result[band] = part.addcmul_(to_float32(y[band]), y_weight[band])
    return result


def _bands(x: Tensor) -> Iterator[tuple[slice, slice, slice]]:
    """Yield bands of rows of single maps (B, C, h, w)."""
    batch, channels, height, width = x.shape
    step = max(1, 2 * CACHE_BYTES // (4 * channels * width))
    for item in range(batch):
        for start in range(0, height, step):
            yield slice(item, item + 1), slice(None), slice(start, start + step)


# -- distances -------------------------------------------------------------------------------------


def cosine_loss(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean over all pixels of 1 - cos(pred, target).

    The first term of JAFAR's equation for its loss; 1e-12 is added to each squared norm.
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
    """Return :func:`cosine_loss` + :func:`min_max_mse`: the loss of JAFAR and of AnyUp."""
    check_pair(pred, target)
    products, distance = products_and_distance(pred, target)
    return (_cosine(products) + _min_max(distance, target)).mean()


def mse(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean square difference: NAF's loss, LoftUp's first stage."""
    check_pair(pred, target)
    return F.mse_loss(to_float32(pred), to_float32(target))


def l1(pred: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference."""
    check_pair(pred, target)
    return F.l1_loss(to_float32(pred), to_float32(target))


def token_structure(pred: Tensor, target: Tensor) -> Tensor:
    """Return ViT-Up's loss (arXiv 2606.14024): each token, and how the tokens resemble each other.

    The sum of the squared error in units of the target's variance over the channels, of 1 - cosine,
    and of the divergence of the softmax over the other tokens' cosines, divided by 0.5, from the
    target's; the latter over N max(ln N, 1). Memory grows with the square of N = h w.

    Args:
        pred: (B, C, h, w).
        target: (B, C, h, w).

    Example:
        >>> import torch
        >>> x = torch.randn(1, 8, 4, 4)
        >>> token_structure(x, x).abs().item() < 1e-6
        True
    """
    check_pair(pred, target)
    return torch.stack(token_terms(pred, target)).sum()


def token_terms(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three terms of :func:`token_structure`: squared error, cosine, divergence."""
    pred, target = (to_float32(x).flatten(2).mT for x in (pred, target))  # (B, N, C)
    variance = target.var(2, correction=0, keepdim=True)
    error = ((pred - target).square() / (variance + TOKEN_EPS)).mean()
    pred, target = (unit_vectors(x, dim=2) for x in (pred, target))
    cosine = 1 - (pred * target).sum(2).mean()
    number = pred.shape[1]
    if number == 1:  # no other tokens
        return error, cosine, error.new_zeros(())
    others = ~torch.eye(number, dtype=torch.bool, device=pred.device)
    rows = []
    for x in (pred, target):
        similar = (x @ x.mT / TOKEN_TEMPERATURE)[:, others]  # (B, N (N - 1)), row by row
        rows.append(similar.unflatten(1, (number, number - 1)).log_softmax(2))
    divergence = F.kl_div(rows[0], rows[1], reduction="batchmean", log_target=True)
    return error, cosine, divergence / (number * max(math.log(number), 1.0))


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine_mse": cosine_mse,
    "cosine": cosine_loss,
    "min_max_mse": min_max_mse,
    "mse": mse,
    "l1": l1,
    "token_structure": token_structure,
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
    """Return the squared norm of each pixel, (B, C, h, w) -> (B, 1, h, w)."""
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
    """Draw one projection of the channels for each image: (B, C, channels), columns of norm 1."""
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
