"""Local attender: each fine pixel mixes a fixed set of cells around its own coarse cell.

The last step of UPLiFT's iterations, and with a size ratio of one a filter with its own normalised
kernel at every pixel (joint bilateral filtering). The logits are given, one for each pixel and tap;
nothing of size pixels x taps x channels is ever held.

Legend: B batch, H W fine grid, h w coarse grid with H = sy h and W = sx w, n taps, C channels, r
reach of the taps, P fine pixels of a tile, U coarse cells that a tile sees, T tiles side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from upfeat.errors import check_bytes
from upfeat.ops import reference
from upfeat.ops.images import Padding, border_index
from upfeat.ops.runtime import dispatch, new_large, operator_bytes, run_blocks, sum_parts

Offset = tuple[int, int]

# A gathered value costs about as much as this many multiply-adds (measured).
_GATHER_COST = 40
_LARGEST_TILE = 16
_PADDINGS = get_args(Padding)


@dataclass(frozen=True)
class Taps:
    """Who sees what: steps (row, column) from a pixel's cell, and what lies beyond the border."""

    offsets: tuple[Offset, ...]
    padding: Padding

    @property
    def reach(self) -> int:
        """The largest step."""
        return max(max(abs(row), abs(col)) for row, col in self.offsets)

    def corners(self) -> list[Offset]:
        """The steps counted from the first cell that is within reach."""
        return [(row + self.reach, col + self.reach) for row, col in self.offsets]


def local_attender(
    logits: Tensor,
    value: Tensor,
    offsets: Sequence[Offset],
    *,
    padding: Padding = "replicate",
    max_bytes: int | None = None,
) -> Tensor:
    """Mix, for every fine pixel, the coarse cells around its own with the softmax of its logits.

    ``out[b, :, y, x] = sum_t softmax(logits[b, :, y, x])_t value[b, :, y // sy + dy_t,
    x // sx + dx_t]`` (UPLiFT's local attender).

    Args:
        logits: (B, n, H, W); H and W are multiples of h and w.
        value: (B, C, h, w), any strides (channels_last is fastest).
        offsets: n steps (row, column) in cells of ``value``.
        padding: cells beyond the border: ``"replicate"`` or ``"reflect"``.
        max_bytes: bound on the temporaries of a thread.

    Returns:
        (B, C, H, W) in the type of ``value``, in channels_last strides. The softmax is computed in
        float32 at least.

    Raises:
        ValueError: shapes, types or devices do not fit.

    Example:
        >>> import torch
        >>> cross = [(-1, 0), (0, -1), (0, 0), (0, 1), (1, 0)]
        >>> out = local_attender(torch.randn(1, 5, 8, 6), torch.ones(1, 3, 4, 3), cross)
        >>> out.shape, torch.allclose(out, torch.ones(()))
        (torch.Size([1, 3, 8, 6]), True)
    """
    taps = _check(logits, value, offsets, padding)
    if dispatch.wants_reference():
        return reference.local_attender(logits, value, offsets, padding=padding)
    max_bytes = operator_bytes() if max_bytes is None else check_bytes(max_bytes)
    return _LocalAttender.apply(logits, value, taps, max_bytes)


