"""Triton kernels of the local attender: forward, gradient of the weights, gradient of the values.

A program takes a block of pixels and a block of channels and walks over the taps. The gradient of
the values is gathered, not scattered: a padded cell knows the pixels that see it, so no sum runs in
arbitrary order. Legend as in ``upfeat.ops.attention.local``; Hp Wp the padded coarse grid.
"""

# Kernels are a language of their own: untyped.
# mypy: disable-error-code="no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from upfeat.ops.attention.local import Taps
from upfeat.ops.images import border_index
from upfeat.ops.triton import _common
from upfeat.ops.triton._common import HIDDEN, LOG2_E

PIXELS = 32


@triton.jit
def _forward_kernel(
    logits, value, steps, out, lse, taps, cols, line, pixels, cells, channels, up, across, log2_e,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per (block of pixels, image, block of channels): mixed values; the first writes the lse."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = at < pixels
    cell = at // cols // up * line + at % cols // across
    logits += image * taps * pixels
    peak = tl.full([PIXELS], HIDDEN, tl.float32)
    total = tl.zeros([PIXELS], tl.float32)
    for tap in range(taps):
        score = tl.load(logits + tap * pixels + at, mask=inside, other=0.0).to(tl.float32) * log2_e
        raised = tl.maximum(peak, score)
        total = total * tl.exp2(peak - raised) + tl.exp2(score - raised)
        peak = raised
    level = peak + tl.log2(total)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    mask = inside[:, None] & (channel < channels)[None, :]
    mixed = tl.zeros([PIXELS, CHANNELS], tl.float32)
    value += image * cells * channels
    for tap in range(taps):
        score = tl.load(logits + tap * pixels + at, mask=inside, other=0.0).to(tl.float32) * log2_e
        place = (cell + tl.load(steps + tap)).to(tl.int64) * channels
        seen = tl.load(value + place[:, None] + channel[None, :], mask=mask, other=0.0)
        mixed += tl.exp2(score - level)[:, None] * seen.to(tl.float32)
    place = (image * pixels + at) * channels
    mixed = mixed.to(out.dtype.element_ty)
    tl.store(out + place[:, None] + channel[None, :], mixed, mask=mask)
    tl.store(lse + image * pixels + at, level, mask=inside & (tl.program_id(2) == 0))


@triton.jit
def _grad_weight_kernel(
    grad_out, value, steps, grad, taps, cols, line, pixels, cells, channels, up, across,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per (block of pixels, image, tap): inner product of a pixel's gradient and its cell."""
    image = tl.program_id(1).to(tl.int64)
    tap = tl.program_id(2)
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    inside = at < pixels
    cell = at // cols // up * line + at % cols // across + tl.load(steps + tap)
    from_grad = (image * pixels + at) * channels
    from_value = (image * cells + cell) * channels
    product = tl.zeros([PIXELS], tl.float32)
    for first in range(0, channels, CHANNELS):
        channel = first + tl.arange(0, CHANNELS)
        mask = inside[:, None] & (channel < channels)[None, :]
        above = tl.load(grad_out + from_grad[:, None] + channel[None, :], mask=mask, other=0.0)
        seen = tl.load(value + from_value[:, None] + channel[None, :], mask=mask, other=0.0)
        product += tl.sum(above.to(tl.float32) * seen.to(tl.float32), axis=1)
    tl.store(grad + (image * taps + tap) * pixels + at, product, mask=inside)


@triton.jit
def _grad_value_kernel(
    grad_out, logits, lse, corners, grad, taps, rows, cols, line, pixels, cells, channels, up,
    across, log2_e, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Per (block of padded cells, image, block of channels): what the pixels that see them ask."""
    image = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * PIXELS + tl.arange(0, PIXELS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    known = channel < channels
    total = tl.zeros([PIXELS, CHANNELS], tl.float32)
    for tap in range(taps):
        i = at // line - tl.load(corners + 2 * tap)
        j = at % line - tl.load(corners + 2 * tap + 1)
        inside = (at < cells) & (i >= 0) & (j >= 0) & (i < rows // up) & (j < cols // across)
        for sub in range(up * across):
            pixel = (i * up + sub // across) * cols + j * across + sub % across
            place = image * pixels + pixel
            level = tl.load(lse + place, mask=inside, other=0.0)
            score = tl.load(
                logits + (image * taps + tap) * pixels + pixel, mask=inside, other=0.0
            ).to(tl.float32)
            above = tl.load(
                grad_out + (place * channels)[:, None] + channel[None, :],
                mask=inside[:, None] & known[None, :],
                other=0.0,
            )
            total += tl.exp2(score * log2_e - level)[:, None] * above.to(tl.float32)
    place = (image * cells + at) * channels
    mask = (at < cells)[:, None] & known[None, :]
    tl.store(grad + place[:, None] + channel[None, :], total, mask=mask)


def forward(logits: Tensor, value: Tensor, *, taps: Taps) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Output (B, C, H, W) in channels_last strides; log-sum-exp (B, H * W) in base 2."""
    _common.check_covered(logits, logits, value, 1)
    batch, count, rows, cols = logits.shape
    if batch * value.shape[1] == 0:
        raise NotImplementedError("nothing to compute")
    padded, line = _padded(value, taps)
    out = value.new_empty(batch, rows, cols, value.shape[1])
    lse = torch.empty(batch, rows * cols, device=value.device, dtype=torch.float32)
    size = _common.block(value.shape[1], 128)
    with _common.on_device(value):
        _forward_kernel[(triton.cdiv(rows * cols, PIXELS), batch, triton.cdiv(out.shape[3], size))](
            logits.contiguous(), padded, _steps(taps, line, value.device), out, lse, count, cols,
            line, rows * cols, padded.shape[1], out.shape[3], rows // value.shape[2],
            cols // value.shape[3], LOG2_E, PIXELS=PIXELS, CHANNELS=size,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2), (lse,)


def backward(
    grad_output: Tensor,
    logits: Tensor,
    value: Tensor,
    residuals: tuple[Tensor, ...],
    *,
    taps: Taps,
) -> tuple[Tensor, Tensor]:
    """Gradients of logits and value, each in its input's type and shape."""
    batch, count, rows, cols = logits.shape
    channels, pixels = value.shape[1], rows * cols
    padded, line = _padded(value, taps)
    cells = padded.shape[1]
    above = grad_output.permute(0, 2, 3, 1).contiguous()  # (B, H, W, C)
    scores = logits.contiguous()
    grad = torch.empty(scores.shape, device=value.device, dtype=torch.float32)
    grad_padded = torch.empty(padded.shape, device=value.device, dtype=torch.float32)
    size = _common.block(channels, 128)
    ratio = (rows // value.shape[2], cols // value.shape[3])
    corners = torch.tensor(taps.corners(), device=value.device, dtype=torch.int32)
    with _common.on_device(value):
        _grad_weight_kernel[(triton.cdiv(pixels, PIXELS), batch, count)](
            above, padded, _steps(taps, line, value.device), grad, count, cols, line, pixels, cells,
            channels, *ratio, PIXELS=PIXELS, CHANNELS=size,
        )  # fmt: skip
        _grad_value_kernel[(triton.cdiv(cells, PIXELS), batch, triton.cdiv(channels, size))](
            above, scores, residuals[0], corners, grad_padded, count, rows, cols, line, pixels,
            cells, channels, *ratio, LOG2_E, PIXELS=PIXELS, CHANNELS=size,
        )  # fmt: skip
    weights = logits.to(torch.float32).softmax(1)
    grad = weights * (grad - (weights * grad).sum(1, keepdim=True))
    return grad.to(logits.dtype), _unpadded(grad_padded, value, taps)


def _padded(value: Tensor, taps: Taps) -> tuple[Tensor, int]:
    """(B, C, h, w) to (B, Hp * Wp, C), contiguous, and Wp."""
    index = _index(value, taps)
    cells = value.permute(0, 2, 3, 1).index_select(1, index[0]).index_select(2, index[1])
    return cells.contiguous().flatten(1, 2), len(index[1])


def _unpadded(grad: Tensor, value: Tensor, taps: Taps) -> Tensor:
    """The transpose of `_padded`: one sum an axis, over the few cells that repeat a border."""
    height, width = value.shape[2:]
    index = _index(value, taps)
    grad = grad.unflatten(1, (len(index[0]), len(index[1])))
    for axis, length in ((1, height), (2, width)):
        chosen = torch.nn.functional.one_hot(index[axis - 1], length).to(grad.dtype)  # (padded, L)
        grad = torch.tensordot(grad, chosen, dims=([axis], [0])).movedim(-1, axis)
    return grad.permute(0, 3, 1, 2).to(value.dtype)


def _index(value: Tensor, taps: Taps) -> list[Tensor]:
    return [border_index(n, taps.reach, taps.padding).to(value.device) for n in value.shape[2:]]


def _steps(taps: Taps, line: int, device: torch.device) -> Tensor:
    """Distance of each tap from the first cell within reach, in the padded values: (n,)."""
    return torch.tensor(
        [row * line + col for row, col in taps.corners()], device=device, dtype=torch.int32
    )
