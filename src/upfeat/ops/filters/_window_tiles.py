"""Products of every pixel with its own window, as small matrix products.

Pixel (y, x) of a fine grid has k x k numbers and sees the k x k cells of a source whose first one
is cell (y // s, x // s); s = 1 is an ordinary sliding window, s > 1 a coarser source. Neither
windows nor products are ever laid out for all pixels: the fine grid is cut into tiles of 4 x 4
pixels, whose windows together are one patch of n x n cells with n = 4 / s + k - 1. The numbers of
the 16 pixels, written into a zero matrix (16, n * n) at the places of their cells (a strided view
finds them), turn the work of a tile into one matrix product with the patch, (n * n, C).

Legend: B batch, C channels, H W fine grid, T tiles of a tile row, n side of a patch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.runtime import Scratch, new_large, run_blocks, worker_count

TILE = 4
PIXELS = TILE * TILE


Block = tuple[int, int, int, int]  # image, tile row, first tile, number of tiles


class Buffers(Scratch):
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

        def work(block: Block, scratch: Buffers) -> None:
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

        def work(block: Block, scratch: Buffers) -> None:
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

        def work(block: Block, scratch: Buffers) -> None:
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
        apart = -(-self.side // self.cells)
        for phase in range(apart):
            self._run(pixels, len(pixels), work, phase, apart)
        return out[:, : like.shape[1], : like.shape[2]]

    # -- blocks ------------------------------------------------------------------------------------

    @property
    def _fine(self) -> tuple[int, int]:
        return self.tiles[0] * TILE, self.tiles[1] * TILE

    def _run(
        self,
        like: Tensor,
        batch: int,
        work: Callable[[Block, Buffers], None],
        phase: int = 0,
        apart: int = 1,
    ) -> None:
        """Do all blocks, or those of every ``apart``-th tile row from ``phase`` on."""
        channels = like.shape[3]
        per_tile = self.side**2 * (channels + PIXELS) + 2 * PIXELS * channels
        workers = worker_count(like.device)
        most = self.max_bytes // (workers * per_tile * like.element_size())
        step = min(max(1, most), self.tiles[1])
        blocks = [
            (image, row, first, min(step, self.tiles[1] - first))
            for image in range(batch)
            for row in range(phase, self.tiles[0], apart)
            for first in range(0, self.tiles[1], step)
        ]
        if blocks:
            run_blocks(blocks, work, lambda: Buffers(like, step, self.side**2), like.device)

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

    def _own(self, fine: Tensor, block: Block, scratch: Buffers) -> Tensor:
        """The pixels of each tile, (T, 16, C)."""
        own = scratch.take("own", block[3], PIXELS, fine.shape[3])
        own.view(-1, TILE, TILE, fine.shape[3]).copy_(self._fine_tiles(fine, block))
        return own

    def _weight_tiles(self, weights: Tensor, block: Block) -> Tensor:
        """Weights of each tile, with rows and columns of pixels split: (T, c, s, c, s, k, k)."""
        split = (self.cells, self.ratio)
        tiles = self._fine_tiles(weights, block)  # (T, 4, 4, k, k)
        return tiles.unflatten(2, split).unflatten(1, split)

    def _patches(self, source: Tensor, block: Block, scratch: Buffers) -> Tensor:
        """The patch of cells of each tile, (T, n n, C)."""
        image, row, first, count = block
        _, height, width, channels = source.shape
        begin = ((image * height + row * self.cells) * width + first * self.cells) * channels
        shape = (count, self.side, self.side, channels)
        strides = (self.cells * channels, width * channels, channels, 1)
        view = source.as_strided(shape, strides, source.storage_offset() + begin)
        patches = scratch.take("patches", *shape)
        return patches.copy_(view).view(count, self.side**2, channels)

    def _spread(self, weights: Tensor, block: Block, scratch: Buffers) -> Tensor:
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
