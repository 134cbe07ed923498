"""Reading rows of a recorded network, and the passes over the image that must come before.

A group norm needs statistics of its whole input before one of its rows can be read. So the network
is swept strip by strip: each sweep computes one map, gathers the statistics of the norms behind it,
and keeps the map while the budget allows. What is not kept is computed again from what is. A map
that nothing else needs gives its memory to the one computed from it.
"""

import threading
import weakref
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from upfeat.ops.runtime import (
    Buffers,
    block_bytes,
    compute_dtype,
    new_large,
    run_blocks,
    sum_parts,
    without_autocast,
)
from upfeat.ops.stream.convolution import Kernel
from upfeat.ops.stream.moments import GroupMoments
from upfeat.ops.stream.nodes import (
    ADD,
    Affine,
    Concatenation,
    Convolution,
    Elementwise,
    GroupNorm,
    Node,
    Pad,
    Pool,
    Rows,
    pool_columns,
)

# Types in which a sum of products is rounded as little as the sum of two maps.
EXACT = (torch.float32, torch.float64)
HALO_ROWS = 4  # least rows of a strip for each row that it reads beyond itself


class _ThreadState(threading.local):
    """What each thread has of its own: buffers for strips, and blocks of rows read ahead."""

    def __init__(self, everybodys: list[Buffers]) -> None:
        self.buffers, self.blocks = Buffers(), Buffers()
        self.ahead: dict[Node, tuple[Rows, Tensor]] = {}
        everybodys.append(self.buffers)


