"""Sums over the channels of two maps at each pixel: squared norms, product, squared distance.

A pixel loss that is written with them is a plain differentiable function of its maps, and needs no
temporary of a map's size. On a CPU the sums of large maps, and their gradient, are computed band by
band: the temporaries of a whole map are fresh memory and take longer than the arithmetic.

Legend: ``B`` batch, ``C`` channels, ``h w`` grid.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from upfeat.ops.runtime import CACHE_BYTES, new_large, wants_reference


class Products(NamedTuple):
    """Sums over the channels of pred^2, target^2 and pred target, (B, 1, h, w) each."""

    pred: Tensor
    target: Tensor
    both: Tensor


def to_float32(x: Tensor) -> Tensor:
    """Return half precision as float32, everything else as it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


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
