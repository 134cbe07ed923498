"""The residual block of JAFAR and AnyUp: two rounds of group norm, SiLU and 1x1 convolution.

    y = shortcut(x) + W2 SiLU(GN2(W1 SiLU(GN1(x))))

On a map of 448 x 448 pixels one tensor of this block takes 100 MB, and automatic differentiation
keeps seven of them. Here two are kept, the input of each norm; everything else lives in bands of
pixels whose buffers are reused: memory that is fresh for every band takes longer to get than the
arithmetic that fills it.

Legend: B batch, P = H * W pixels, c channels in, d channels out.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from upfeat.ops import reference, stream
from upfeat.ops.reference import BlockWeights
from upfeat.ops.runtime import (
    ThreadScratch,
    compute_dtype,
    new_large,
    run_blocks,
    wants_reference,
    without_autocast,
)
from upfeat.ops.stream.moments import Statistics, band_pixels, gather_moments, group_statistics

Pair: TypeAlias = tuple[Tensor, Tensor]


def pointwise_residual(x: Tensor, weights: BlockWeights, groups: int, eps: float) -> Tensor:
    """Apply one residual block to a map.

    Args:
        x: (B, c, H, W), any float type; channels_last is fastest.
        weights: of the block; under autocast they and ``x`` are cast, outside they share one type.
        groups: of both group norms; must divide c and d.
        eps: of both group norms. Statistics are computed in float32 at least.

    Returns:
        (B, d, H, W) in the type of ``x`` (autocast's inside autocast), in channels_last strides.

    Raises:
        ValueError: if shapes do not fit.

    Example:
        >>> import torch
        >>> weights = BlockWeights(
        ...     torch.ones(8), torch.zeros(8), torch.eye(8),
        ...     torch.ones(8), torch.zeros(8), torch.zeros(8, 8),
        ... )
        >>> x = torch.randn(1, 8, 3, 5)
        >>> torch.equal(pointwise_residual(x, weights, groups=4, eps=1e-5), x)
        True
    """  # fmt: skip
    if has_torch_function((x,)):
        return handle_torch_function(pointwise_residual, (x,), x, weights, groups, eps)
    out_dim, in_dim = weights.conv1.shape
    if x.dim() != 4 or x.shape[1] != in_dim:
        raise ValueError(f"x must be (B, {in_dim}, H, W) for these weights, got {tuple(x.shape)}")
    if in_dim % groups or out_dim % groups:
        raise ValueError(f"{groups} groups do not divide the channels {in_dim} and {out_dim}")
    if (weights.shortcut is None) != (in_dim == out_dim):
        raise ValueError(
            f"a shortcut is needed exactly if the widths differ; got {in_dim} -> {out_dim} and "
            f"{'no shortcut' if weights.shortcut is None else 'a shortcut'}"
        )
    if wants_reference():
        return reference.pointwise_residual(x, weights, groups, eps)
    dtype = x.dtype
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
    wide = compute_dtype(x)
    cast = BlockWeights(
        weights.norm1_weight.to(wide),
        weights.norm1_bias.to(wide),
        weights.conv1.to(dtype),
        weights.norm2_weight.to(wide),
        weights.norm2_bias.to(wide),
        weights.conv2.to(dtype),
        None if weights.shortcut is None else weights.shortcut.to(dtype),
    )
    with without_autocast(x):
        return _PointwiseResidual.apply(x.to(dtype), *cast, groups, eps)


stream.recorded_as(pointwise_residual)(reference.pointwise_residual)


def _pixels(x: Tensor) -> Tensor:
    """(B, c, H, W) -> (B, P, c), without a copy for channels_last."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def _map(pixels: Tensor, like: Tensor) -> Tensor:
    """(B, P, d) -> (B, d, H, W) as a view."""
    return pixels.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def normed_silu(band: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """SiLU(band * scale + shift) for a band (p, d) and (d,) vectors."""
    return F.silu(torch.addcmul(shift, band, scale, out=out), inplace=True)


class _PointwiseResidual(torch.autograd.Function):
    """Keeps the inputs of both norms and their statistics; backward computes the rest anew."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm1_weight: Tensor,
        norm1_bias: Tensor,
        conv1: Tensor,
        norm2_weight: Tensor,
        norm2_bias: Tensor,
        conv2: Tensor,
        shortcut: Tensor | None,
        groups: int,
        eps: float,
    ) -> Tensor:
        pixels = _pixels(x)
        out = new_large(pixels, *pixels.shape[:2], conv1.shape[0])
        kept = any(ctx.needs_input_grad)
        hidden = new_large(out, *out.shape) if kept else out  # input of the second norm
        statistics: list[Tensor] = []
        scratch = ThreadScratch(pixels, pixels.dtype)
        for item, middle, result in zip(pixels, hidden, out, strict=True):  # (P, c), twice (P, d)
            first = group_statistics(item, groups, eps)
            affine1 = _in_type(first.affine(norm1_weight, norm1_bias), x)

            def inner(
                band: slice,
                item: Tensor = item,
                middle: Tensor = middle,
                affine: Pair = affine1,
            ) -> Tensor:
                active = scratch.take("active", *item[band].shape)
                normed_silu(item[band], *affine, out=active)
                return torch.mm(active, conv1.T, out=middle[band])

            bands = _bands(result)
            second = gather_moments(bands, inner, groups, eps, x.device)
            affine2 = _in_type(second.affine(norm2_weight, norm2_bias), x)

            def outer(
                band: slice,
                _: None,
                item: Tensor = item,
                middle: Tensor = middle,
                result: Tensor = result,
                affine: Pair = affine2,
            ) -> None:
                active = scratch.take("active", *middle[band].shape)
                normed_silu(middle[band], *affine, out=active)
                straight = item[band] if shortcut is None else item[band] @ shortcut.T
                torch.addmm(straight, active, conv2.T, out=result[band])

            run_blocks(bands, outer, lambda: None, x.device)
            statistics += [*first, *second]
        ctx.groups = groups
        ctx.save_for_backward(
            x, hidden if kept else None, norm1_weight, norm1_bias, conv1, norm2_weight, norm2_bias,
            conv2, shortcut, *statistics,
        )  # fmt: skip
        return _map(out, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Under activation checkpointing saved tensors can be read once.
        x, hidden, *saved = ctx.saved_tensors
        weights, statistics = BlockWeights(*saved[:7]), saved[7:]
        pixels, grads = _pixels(x), _pixels(grad.to(x.dtype))
        zeros = [
            None if w is None else torch.zeros_like(w, dtype=compute_dtype(w)) for w in weights
        ]
        sums = BlockWeights(*zeros)  # type: ignore[arg-type]
        grad_x = new_large(pixels, *pixels.shape)
        for index, item in enumerate(pixels):
            four = statistics[4 * index : 4 * index + 4]
            _backward_item(
                item, hidden[index], grads[index], weights, Statistics(*four[:2]),
                Statistics(*four[2:]), ctx.groups, sums, grad_x[index],
            )  # fmt: skip
        out = [
            None if total is None or weight is None else total.to(weight.dtype)
            for total, weight in zip(sums, weights, strict=True)
        ]
        return _map(grad_x, x), *out, None, None


def _backward_item(
    x: Tensor,
    hidden: Tensor,
    grad: Tensor,
    weights: BlockWeights,
    first: Statistics,
    second: Statistics,
    groups: int,
    sums: BlockWeights,
    grad_x: Tensor,
) -> None:
    """Add one image's weight gradients to ``sums`` in place; fill ``grad_x``.

    x (P, c); hidden, the input of the second norm, and grad (P, d). Three sweeps over the bands,
    because the gradient of a group norm needs two sums over the whole image before any of its
    pixels.
    """
    norm1_weight, norm1_bias, conv1, norm2_weight, norm2_bias, conv2, shortcut = weights
    sum1_weight, sum1_bias, sum_conv1, sum2_weight, sum2_bias, sum_conv2, sum_shortcut = sums
    scale1, shift1 = _in_type(first.affine(norm1_weight, norm1_bias), x)
    scale2, shift2 = _in_type(second.affine(norm2_weight, norm2_bias), x)
    scratch = ThreadScratch(x, x.dtype)
    # (P, d), gradients in the middle of the block; what comes after them may take their place
    inner = grad_x if shortcut is None else new_large(grad, *grad.shape)
    bands = _bands(grad)

    def second_norm(band: slice, own: _NormGradient) -> None:
        own.step(grad[band], hidden[band], scale2, shift2, conv2, inner[band])

    make = partial(_NormGradient, second, sum_conv2, scratch)
    norm2 = _NormGradient.join(run_blocks(bands, second_norm, make, x.device))
    sum_conv2 += norm2.weight
    norm2.finish(norm2_weight, groups, len(x), sum2_weight, sum2_bias)

    def first_norm(band: slice, own: _NormGradient) -> None:
        middle = norm2.apply(inner[band], hidden[band])  # gradient of conv1's output
        own.step(middle, x[band], scale1, shift1, conv1, grad_x[band])

    make = partial(_NormGradient, first, sum_conv1, scratch)
    norm1 = _NormGradient.join(run_blocks(bands, first_norm, make, x.device))
    sum_conv1 += norm1.weight
    norm1.finish(norm1_weight, groups, len(x), sum1_weight, sum1_bias)

    def straight(band: slice, _: None) -> None:
        below = norm1.apply(grad_x[band], x[band])
        if shortcut is None:
            torch.add(below, grad[band], out=grad_x[band])
        else:
            torch.addmm(below, grad[band], shortcut, out=grad_x[band])

    run_blocks(bands, straight, lambda: None, x.device)
    if sum_shortcut is not None:
        sum_shortcut += grad.T @ x  # one product over all pixels: (d, P) @ (P, c)


class _NormGradient:
    """Backward pass of a group norm over bands: first the sums, then `apply`.

    With n the normalised input and g the gradient of the norm's output, the gradient of its input
    is rstd * (weight * g - mean(weight * g) - n * mean(weight * g * n)), means over group and
    image. A worker of its own has each part of the image; the gradient of the convolution beside
    the norm is gathered along with the sums.
    """

    def __init__(self, statistics: Statistics, convolution: Tensor, scratch: ThreadScratch) -> None:
        self.rstd = statistics.rstd
        self.mean = statistics.mean
        self.normed_shift = -self.mean * self.rstd
        self.scratch = scratch
        self.weight = torch.zeros_like(convolution)
        self.bias_sum = torch.zeros_like(self.mean, dtype=torch.float64)
        self.weight_sum = torch.zeros_like(self.mean, dtype=torch.float64)

    def step(
        self, grad: Tensor, x: Tensor, scale: Tensor, shift: Tensor, conv: Tensor, out: Tensor
    ) -> None:
        """Go back through conv(SiLU(norm(x))) in a band, to the gradient ``out`` of norm(x).

        ``grad`` (p, d) is the convolution's, ``x`` (p, c) the norm's input, x * scale + shift its
        output. ``out`` may share its memory with neither.
        """
        normed = torch.addcmul(shift, x, scale, out=self.scratch.take("normed", *x.shape))  # (p, c)
        active = torch.ops.aten.silu.out(normed, out=self.scratch.take("active", *x.shape))
        self.weight += grad.T @ active
        below = _silu_backward_(torch.mm(grad, conv, out=out), normed)
        self.add(below, x)

    def add(self, grad: Tensor, x: Tensor) -> None:
        """Add a band: gradient of the norm's output and the norm's input, both (p, c)."""
        wide = self.mean.dtype
        normed = self.scratch.take("wide", *x.shape, dtype=wide)
        torch.addcmul(self.normed_shift, x.to(wide), self.rstd, out=normed)
        self.bias_sum += grad.sum(0, dtype=wide)
        self.weight_sum += normed.mul_(grad).sum(0)

    @staticmethod
    def join(parts: Sequence["_NormGradient"]) -> "_NormGradient":
        """Return the sums of all workers, in the first."""
        total = parts[0]
        for part in parts[1:]:
            total.weight += part.weight
            total.bias_sum += part.bias_sum
            total.weight_sum += part.weight_sum
        return total

    def finish(
        self, weight: Tensor, groups: int, pixels: int, weight_grad: Tensor, bias_grad: Tensor
    ) -> None:
        """Add the gradients of weight and bias; prepare `apply`."""
        weight_grad += self.weight_sum
        bias_grad += self.bias_sum
        width = len(weight) // groups
        shared = torch.stack((self.bias_sum, self.weight_sum)) * weight  # (2, d)
        means = shared.unflatten(1, (groups, width)).sum(2) / (pixels * width)  # (2, groups)
        mean_grad, mean_slope = means.repeat_interleave(width, 1).to(self.mean.dtype)  # (d,) each
        self.scale = weight * self.rstd
        self.slope = -self.rstd.square() * mean_slope
        self.shift = -self.rstd * mean_grad - self.slope * self.mean

    def apply(self, grad: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of a band of the norm's input from that of its output.

        It is valid until the thread's next call.
        """
        wide = self.scale.dtype
        out = self.scratch.take("applied", *x.shape, dtype=wide)
        torch.addcmul(self.shift, grad.to(wide), self.scale, out=out)
        return out.addcmul_(x.to(wide), self.slope).to(grad.dtype)


def _silu_backward_(grad: Tensor, x: Tensor) -> Tensor:
    """Multiply ``grad`` in place by the slope of SiLU at ``x``."""
    return torch.ops.aten.silu_backward.grad_input(grad, x, grad_input=grad)


def _bands(pixels: Tensor) -> list[slice]:
    """Cut a map (P, d) into bands that fit a cache."""
    step = band_pixels(pixels)
    return [slice(start, start + step) for start in range(0, len(pixels), step)]


def _in_type(vectors: tuple[Tensor, Tensor], like: Tensor) -> tuple[Tensor, Tensor]:
    return vectors[0].to(like.dtype), vectors[1].to(like.dtype)