class Graph:
    """What the maps of one recorded network share: device, budget, buffers.

    Args:
        like: gives the device.
        max_bytes: for whole maps that are kept, beside the input.
    """

    def __init__(self, like: Tensor, max_bytes: int) -> None:
        self.like, self.max_bytes = like.new_empty(0), max_bytes
        self.kept: weakref.WeakSet[Node] = weakref.WeakSet()
        self._spare: list[Tensor] = []  # memory of maps that are needed no more
        self._buffers: list[Buffers] = []  # of all threads
        self._state = _ThreadState(self._buffers)
        self._sweeping = threading.RLock()

    @property
    def buffers(self) -> Buffers:
        """The buffers of the calling thread."""
        return self._state.buffers

    # -- reading ---------------------------------------------------------------------------------

    def block_rows(self, node: Node) -> int:
        """Rows of a map that should be computed at once, since a strip brings its border along.

        0 where the map is kept or has no border.
        """
        self.prepare(node)
        beyond = any(one.reach for one in (node, *_unkept(node)))
        return self.strip_rows(node) if node.map is None and beyond else 0

    def start_block(self, node: Node, rows: Rows) -> None:
        """Compute rows of a map that the calling thread reads next, piece by piece."""
        shape = (rows[1] - rows[0], node.size[1], node.channels)
        out = self._state.blocks.take(self.like, node.dtype, *shape)
        self._state.ahead[node] = rows, self.read(node, rows, out)

    def stop_block(self, node: Node) -> None:
        """Give the memory of the rows back."""
        rows_and_block = self._state.ahead.pop(node, None)
        if rows_and_block is not None:
            self._state.blocks.give(rows_and_block[1])

    def read(self, node: Node, rows: Rows, out: Tensor | None = None) -> Tensor:
        """Return rows (R, W, C) of a map, written into ``out`` where that is given."""
        self.prepare(node)
        if node.map is not None:
            strip = node.map[rows[0] : rows[1]]
            return strip if out is None else out.copy_(strip)
        if out is None:
            (first, last), block = self._state.ahead.get(node, ((0, 0), self.like))
            if first <= rows[0] and rows[1] <= last:
                return block[rows[0] - first : rows[1] - first]
            shape = (rows[1] - rows[0], node.size[1], node.channels)
            out = new_large(self.like, *shape, dtype=node.dtype)
        for start, stop in strips(rows, self.strip_rows(node)):
            self._fill(node, (start, stop), out[start - rows[0] : stop - rows[0]])
        return out

    def whole(self, node: Node) -> Tensor:
        """Return the map (H, W, C), computed in parallel on a CPU."""
        self.prepare(node)
        if node.map is not None:
            return node.map
        if isinstance(node, Pool) and node.size[0] < node.parents[0].size[0]:
            return self._pooled(node)
        out = new_large(self.like, *node.size, node.channels, dtype=node.dtype)

        def fill(rows: Rows, _: None) -> None:
            self._fill(node, rows, out[rows[0] : rows[1]])

        blocks = list(strips((0, node.size[0]), self.strip_rows(node)))
        run_blocks(blocks, fill, lambda: None, self.like.device)
        return out

    def strip_rows(self, node: Node) -> int:
        """Rows of a strip of ``node`` whose widest ancestor stays in the cache."""
        budget = block_bytes(self.like.device)
        rows, halo = 1, HALO_ROWS * sum(one.reach for one in (node, *_unkept(node)))
        while rows < node.size[0] and (rows < halo or _strip_bytes(node, 2 * rows) <= budget):
            rows *= 2
        return min(rows, node.size[0])

    def _fill(self, node: Node, rows: Rows, out: Tensor, safe: bool = True) -> None:
        """Compute rows into ``out``; ``safe`` if ``out`` is no memory that they are made of."""
        buffers = self.buffers
        with without_autocast(self.like):
            target = out if safe or node.elementwise else None
            strip = self._strip(node, rows, buffers, {}, target, safe)
        if strip.data_ptr() != out.data_ptr():
            out.copy_(strip)
        buffers.reclaim()

    def _strip(
        self,
        node: Node,
        rows: Rows,
        buffers: Buffers,
        known: dict[tuple[Node, Rows], Tensor],
        out: Tensor | None = None,
        safe: bool = False,
    ) -> Tensor:
        """Compute rows, into ``out`` where that can be; ``safe``: nothing is made of its memory."""
        if node.map is not None:
            return node.map[rows[0] : rows[1]]
        if (node, rows) in known:
            return known[node, rows]
        term = _added_product(node)
        if term is not None:
            return self._accumulated(term, node, rows, buffers, known, out, safe)
        span = node.span(rows)
        ours = [_single(parent) for parent in node.parents]
        target = out
        inputs: list[Tensor] = []
        for parent, own in zip(node.parents, ours, strict=True):
            if isinstance(node, Pad) and _by_pixel(parent):  # computed within its border
                target = self._new_strip(node, rows, buffers) if target is None else target
                place = node.inside(target, rows)
                inputs.append(self._strip(parent, span, buffers, known, place, safe=True))
                continue
            # In place from the first operator on: an elementwise one works on its result's memory.
            below = safe and own and node.elementwise and not inputs and parent.dtype == node.dtype
            place = out if below and parent.channels == node.channels else None
            inputs.append(self._strip(parent, span, buffers, known, place, safe))
        if target is None and node.elementwise and ours[0] and inputs[0].dtype == node.dtype:
            target = inputs[0]
        if target is None:
            target = self._new_strip(node, rows, buffers)
        strip = node.compute(rows, inputs, target)
        for one, own in zip(inputs, ours, strict=True):
            if own and one.data_ptr() != strip.data_ptr():
                buffers.give(one)
        if node.readers > 1:
            known[node, rows] = strip
        return strip

    def _new_strip(self, node: Node, rows: Rows, buffers: Buffers) -> Tensor:
        shape = (rows[1] - rows[0], node.size[1], node.channels)
        return buffers.take(self.like, node.dtype, *shape)

    def _accumulated(
        self,
        term: Convolution,
        node: Node,
        rows: Rows,
        buffers: Buffers,
        known: dict[tuple[Node, Rows], Tensor],
        out: Tensor | None,
        safe: bool,
    ) -> Tensor:
        """Compute rows of ``x + product``, the product being added to the rows of x in place."""
        (x,) = (parent for parent in node.parents if parent is not term)
        hidden = self._strip(term.parents[0], rows, buffers, known)
        place = out if safe and _single(x) else None
        strip = self._strip(x, rows, buffers, known, place, safe)
        target = strip if out is None and _single(x) else out
        if target is None or target.data_ptr() == hidden.data_ptr():
            target = self._new_strip(node, rows, buffers)
        if strip.data_ptr() != target.data_ptr():
            target.copy_(strip)
        term.add_to(target, hidden)
        for one, parent in ((strip, x), (hidden, term.parents[0])):
            if _single(parent) and one.data_ptr() != target.data_ptr():
                buffers.give(one)
        if node.readers > 1:
            known[node, rows] = target
        return target

    def _pooled(self, node: Pool) -> Tensor:
        """A smaller average of a map, summed up in one pass over its strips.

        Averaging and a 1x1 convolution may change places: where the map is a sum whose last term
        is one, that convolution runs on the average.
        """
        parent, (height, width) = node.parents[0], node.size
        self.prepare(parent)
        terms, kernel = _summands(parent)
        weights = node.weights.to(self.like.device, compute_dtype(self.like))  # (h, H)

        def empty() -> Tensor:
            shape = (len(terms), height, width * node.channels)
            return torch.zeros(shape, dtype=weights.dtype, device=self.like.device)

        def add(rows: Rows, total: Tensor) -> None:
            known: dict[tuple[Node, Rows], Tensor] = {}
            with without_autocast(self.like):
                for term, sums in zip(terms, total, strict=True):
                    strip = self._strip(term, rows, self.buffers, known)
                    pooled = pool_columns(strip, width).flatten(1)  # (R, w C)
                    sums.addmm_(weights[:, rows[0] : rows[1]], pooled.to(weights.dtype))
            self.buffers.reclaim()

        blocks = list(strips((0, parent.size[0]), self.strip_rows(parent)))
        sums = sum_parts(run_blocks(blocks, add, empty, self.like.device))
        out = sums[0].view(height, width, node.channels)
        if kernel is not None:
            hidden = sums[1].view(height, width, node.channels)
            out = out + hidden @ kernel.weight.T.to(out.dtype)
            out = out if kernel.bias is None else out + kernel.bias.to(out.dtype)
        return out.to(node.dtype)

    # -- sweeping --------------------------------------------------------------------------------

    def prepare(self, node: Node) -> None:
        """Make all sweeps after which rows of ``node`` can be read."""
        if node.map is not None:
            return
        with self._sweeping:
            if self._prepare(node):
                self._spare.clear()
                for buffers in self._buffers:
                    buffers.free.clear()

    def _prepare(self, node: Node) -> bool:
        """Make the sweeps, and return whether there were any."""
        swept = False
        for ancestor in _unkept(node):
            norms = [c for c in ancestor.children if isinstance(c, GroupNorm) and not c.folded]
            if ancestor.map is None and (norms or self._pays(ancestor)):
                self._sweep(ancestor, norms)
                swept = True
        return swept

    def _pays(self, node: Node) -> bool:
        """Whether a map should be kept that could be computed again: it is read more than once.

        Joined maps are not, but their parts, which may take the memory of what they are made of.
        """
        if _reads(node) > 1:
            return not _joined(node) and self._room(node)
        overlap = any(not child.row_by_row for child in node.children)
        return overlap and not _by_pixel(node) and self._donor(node) is not None

    def _sweep(self, node: Node, norms: list[GroupNorm]) -> None:
        """Compute a map once: keep it if there is room, and gather what the norms need."""
        donor = self._donor(node)
        kept = donor.map if donor is not None else None
        if kept is None and self._room(node):
            kept = self._new_map(node)
        settings = {(norm.groups, norm.eps) for norm in norms}

        def run(rows: Rows, moments: list[GroupMoments]) -> None:
            if kept is None:
                strip = self._new_strip(node, rows, self.buffers)
                spare = strip
            else:
                strip, spare = kept[rows[0] : rows[1]], None
            self._fill(node, rows, strip, safe=donor is None)
            for one in moments:
                one.add(strip.flatten(0, 1))
            if spare is not None:
                self.buffers.give(spare)

        make = partial(_moments, settings)
        blocks = list(strips((0, node.size[0]), self.strip_rows(node)))
        parts = run_blocks(blocks, run, make, self.like.device)
        for norm in norms:
            total = GroupMoments(norm.groups, norm.eps)
            total.join(
                one
                for part in parts
                for one in part
                if (one.groups, one.eps) == (norm.groups, norm.eps)
            )
            norm.fold(total.statistics())
        if donor is not None:
            donor.map = None
            self.kept.discard(donor)
        if kept is not None:
            node.map, node.recycle = kept, self._spare.append
            self.kept.add(node)
        self._release()

    def _new_map(self, node: Node) -> Tensor:
        """Memory for a map: that of an earlier one if it fits, as fresh memory is slow to fill."""
        shape = torch.Size((*node.size, node.channels))
        for place, spare in enumerate(self._spare):
            if spare.shape == shape and spare.dtype == node.dtype:
                return self._spare.pop(place)
        self._spare.clear()
        return new_large(self.like, *shape, dtype=node.dtype)

    def _room(self, node: Node) -> bool:
        used = sum(other.size[0] * other.row_bytes for other in self.kept)
        return used + node.size[0] * node.row_bytes <= self.max_bytes

    def _release(self) -> None:
        for node in [*self.kept]:
            if not _needed(node, skip=None):
                node.release()
                self.kept.discard(node)

    def _donor(self, node: Node) -> Node | None:
        """A kept map of the same shape that only ``node`` still needs, pixel by pixel."""
        shape = (node.size, node.channels, node.dtype)
        for other in _pointwise_ancestors(node):
            same = (other.size, other.channels, other.dtype) == shape
            if same and other in self.kept and not _needed(other, skip=node):
                return other
        return None