class _LocalAttender(torch.autograd.Function):
    """Saves the inputs only (and a kernel's log-sum-exp); backward computes the weights again."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, taps: Taps, max_bytes: int) -> Tensor:
        ctx.taps, ctx.max_bytes = taps, max_bytes
        ctx.kernel = dispatch.triton_kernel("local_attender") if value.is_cuda else None
        residuals: tuple[Tensor, ...] = ()
        with dispatch.without_autocast(value):
            if ctx.kernel is not None:
                try:
                    out, residuals = ctx.kernel.forward(logits, value, taps=taps)
                except NotImplementedError:
                    ctx.kernel = None
            if ctx.kernel is None:
                out = _forward(logits, value, taps, max_bytes)
        ctx.save_for_backward(logits, value, *residuals)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        logits, value, *residuals = ctx.saved_tensors
        grads: tuple[Tensor | None, ...]
        with torch.no_grad(), dispatch.without_autocast(value):
            if ctx.kernel is not None:
                grads = ctx.kernel.backward(
                    grad_output, logits, value, tuple(residuals), taps=ctx.taps
                )
            else:
                grads = _backward(grad_output, logits, value, ctx.taps, ctx.max_bytes)
        if torch.is_grad_enabled():  # create_graph=True: a second derivative may be asked for
            grads = tuple(dispatch._Once.apply(g, grad_output, logits, value) for g in grads)
        return *grads, None, None


# -- tiles -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Run:
    """``count`` tiles of ``rows`` x ``cols`` cells, side by side from cell (top, left) of an image.

    A tile sees a rectangle of cells; its weights are a dense matrix over the rectangle with zeros
    where a pixel has no tap, so that mixing is one matrix product.
    """

    image: int
    top: int
    left: int
    rows: int
    cols: int
    count: int


class _Plan:
    """The work of one call: padded values and the cutting into runs."""

    def __init__(self, logits: Tensor, value: Tensor, taps: Taps, max_bytes: int) -> None:
        self.taps = taps
        self.dtype = dispatch.compute_dtype(logits, value)
        self.batch, self.channels, self.height, self.width = value.shape
        self.step = (logits.shape[2] // self.height, logits.shape[3] // self.width)
        self.index = [
            border_index(n, taps.reach, taps.padding).to(value.device) for n in value.shape[2:]
        ]
        self.line = len(self.index[1])  # w + 2r
        self.side = self._tile_side()
        self.max_bytes = max_bytes

    def _tile_side(self) -> int:
        """The tile that balances zeros in the product against gathering cells twice."""
        pixels = self.step[0] * self.step[1]

        def cost(side: int) -> float:
            return (side + 2 * self.taps.reach) ** 2 * (1 + _GATHER_COST / (side**2 * pixels))

        return min(range(1, _LARGEST_TILE + 1), key=cost)

    def padded(self, value: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, (h + 2r) (w + 2r), C), contiguous."""
        rows = value.permute(0, 2, 3, 1).index_select(1, self.index[0])
        return rows.index_select(2, self.index[1]).to(self.dtype).contiguous().flatten(1, 2)

    def unpadded(self, grad: Tensor, dtype: torch.dtype) -> Tensor:
        """The transpose of `padded`."""
        grad = grad.unflatten(1, (len(self.index[0]), self.line))
        rows = grad.new_zeros(self.batch, self.height, self.line, self.channels)
        rows.index_add_(1, self.index[0], grad)
        cells = grad.new_zeros(self.batch, self.height, self.width, self.channels)
        cells.index_add_(2, self.index[1], rows)
        return cells.permute(0, 3, 1, 2).to(dtype)

    def runs(self) -> Iterator[_Run]:
        """Cut every image into runs whose buffers fit into the budget."""
        for image in range(self.batch):
            for top in range(0, self.height, self.side):
                rows = min(self.side, self.height - top)
                pixels = rows * self.side * self.step[0] * self.step[1]
                seen = (rows + 2 * self.taps.reach) * (self.side + 2 * self.taps.reach)
                tile = self.dtype.itemsize * (pixels + seen) * (self.channels + seen)
                fit = max(1, self.max_bytes // tile)
                whole = self.width // self.side
                for first in range(0, whole, fit):
                    count = min(fit, whole - first)
                    yield _Run(image, top, first * self.side, rows, self.side, count)
                if rest := self.width % self.side:
                    yield _Run(image, top, whole * self.side, rows, rest, 1)

    def places(self, run: _Run, device: torch.device) -> Tensor:
        """Where the cells of each tile lie in the padded values: (T, U)."""
        reach = 2 * self.taps.reach
        row = torch.arange(run.top, run.top + run.rows + reach, device=device)
        col = torch.arange(run.left, run.left + run.cols + reach, device=device)
        seen = (row[:, None] * self.line + col).flatten()  # (U,)
        return seen + run.cols * torch.arange(run.count, device=device)[:, None]

    def columns(self, run: _Run, device: torch.device) -> Tensor:
        """Which of the cells the taps of each pixel are: (P, n), the same for every tile."""
        wide = run.cols + 2 * self.taps.reach
        row = torch.arange(run.rows, device=device).repeat_interleave(self.step[0])
        col = torch.arange(run.cols, device=device).repeat_interleave(self.step[1])
        own = (row[:, None] * wide + col).flatten()  # (P,)
        steps = torch.tensor([r * wide + c for r, c in self.taps.corners()], device=device)
        return own[:, None] + steps

    def fine(self, run: _Run) -> tuple[slice, slice]:
        """Rows and columns of the run on the fine grid."""
        up, across = self.step
        right = run.left + run.cols * run.count
        return slice(run.top * up, (run.top + run.rows) * up), slice(
            run.left * across, right * across
        )

    def tiled(self, part: Tensor, run: _Run) -> Tensor:
        """A run's part of a fine map (x, R, T * c, ...) by tiles: (T, P, x)."""
        part = part.unflatten(2, (run.count, -1))  # (x, R, T, c)
        return part.permute(2, 1, 3, 0).flatten(1, 2)

    def weights(self, logits: Tensor, run: _Run) -> tuple[Tensor, Tensor]:
        """Softmax of the taps (T, P, n), and the columns they belong to, of the same shape."""
        rows, cols = self.fine(run)
        part = self.tiled(logits[run.image, :, rows, cols], run).to(self.dtype)
        return part.softmax(-1), self.columns(run, logits.device).expand(run.count, -1, -1)

    def dense(self, weights: Tensor, columns: Tensor, cells: int) -> Tensor:
        """Weights over all cells that a tile sees: (T, P, U)."""
        return weights.new_zeros(*weights.shape[:2], cells).scatter_add_(2, columns, weights)


def _forward(logits: Tensor, value: Tensor, taps: Taps, max_bytes: int) -> Tensor:
    plan = _Plan(logits, value, taps, max_bytes)
    padded = plan.padded(value)
    out = new_large(value, value.shape[0], *logits.shape[2:], value.shape[1])  # (B, H, W, C)

    def work(run: _Run, _: None) -> None:
        places = plan.places(run, value.device)
        cells = padded[run.image].index_select(0, places.flatten()).view(*places.shape, -1)
        weights, columns = plan.weights(logits, run)
        mixed = plan.dense(weights, columns, places.shape[1]) @ cells  # (T, P, C)
        rows, cols = plan.fine(run)
        # (R, T * c, C) seen as (T, R, c, C), the order of the product
        target = out[run.image, rows, cols].unflatten(1, (run.count, -1)).transpose(0, 1)
        target.copy_(mixed.view(target.shape))

    run_blocks(list(plan.runs()), work, lambda: None, value.device)
    return out.permute(0, 3, 1, 2)


def _backward(
    grad_output: Tensor, logits: Tensor, value: Tensor, taps: Taps, max_bytes: int
) -> tuple[Tensor, Tensor]:
    plan = _Plan(logits, value, taps, max_bytes)
    padded = plan.padded(value)
    grad_logits = torch.empty_like(logits)

    def work(run: _Run, grad_padded: Tensor) -> None:
        places = plan.places(run, value.device)
        cells = padded[run.image].index_select(0, places.flatten()).view(*places.shape, -1)
        weights, columns = plan.weights(logits, run)
        rows, cols = plan.fine(run)
        grad = plan.tiled(grad_output[run.image, :, rows, cols], run).to(plan.dtype)  # (T, P, C)
        dense = plan.dense(weights, columns, places.shape[1])
        # Gradients of the weights (T, P, n), then of the logits.
        of_weight = (grad @ cells.transpose(1, 2)).gather(2, columns)
        mean = (weights * of_weight).sum(-1, keepdim=True)
        of_logit = weights * (of_weight - mean)
        target = grad_logits[run.image, :, rows, cols].unflatten(2, (run.count, -1))
        shape = (run.count, target.shape[1], target.shape[3], -1)
        # (T, R * c, n) -> (n, R, T, c)
        target.copy_(of_logit.view(shape).permute(3, 1, 0, 2))
        of_cell = dense.transpose(1, 2) @ grad  # (T, U, C)
        grad_padded[run.image].index_add_(0, places.flatten(), of_cell.flatten(0, 1))

    parts = run_blocks(list(plan.runs()), work, lambda: torch.zeros_like(padded), value.device)
    return grad_logits, plan.unpadded(sum_parts(parts), value.dtype)


def _check(logits: Tensor, value: Tensor, offsets: Sequence[Offset], padding: Padding) -> Taps:
    if logits.dim() != 4 or value.dim() != 4:
        raise ValueError(
            "logits (B, n, H, W) and value (B, C, h, w) must have four axes, got "
            f"{tuple(logits.shape)} and {tuple(value.shape)}."
        )
    dispatch.check_same_place(logits, logits, value)
    if padding not in _PADDINGS:
        raise ValueError(f"padding must be 'replicate' or 'reflect', got {padding!r}.")
    if len(offsets) == 0 or len(offsets) != logits.shape[1]:
        raise ValueError(
            f"logits have {logits.shape[1]} taps, offsets name {len(offsets)} (at least 1 wanted); "
            "they must agree."
        )
    for axis, name in ((2, "rows"), (3, "columns")):
        fine, coarse = logits.shape[axis], value.shape[axis]
        if fine == 0 or coarse == 0 or fine % coarse:
            raise ValueError(
                f"the fine grid has {fine} {name}, the coarse grid {coarse}; the former must be a "
                "positive multiple of the latter."
            )
    return Taps(tuple((int(row), int(col)) for row, col in offsets), padding)
