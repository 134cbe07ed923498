"""Convolution with a kernel of its own at every pixel, and the similarity that makes such kernels.

The two operators of joint bilateral upsampling as FeatUp learns it (arXiv 2403.10516, section 3.2,
equation 5):

    adaptive_convolution:  out(y, x) = sum_ij  K(y, x)_ij  S(y // s + i, x // s + j)
    window_similarity:     out(y, x)_ij = <Q(y, x), S(y + i, x + j)>

FeatUp's CUDA extension has a bug in its backward pass: the kernel gradient takes the square of the
block index for the tap, so that of the 49 taps of a 7 x 7 kernel only 0, 1, 4, 9, 16, 25 and 36
receive a gradient. It is not reproduced here: gradients are those of the formulas above.

Legend: B batch, C channels, H W fine grid, h w source, k side of a kernel, s ratio of the grids.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import check_bytes, shape_text
from upfeat.ops.filters._window_tiles import TILE, WindowTiles
from upfeat.ops.runtime import OPERATOR_BYTES, dispatch


def adaptive_convolution_reference(source: Tensor, kernel: Tensor, ratio: int = 1) -> Tensor:
    """The definition, with every window laid out. See `adaptive_convolution`."""
    height, width, k = _check(source, kernel, ratio)
    dtype = dispatch.compute_dtype(source, kernel)
    with dispatch.without_autocast(source):
        windows = F.unfold(source.to(dtype), k)  # (B, C k k, cells)
        cells = (source.shape[2] - k + 1, source.shape[3] - k + 1)
        windows = windows.unflatten(1, (-1, k * k)).unflatten(3, cells)  # (B, C, k k, h, w)
        windows = windows.repeat_interleave(ratio, 3).repeat_interleave(ratio, 4)
        windows = windows[..., :height, :width]
        weights = kernel.to(dtype).flatten(3)  # (B, H, W, k k)
        return torch.einsum("bctyx,byxt->bcyx", windows, weights).to(source.dtype)


def window_similarity_reference(query: Tensor, source: Tensor, k: int) -> Tensor:
    """The definition, with every window laid out. See `window_similarity`."""
    _check_similarity(query, source, k)
    dtype = dispatch.compute_dtype(query, source)
    height, width = query.shape[2:]
    with dispatch.without_autocast(query):
        windows = F.unfold(source.to(dtype), k)  # (B, C k k, H W)
        windows = windows.unflatten(1, (-1, k, k)).unflatten(4, (height, width))
        return torch.einsum("bcyx,bcijyx->byxij", query.to(dtype), windows).to(query.dtype)


def adaptive_convolution(
    source: Tensor, kernel: Tensor, ratio: int = 1, *, max_bytes: int | None = None
) -> Tensor:
    """Convolve a map with a kernel of its own at every pixel, the same for all channels.

    Args:
        source: (B, C, h + k - 1, w + k - 1), padded by the caller; h = ceil(H / s), w likewise.
        kernel: (B, H, W, k, k), k odd; rows of the window, then columns.
        ratio: s, 1, 2 or 4: neighbouring s x s pixels share a window of a coarser source.
        max_bytes: bound on the temporaries beside channels-last copies of the two inputs.

    Returns:
        (B, C, H, W) in the type of ``source``, computed in float32 at least. Gradients flow to
        both inputs; nothing of size pixels x window x channels is ever held.

    Raises:
        ValueError: if shapes, types or devices do not fit.

    Example:
        >>> import torch
        >>> source, kernel = torch.randn(1, 8, 12, 14), torch.rand(1, 10, 12, 3, 3)
        >>> adaptive_convolution(source, kernel).shape
        torch.Size([1, 8, 10, 12])
        >>> adaptive_convolution(source, torch.rand(1, 20, 24, 3, 3), ratio=2).shape
        torch.Size([1, 8, 20, 24])
    """
    if dispatch.wants_reference():
        return adaptive_convolution_reference(source, kernel, ratio)
    _check(source, kernel, ratio)
    return _AdaptiveConvolution.apply(source, kernel, ratio, _budget(max_bytes))


def window_similarity(
    query: Tensor, source: Tensor, k: int, *, max_bytes: int | None = None
) -> Tensor:
    """Inner product of every pixel with the k x k pixels around it in another map.

    Args:
        query: (B, C, H, W).
        source: (B, C, H + k - 1, W + k - 1), padded by the caller.
        k: side of the window, odd.
        max_bytes: bound on the temporaries beside channels-last copies of the two inputs.

    Returns:
        (B, H, W, k, k) in the type of ``query``, computed in float32 at least.

    Raises:
        ValueError: if shapes, types or devices do not fit.

    Example:
        >>> import torch
        >>> image = torch.rand(1, 3, 8, 9)
        >>> padded = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="reflect")
        >>> window_similarity(image, padded, 3).shape
        torch.Size([1, 8, 9, 3, 3])
    """
    if dispatch.wants_reference():
        return window_similarity_reference(query, source, k)
    _check_similarity(query, source, k)
    return _WindowSimilarity.apply(query, source, k, _budget(max_bytes))


class _AdaptiveConvolution(torch.autograd.Function):
    """Saves the inputs only; the backward goes over the windows again."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, kernel: Tensor, ratio: int, max_bytes: int) -> Tensor:
        ctx.save_for_backward(source, kernel)
        ctx.ratio, ctx.max_bytes = ratio, max_bytes
        ctx.triton = dispatch.triton_kernel("adaptive_convolution") if source.is_cuda else None
        with dispatch.without_autocast(source):
            if ctx.triton is not None:
                try:
                    out: Tensor = ctx.triton.forward(source, kernel, ratio=ratio)[0]
                    return out
                except NotImplementedError:
                    ctx.triton = None
            dtype = dispatch.compute_dtype(source, kernel)
            tiles = _tiles(kernel, ratio, max_bytes)
            mixed = tiles.mix(_last(source, dtype), kernel.to(dtype))
            return mixed.permute(0, 3, 1, 2).to(source.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        source, kernel = ctx.saved_tensors
        grads: tuple[Tensor | None, Tensor | None]
        with torch.no_grad(), dispatch.without_autocast(source):
            if ctx.triton is not None:
                grads = ctx.triton.backward(grad_output, source, kernel, (), ratio=ctx.ratio)
            else:
                grads = _gradients(ctx, grad_output, source, kernel)
        return *_once(grads, grad_output, source, kernel), None, None


def _gradients(
    ctx: Any, grad_output: Tensor, source: Tensor, kernel: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    dtype = dispatch.compute_dtype(source, kernel)
    tiles = _tiles(kernel, ctx.ratio, ctx.max_bytes)
    grad, last = _last(grad_output, dtype), _last(source, dtype)
    to_source = to_kernel = None
    if ctx.needs_input_grad[0]:
        to_source = tiles.scatter(grad, kernel.to(dtype), like=last)
        to_source = to_source.permute(0, 3, 1, 2).to(source.dtype)
    if ctx.needs_input_grad[1]:
        to_kernel = tiles.compare(grad, last).to(kernel.dtype)
    return to_source, to_kernel


class _WindowSimilarity(torch.autograd.Function):
    """The transpose of adaptive convolution in its kernel."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, source: Tensor, k: int, max_bytes: int) -> Tensor:
        ctx.save_for_backward(query, source)
        ctx.k, ctx.max_bytes = k, max_bytes
        dtype = dispatch.compute_dtype(query, source)
        with dispatch.without_autocast(query):
            tiles = WindowTiles((query.shape[2], query.shape[3]), k, 1, max_bytes)
            return tiles.compare(_last(query, dtype), _last(source, dtype)).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, source = ctx.saved_tensors
        dtype = dispatch.compute_dtype(query, source)
        to_query = to_source = None
        with torch.no_grad(), dispatch.without_autocast(query):
            tiles = _tiles(grad_output, 1, ctx.max_bytes)
            grad, last = grad_output.to(dtype), _last(source, dtype)
            if ctx.needs_input_grad[0]:
                to_query = tiles.mix(last, grad).permute(0, 3, 1, 2).to(query.dtype)
            if ctx.needs_input_grad[1]:
                to_source = tiles.scatter(_last(query, dtype), grad, like=last)
                to_source = to_source.permute(0, 3, 1, 2).to(source.dtype)
        return *_once((to_query, to_source), grad_output, query, source), None, None


def _once(grads: tuple[Tensor | None, ...], *inputs: Tensor) -> tuple[Tensor | None, ...]:
    if not torch.is_grad_enabled():
        return grads
    return tuple(g if g is None else dispatch._Once.apply(g, *inputs) for g in grads)


def _budget(max_bytes: int | None) -> int:
    return OPERATOR_BYTES if max_bytes is None else check_bytes(max_bytes)


def _tiles(kernel: Tensor, ratio: int, max_bytes: int) -> WindowTiles:
    size = (kernel.shape[1], kernel.shape[2])
    return WindowTiles(size, kernel.shape[3], ratio, max_bytes)


def _last(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, H, W, C), a view where memory and type allow it."""
    return tensor.permute(0, 2, 3, 1).to(dtype)


def _check(source: Tensor, kernel: Tensor, ratio: int) -> tuple[int, int, int]:
    if source.dim() != 4 or kernel.dim() != 5 or kernel.shape[3] != kernel.shape[4]:
        raise ValueError(
            "source must be (B, C, h + k - 1, w + k - 1) and kernel (B, H, W, k, k), got "
            f"{shape_text(source)} and {shape_text(kernel)}."
        )
    if ratio not in (1, 2, TILE):
        raise ValueError(f"ratio must be 1, 2 or {TILE}, got {ratio}; resize the source first.")
    height, width, k = kernel.shape[1:4]
    wanted = (-(-height // ratio) + k - 1, -(-width // ratio) + k - 1)
    if tuple(source.shape[2:]) != wanted or source.shape[0] != kernel.shape[0] or k % 2 == 0:
        raise ValueError(
            f"a kernel {shape_text(kernel)} with ratio {ratio} needs k odd and a source of batch "
            f"{kernel.shape[0]} and size {wanted}, got {shape_text(source)}; pad it by k // 2."
        )
    _check_place(source, kernel)
    return height, width, k


def _check_similarity(query: Tensor, source: Tensor, k: int) -> None:
    wanted = (*query.shape[:2], *(n + k - 1 for n in query.shape[2:]))
    if query.dim() != 4 or tuple(source.shape) != wanted or k < 1 or k % 2 == 0:
        raise ValueError(
            f"a query {shape_text(query)} (B, C, H, W) with k={k} (odd) needs a source {wanted}, "
            f"got {shape_text(source)}; pad it by k // 2."
        )
    _check_place(query, source)


def _check_place(one: Tensor, other: Tensor) -> None:
    if one.device != other.device or not (one.is_floating_point() and other.is_floating_point()):
        raise ValueError(
            f"both inputs must be floating point on one device, got {one.dtype} on {one.device} "
            f"and {other.dtype} on {other.device}."
        )
