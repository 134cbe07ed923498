"""A stack of pointwise residual blocks over a full-resolution image, in bounded memory.

Every step of the stack but the statistics of its group norms concerns one pixel alone. So the image
is swept in bands of rows, once for each norm: a sweep carries each band from where the last sweep
left it to the next norm and adds up that norm's statistics. How far a sweep must go back depends on
the full-resolution maps it may hold:

* two maps: residual stream and branch; a sweep is one convolution (the fastest);
* one map: the residual stream, updated in place; the first convolution of a block is done twice;
* none: every sweep starts from the stack's input. The work grows with the square of the depth, the
  memory is that of one band.

Legend: P = H * W pixels in row-major order, d channels, p pixels of a band. For inference only:
nothing here is differentiable; see `pointwise_residual` for that.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from upfeat.ops._dispatch import compute_dtype
from upfeat.ops._workers import run_blocks, sum_parts
from upfeat.ops.group_moments import Statistics, band_pixels, gather_moments
from upfeat.ops.pointwise_residual import BlockWeights, normed_silu

Rows = tuple[int, int]
OpenBand = Callable[[Rows, Tensor], None]


class PointwiseStack:
    """Evaluates residual blocks on bands of image rows.

    Args:
        open_band: writes the stack's input for image rows ``(start, stop)`` into a tensor (p, d);
            it may read the first of ``maps`` at those rows.
        blocks: weights of the blocks, d -> d, without shortcut; the convolutions of
            the maps' type.
        groups: of the group norms.
        eps: of the group norms.
        size: (H, W) of the image.
        maps: none, one or two tensors (P, d) that the stack may overwrite and keep.
        close_band: applied in place to the stack's output, given the band and its rows.
        finish: bring the maps to the output; else they wait before the last convolution, for
            `pool_stack`, which runs it after the pooling.

    Example:
        >>> import torch
        >>> from upfeat.ops.pointwise_residual import pointwise_residual_reference
        >>> one, zero, w = torch.ones(8), torch.zeros(8), torch.randn(2, 8, 8)
        >>> block = BlockWeights(one, zero, w[0], one, zero, w[1])
        >>> x = torch.randn(1, 8, 6, 5)
        >>> pixels = x[0].permute(1, 2, 0)  # (H, W, d)
        >>> def open_band(rows, out):
        ...     out.copy_(pixels[slice(*rows)].flatten(0, 1))
        >>> stack = PointwiseStack(open_band, [block], 4, 1e-5, (6, 5))
        >>> expected = pointwise_residual_reference(x, block, 4, 1e-5)[0, :, 2:4]  # (d, 2, W)
        >>> torch.allclose(stack.rows(2, 4).T.unflatten(1, (2, 5)), expected, atol=1e-5)
        True
    """

    def __init__(
        self,
        open_band: OpenBand,
        blocks: Sequence[BlockWeights],
        groups: int,
        eps: float,
        size: tuple[int, int],
        maps: Sequence[Tensor] = (),
        close_band: Callable[[Tensor, Rows], None] | None = None,
        finish: bool = True,
    ) -> None:
        self.open_band = open_band
        self.close_band = close_band
        self.size = size
        self.maps = list(maps[:2])
        self.like = blocks[0].conv1
        self.step_rows = max(1, band_pixels(self.like) // size[1])
        self._own = threading.local()
        # Step s < 2 * len(blocks) is: norm, SiLU, convolution; even steps start a block's branch,
        # odd ones add it to the stream. Position s is the state before step s.
        self.norms = [n for b in blocks for n in ((b.norm1_weight, b.norm1_bias), b[3:5])]
        self.convs = [conv.T for b in blocks for conv in (b.conv1, b.conv2)]
        self.steps: list[tuple[Tensor, Tensor]] = []  # folded norms (scale, shift) that are known
        self.held: int | None = None  # position of the maps
        self._gather(groups, eps, finish)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return the output of image rows ``start:stop``, (p, d), a view where possible."""
        width = self.size[1]
        if self.held == len(self.convs):
            return self.maps[0][start * width : stop * width]
        out = self.like.new_empty((stop - start) * width, self.like.shape[1])
        for first in range(start, stop, self.step_rows):
            last = min(first + self.step_rows, stop)
            part = out[(first - start) * width : (last - start) * width]
            self._carry((first, last), len(self.convs), part)
        return out

    def band(self, rows: Rows) -> Tensor:
        """Return the output of one of `row_bands`, (p, d), valid until the thread's next."""
        return self._carry(rows, len(self.convs), None)

    def split_band(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return stream (p, d) and hidden band (p, d) of one of `row_bands`.

        With `last`, the output is stream + hidden @ last, where no ``close_band`` follows. Valid
        until the thread's next band.
        """
        position = len(self.convs) - 1
        if self.held == len(self.convs) or self.close_band is not None:
            raise RuntimeError("the last convolution is done; make the stack with finish=False")
        branch = self._carry(rows, position, None)
        stream, _, hidden = self._buffers(len(branch))
        if self.maps:
            stream = self.maps[0][rows[0] * self.size[1] : rows[1] * self.size[1]]
        return stream, normed_silu(branch, *self.steps[position], out=hidden)

    @property
    def last(self) -> Tensor:
        """The last convolution, (d, d)."""
        return self.convs[-1]

    def row_bands(self) -> list[Rows]:
        """Return (start, stop) of the bands in which the image is swept."""
        starts = range(0, self.size[0], self.step_rows)
        return [(start, min(start + self.step_rows, self.size[0])) for start in starts]

    def _gather(self, groups: int, eps: float, finish: bool) -> None:
        """Sweep the image once for each norm; with a map, sweep once more to the output."""
        bands = self.row_bands()
        for position, (weight, bias) in enumerate(self.norms):
            carry = partial(self._carry, position=position, out=None)
            statistics = gather_moments(bands, carry, groups, eps, self.like.device)
            self._hold(position)
            scale, shift = statistics.affine(weight, bias)
            dtype = self.like.dtype
            self.steps.append((scale.to(dtype), shift.to(dtype)))
        if self.maps and finish:
            run_blocks(bands, lambda rows, _: self.band(rows), lambda: None, self.like.device)
            self._hold(len(self.convs))

    def _hold(self, position: int) -> None:
        """Note that the maps are at ``position``, if there are enough of them to say so."""
        if len(self.maps) > position % 2:
            self.held = position

    def _carry(self, rows: Rows, position: int, out: Tensor | None) -> Tensor:
        """Bring a band to ``position``; returns stream or branch there, (p, d)."""
        pixels = slice(rows[0] * self.size[1], rows[1] * self.size[1])
        if self.held == len(self.convs):
            return self.maps[0][pixels]
        own_stream, branch, hidden = self._buffers(pixels.stop - pixels.start)
        stream = own_stream if out is None else out
        if self.maps:
            stream = self.maps[0][pixels]
        if len(self.maps) > 1:
            branch = self.maps[1][pixels]
        if self.held is None:
            self.open_band(rows, stream)
        for step in range(self.held or 0, position):
            conv = self.convs[step]
            if step % 2 == 0:
                torch.mm(normed_silu(stream, *self.steps[step], out=hidden), conv, out=branch)
            else:
                stream.addmm_(normed_silu(branch, *self.steps[step], out=hidden), conv)
        if position == len(self.convs) and self.close_band is not None:
            self.close_band(stream, rows)
        return branch if position % 2 else stream

    def _buffers(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return stream, branch and hidden band (p, d) of this thread."""
        if not hasattr(self._own, "bands"):
            pixels = self.step_rows * self.size[1]
            self._own.bands = self.like.new_empty(3, pixels, self.like.shape[1])
        stream, branch, hidden = self._own.bands[:, :count]
        return stream, branch, hidden


def pooling_matrix(length: int, cells: int, like: Tensor) -> Tensor:
    """Return adaptive average pooling of one axis as a matrix (cells, length), float32 at least.

    Cell i averages positions floor(i * length / cells) to ceil((i + 1) * length / cells) - 1.

    Example:
        >>> import torch
        >>> pooling_matrix(3, 2, torch.zeros(())).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    cell = torch.arange(cells, device=like.device)[:, None]
    position = torch.arange(length, device=like.device)
    first = cell * length // cells
    stop = -(-(cell + 1) * length // cells)
    inside = (position >= first) & (position < stop)  # (cells, length)
    return inside.to(compute_dtype(like)) / (stop - first)


def pool_columns(rows: Tensor, cells: int) -> Tensor:
    """Adaptive average pooling of the middle axis: (rows, W, d) -> (rows, cells, d)."""
    width = rows.shape[1]
    if width == cells:
        return rows
    if width % cells == 0:  # whole ratios avoid the framework's slower general operator
        return rows.unflatten(1, (cells, -1)).mean(2)
    image = rows.permute(2, 0, 1)[None]  # (1, d, rows, W), channels_last
    pooled = torch.nn.functional.adaptive_avg_pool2d(image, (rows.shape[0], cells))
    return pooled[0].permute(1, 2, 0)


def pool_stack(stack: PointwiseStack, grid_size: tuple[int, int]) -> Tensor:
    """Adaptive average pooling of a stack's output to (1, d, h, w), band by band.

    Averaging and a convolution of single pixels may change places: where the last one is not done
    yet, it runs on the pooled grid.
    """
    height, width = stack.size
    like = stack.like
    split = stack.held != len(stack.convs) and stack.close_band is None
    matrix = pooling_matrix(height, grid_size[0], like)  # (h, H)

    def empty() -> Tensor:
        shape = (1 + split, grid_size[0], grid_size[1] * like.shape[1])
        return like.new_zeros(shape, dtype=matrix.dtype)

    def add(rows: Rows, total: Tensor) -> None:
        parts = stack.split_band(rows) if split else (stack.band(rows),)
        for part, sums in zip(parts, total, strict=True):
            pooled = pool_columns(part.unflatten(0, (-1, width)), grid_size[1])  # (rows, w, d)
            sums.addmm_(matrix[:, slice(*rows)], pooled.flatten(1).to(matrix.dtype))

    sums = sum_parts(run_blocks(stack.row_bands(), add, empty, like.device))
    out, *hidden = sums.unflatten(2, (grid_size[1], -1))  # (h, w, d) each
    if split:
        out = out + hidden[0] @ stack.last.to(matrix.dtype)
    return out.permute(2, 0, 1)[None].to(like.dtype)


class PooledRows:
    """Rows of a stack's output after adaptive average pooling to ``output_size``.

    Only the source rows of the asked rows are touched; the pooled map never exists as a whole.

    Args:
        stack: at the image's resolution.
        output_size: (H', W'), smaller or larger than the image.
    """

    def __init__(self, stack: PointwiseStack, output_size: tuple[int, int]) -> None:
        self.stack = stack
        self.output_size = output_size
        self.identity = stack.size == output_size
        if not self.identity:
            self.matrix = pooling_matrix(stack.size[0], output_size[0], stack.like)  # (H', H)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return output rows ``start:stop`` as (rows, W', d); a view where nothing is pooled."""
        height, width = self.stack.size
        if self.identity:
            return self.stack.rows(start, stop).unflatten(0, (-1, width))
        cells = self.output_size[0]
        first, last = start * height // cells, -(-stop * height // cells)
        source = self.stack.rows(first, last).unflatten(0, (-1, width))  # (source rows, W, d)
        pooled = pool_columns(source, self.output_size[1])  # (source rows, W', d)
        matrix = self.matrix[start:stop, first:last]
        out = matrix @ pooled.flatten(1).to(matrix.dtype)  # (rows, W' * d)
        return out.to(source.dtype).unflatten(1, (self.output_size[1], -1))

    def statistics(self, groups: int, eps: float) -> Statistics:
        """Return group norm statistics over the whole pooled map."""
        height, width = self.output_size
        step = max(1, band_pixels(self.stack.like) // width)
        bands = [(start, min(start + step, height)) for start in range(0, height, step)]

        def band(rows: Rows) -> Tensor:
            return self.rows(*rows).flatten(0, 1)

        return gather_moments(bands, band, groups, eps, self.stack.like.device)
