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

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.errors import check_bytes, shape_text
from upfeat.ops import reference
from upfeat.ops.runtime import (
    Scratch,
    dispatch,
    new_large,
    operator_bytes,
    run_blocks,
    worker_count,
)


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
    _check(source, kernel, ratio)
    if dispatch.wants_reference():
        return reference.adaptive_convolution(source, kernel, ratio)
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
    _check_similarity(query, source, k)
    if dispatch.wants_reference():
        return reference.window_similarity(query, source, k)
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
    return operator_bytes() if max_bytes is None else check_bytes(max_bytes)


def _tiles(kernel: Tensor, ratio: int, max_bytes: int) -> "WindowTiles":
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
    expected = (-(-height // ratio) + k - 1, -(-width // ratio) + k - 1)
    if tuple(source.shape[2:]) != expected or source.shape[0] != kernel.shape[0] or k % 2 == 0:
        raise ValueError(
            f"a kernel {shape_text(kernel)} with ratio {ratio} needs k odd and a source of batch "
            f"{kernel.shape[0]} and size {expected}, got {shape_text(source)}; pad it by k // 2."
        )
    _check_place(source, kernel)
    return height, width, k


def _check_similarity(query: Tensor, source: Tensor, k: int) -> None:
    expected = (*query.shape[:2], *(n + k - 1 for n in query.shape[2:]))
    if query.dim() != 4 or tuple(source.shape) != expected or k < 1 or k % 2 == 0:
        raise ValueError(
            f"a query {shape_text(query)} (B, C, H, W) with k={k} (odd) needs a source {expected}, "
            f"got {shape_text(source)}; pad it by k // 2."
        )
    _check_place(query, source)


def _check_place(one: Tensor, other: Tensor) -> None:
    if one.device != other.device or not (one.is_floating_point() and other.is_floating_point()):
        raise ValueError(
            f"both inputs must be floating point on one device, got {one.dtype} on {one.device} "
            f"and {other.dtype} on {other.device}."
        )


TILE = 4
PIXELS = TILE * TILE


Block = tuple[int, int, int, int]  # image, tile row, first tile, number of tiles


class TileScratch(Scratch):
    """A worker's buffers; the matrix of spread weights keeps its zeros from block to block."""

    def __init__(self, like: Tensor, tiles: int, cells: int) -> None:
        super().__init__(like, like.dtype)
        self.shape = (tiles, PIXELS, cells)
        self._matrix: Tensor | None = None

    def matrix(self, tiles: int) -> Tensor:
        """(T, 16, n n), zero wherever `_places` does not point."""
        if self._matrix is None:
            self._matrix = torch.zeros(self.shape, device=self.like.device, dtype=self.dtype)
        return self._matrix[:tiles]


class WindowTiles:
    """The geometry of one problem, and the three products in it.

    Args:
        size: (H, W).
        k: side of a window.
        ratio: s, 1, 2 or 4.
        max_bytes: bound on the buffers of all workers together.
    """

    def __init__(self, size: tuple[int, int], k: int, ratio: int, max_bytes: int) -> None:
        self.size, self.k, self.ratio, self.max_bytes = size, k, ratio, max_bytes
        self.cells = TILE // ratio
        self.side = self.cells + k - 1
        self.tiles = (-(-size[0] // TILE), -(-size[1] // TILE))

    # -- the three products ------------------------------------------------------------------------

    def mix(self, source: Tensor, weights: Tensor) -> Tensor:
        """Sum of a pixel's window with its weights: (B, H, W, C).

        ``source`` is (B, h, w, C) with h = ceil(H / s) + k - 1, ``weights`` (B, H, W, k, k).
        """
        source, weights = self._pad_source(source), self._pad_fine(weights)
        out = new_large(source, len(source), *self._fine, source.shape[3])

        def work(block: Block, scratch: TileScratch) -> None:
            matrix = self._spread(weights, block, scratch)  # (T, 16, n n)
            mixed = scratch.take("mixed", block[3], PIXELS, source.shape[3])
            torch.bmm(matrix, self._patches(source, block, scratch), out=mixed)
            self._fine_tiles(out, block).copy_(mixed.view(-1, TILE, TILE, source.shape[3]))

        self._run(source, len(source), work)
        return out[:, : self.size[0], : self.size[1]]

    def compare(self, pixels: Tensor, source: Tensor) -> Tensor:
        """Inner products of a pixel (B, H, W, C) with its window's cells: (B, H, W, k, k)."""
        source, pixels = self._pad_source(source), self._pad_fine(pixels)
        out = source.new_empty(len(source), *self._fine, self.k, self.k)

        def work(block: Block, scratch: TileScratch) -> None:
            own = self._own(pixels, block, scratch)  # (T, 16, C)
            products = scratch.take("products", block[3], PIXELS, self.side**2)
            torch.bmm(own, self._patches(source, block, scratch).mT, out=products)
            self._weight_tiles(out, block).copy_(self._places(products))

        self._run(source, len(source), work)
        return out[:, : self.size[0], : self.size[1]]

    def scatter(self, pixels: Tensor, weights: Tensor, like: Tensor) -> Tensor:
        """Add each pixel (B, H, W, C) times its weights to its window's cells: the shape of like.

        The transpose of `mix` in the source.
        """
        pixels, weights = self._pad_fine(pixels), self._pad_fine(weights)
        channels = pixels.shape[3]
        rows, cols = (count * self.cells + self.side for count in self.tiles)
        out = pixels.new_zeros(len(pixels), rows, cols, channels)

        def work(block: Block, scratch: TileScratch) -> None:
            image, row, first, count = block
            matrix = self._spread(weights, block, scratch)
            patches = scratch.take("patches", count, self.side**2, channels)
            torch.bmm(matrix.mT, self._own(pixels, block, scratch), out=patches)
            patches = patches.view(count, self.side, self.side, channels)
            band = out[image, row * self.cells : row * self.cells + self.side]
            for begin in range(0, self.side, self.cells):  # parts that do not overlap in a row
                width = min(self.cells, self.side - begin)
                start = first * self.cells + begin
                part = band[:, start : start + count * self.cells]
                part = part.unflatten(1, (count, self.cells))[:, :, :width]  # (n, T, width, C)
                part += patches[:, :, begin : begin + width].transpose(0, 1)

        # Patches of tile rows this far apart do not overlap, so that workers do not meet.
        spacing = -(-self.side // self.cells)
        for phase in range(spacing):
            self._run(pixels, len(pixels), work, phase, spacing)
        return out[:, : like.shape[1], : like.shape[2]]

    # -- blocks ------------------------------------------------------------------------------------

    @property
    def _fine(self) -> tuple[int, int]:
        return self.tiles[0] * TILE, self.tiles[1] * TILE

    def _run(
        self,
        like: Tensor,
        batch: int,
        work: Callable[[Block, TileScratch], None],
        phase: int = 0,
        spacing: int = 1,
    ) -> None:
        """Do all blocks, or those of every ``spacing``-th tile row from ``phase`` on."""
        channels = like.shape[3]
        per_tile = self.side**2 * (channels + PIXELS) + 2 * PIXELS * channels
        workers = worker_count(like.device)
        most = self.max_bytes // (workers * per_tile * like.element_size())
        step = min(max(1, most), self.tiles[1])
        blocks = [
            (image, row, first, min(step, self.tiles[1] - first))
            for image in range(batch)
            for row in range(phase, self.tiles[0], spacing)
            for first in range(0, self.tiles[1], step)
        ]
        if blocks:
            run_blocks(blocks, work, lambda: TileScratch(like, step, self.side**2), like.device)

    def _pad_source(self, source: Tensor) -> Tensor:
        """Give every tile a whole patch, channels side by side."""
        rows, cols = (count * self.cells + self.k - 1 for count in self.tiles)
        extra = (0, 0, 0, cols - source.shape[2], 0, rows - source.shape[1])
        return (F.pad(source, extra) if any(extra) else source).contiguous()

    def _pad_fine(self, fine: Tensor) -> Tensor:
        """Give every tile 16 pixels; (B, H, W, ...)."""
        rows, cols = (full - n for full, n in zip(self._fine, self.size, strict=True))
        if rows or cols:
            fine = F.pad(fine, (0, 0) * (fine.dim() - 3) + (0, cols, 0, rows))
        return fine.contiguous()

    def _fine_tiles(self, fine: Tensor, block: Block) -> Tensor:
        """The tiles of a block in a padded fine map: a view (T, 4, 4, ...)."""
        image, row, first, count = block
        rows = slice(row * TILE, (row + 1) * TILE)
        part = fine[image, rows, first * TILE : (first + count) * TILE]
        return part.unflatten(1, (count, TILE)).transpose(0, 1)

    def _own(self, fine: Tensor, block: Block, scratch: TileScratch) -> Tensor:
        """The pixels of each tile, (T, 16, C)."""
        own = scratch.take("own", block[3], PIXELS, fine.shape[3])
        own.view(-1, TILE, TILE, fine.shape[3]).copy_(self._fine_tiles(fine, block))
        return own

    def _weight_tiles(self, weights: Tensor, block: Block) -> Tensor:
        """Weights of each tile, with rows and columns of pixels split: (T, c, s, c, s, k, k)."""
        split = (self.cells, self.ratio)
        tiles = self._fine_tiles(weights, block)  # (T, 4, 4, k, k)
        return tiles.unflatten(2, split).unflatten(1, split)

    def _patches(self, source: Tensor, block: Block, scratch: TileScratch) -> Tensor:
        """The patch of cells of each tile, (T, n n, C)."""
        image, row, first, count = block
        _, height, width, channels = source.shape
        begin = ((image * height + row * self.cells) * width + first * self.cells) * channels
        shape = (count, self.side, self.side, channels)
        strides = (self.cells * channels, width * channels, channels, 1)
        view = source.as_strided(shape, strides, source.storage_offset() + begin)
        patches = scratch.take("patches", *shape)
        return patches.copy_(view).view(count, self.side**2, channels)

    def _spread(self, weights: Tensor, block: Block, scratch: TileScratch) -> Tensor:
        """Each pixel's weights at the places of its cells, zero elsewhere: (T, 16, n n)."""
        matrix = scratch.matrix(block[3])
        self._places(matrix).copy_(self._weight_tiles(weights, block))
        return matrix

    def _places(self, matrix: Tensor) -> Tensor:
        """Where a pixel's k x k numbers are in (T, 16, n n): a view (T, c, s, c, s, k, k)."""
        pixel, side, s = self.side**2, self.side, self.ratio
        row, col = TILE * pixel, pixel  # from a pixel to the next, in a tile
        shape = (len(matrix), self.cells, s, self.cells, s, self.k, self.k)
        strides = (PIXELS * pixel, s * row + side, row, s * col + 1, col, side, 1)
        return matrix.as_strided(shape, strides, matrix.storage_offset())