def strips(rows: Rows, step: int) -> Iterator[Rows]:
    """Cut rows into strips of about equal height, at most ``step``."""
    count = rows[1] - rows[0]
    step = -(-count // -(-count // step))
    for start in range(rows[0], rows[1], step):
        yield start, min(start + step, rows[1])


def _moments(settings: set[tuple[int, float]]) -> list[GroupMoments]:
    return [GroupMoments(groups, eps) for groups, eps in settings]


def _single(node: Node) -> bool:
    """Whether a strip of this node is a buffer that its one reader may overwrite."""
    return node.map is None and node.readers < 2


def _by_pixel(node: Node) -> bool:
    """Whether a strip is made of kept maps by operators that write into memory of any strides."""
    plain = isinstance(node, (Affine, Elementwise, GroupNorm)) and _single(node)
    return plain and all(one.map is not None or _by_pixel(one) for one in node.parents)


def _joined(node: Node) -> bool:
    """Whether a map is a concatenation, or made of one pixel by pixel."""
    return isinstance(node, Concatenation) or (node.elementwise and _joined(node.parents[0]))


def _reads(node: Node) -> int:
    """How many read a map, by itself or joined with others."""
    joined = [
        _reads(child)
        for child in [*node.children]
        if isinstance(child, Concatenation) or (child.elementwise and _joined(node))
    ]
    return max([node.readers + (node.handle() is not None), *joined])


def _added_product(node: Node) -> Convolution | None:
    """The 1x1 convolution that a sum of two maps has as a term, if nothing else reads it."""
    if isinstance(node, Elementwise) and node.function is ADD and node.parents[0].dtype in EXACT:
        for term in reversed(node.parents):
            if isinstance(term, Convolution) and term.kernel.pointwise and _single(term):
                return term
    return None


def _unkept(node: Node) -> list[Node]:
    """``node``'s ancestors that are not kept, itself not included, parents first.

    A wide branch comes before others: it needs a second map, which they can take over.
    """
    order: dict[Node, None] = {}

    def visit(one: Node) -> None:
        for parent in sorted(one.parents, key=lambda parent: not parent.wide):
            if parent.map is None and parent not in order:
                visit(parent)
                order[parent] = None

    visit(node)
    return list(order)


def _pointwise_ancestors(node: Node) -> list[Node]:
    """The kept maps of which a row of ``node`` reads the same row alone."""
    near: set[Node] = set()
    far: set[Node] = set()
    todo = [(node, False)]
    while todo:
        one, wide = todo.pop()
        for parent in one.parents:
            beyond = wide or not one.row_by_row
            (far if beyond else near).add(parent)
            if parent.map is None:
                todo.append((parent, beyond))
    return [one for one in near - far if one.map is not None]


def _needed(node: Node, skip: Node | None) -> bool:
    """Whether a kept map will be read again: by a caller, or to compute what a caller may read."""
    if node.handle() is not None:
        return True
    for child in [*node.children]:
        if child is skip or child.map is not None:
            continue
        if _needed(child, skip):
            return True
    return False


def _strip_bytes(node: Node, rows: int) -> int:
    """Bytes of the widest strip on the way to ``rows`` rows of ``node``."""
    needed = {node: rows}
    widest = rows * node.row_bytes
    for one in (node, *reversed(_unkept(node))):
        for parent in one.parents:
            needed[parent] = max(needed.get(parent, 0), one.parent_rows(needed[one]))
            widest = max(widest, needed[parent] * parent.row_bytes)
    return widest


def _summands(node: Node) -> tuple[list[Node], Kernel | None]:
    """Terms whose averages make up that of ``node``, and the 1x1 convolution of the second."""
    if isinstance(node, Elementwise) and node.function is ADD and node.map is None:
        first, last = node.parents
        if isinstance(last, Convolution) and last.kernel.pointwise and _single(last):
            hidden = last.parents[0]
            if hidden.channels == node.channels:
                return [first, hidden], last.kernel
    return [node], None
