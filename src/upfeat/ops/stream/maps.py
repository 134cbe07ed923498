"""Maps whose rows are computed when they are read."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeAlias

import torch
from torch import Tensor

from upfeat.ops.stream import recording
from upfeat.ops.stream.nodes import Node, Source
from upfeat.ops.stream.sweep import Graph

_limit: ContextVar[int | None] = ContextVar("limit", default=None)


@contextlib.contextmanager
def bounded(max_bytes: int) -> Iterator[None]:
    """Let :func:`lazy` record networks, which keep at most ``max_bytes`` of whole maps."""
    token = _limit.set(max_bytes)
    try:
        yield
    finally:
        _limit.reset(token)


class RowMap:
    """A map (1, C, H, W) of a recorded network; ``row_map[:, :, a:b]`` computes its rows.

    Networks called with it record what they would do. An operator that is not known gets the whole
    map as a tensor, and so gives one.
    """

    def __init__(self, node: Node, graph: Graph) -> None:
        self.node, self.graph = node, graph
        node.handle = weakref.ref(self)

    @property
    def shape(self) -> torch.Size:
        """(1, C, H, W)."""
        return torch.Size((1, self.node.channels, *self.node.size))

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows."""
        return self.node.dtype

    @property
    def device(self) -> torch.device:
        """Device of the rows."""
        return self.graph.like.device

    requires_grad = False

    def dim(self) -> int:
        """Four."""
        return 4

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows ``start:stop``, (1, C, R, W), channels last in memory."""
        return self.graph.read(self.node, (start, stop))[None].permute(0, 3, 1, 2)

    def whole(self) -> Tensor:
        """Return the whole map (1, C, H, W), channels last in memory."""
        return self.graph.whole(self.node)[None].permute(0, 3, 1, 2)

    def __getitem__(self, index: Any) -> Tensor:
        """Return what the index selects of the map; only its rows are computed."""
        every = slice(None)
        if isinstance(index, tuple) and len(index) == 3 and index[:2] == (every, every):
            start, stop, step = index[2].indices(self.node.size[0])
            if step == 1 and start < stop:
                return self.rows(start, stop)
        return self.whole()[index]

    def __getattr__(self, name: str) -> Any:
        """Look up any other method of a tensor, called on the recorded map."""
        method = getattr(Tensor, name)
        if not callable(method):
            return getattr(self.whole(), name)
        return lambda *args, **kwargs: recording.record(method, (self, *args), kwargs)

    @classmethod
    def __torch_function__(
        cls,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return recording.record(function, args, kwargs or {})

    def __add__(self, other: Any) -> Any:
        return recording.record(torch.add, (self, other), {})

    __radd__ = __add__

    def __mul__(self, other: Any) -> Any:
        return recording.record(torch.mul, (self, other), {})

    __rmul__ = __mul__


class Items:
    """One map for each item of a batch; read like the map (B, C, H, W)."""

    def __init__(self, maps: Sequence[RowMap]) -> None:
        self.maps = maps

    def __getitem__(self, index: Any) -> Tensor:
        """Return what the index, which takes all items, selects of every map."""
        return torch.cat([one[index] for one in self.maps])


class Deferred:
    """``function(x)``, computed as a whole where it is read."""

    def __init__(self, function: Callable[[Any], Any], x: Tensor) -> None:
        self.function, self.x = function, x

    def __getitem__(self, index: Any) -> Tensor:
        """Return what the index selects; a graph reads all rows at once."""
        result: Tensor = self.function(self.x)[index]
        return result


def deferred(function: Callable[[Any], Any], x: Tensor) -> Any:
    """Return ``function(x)``, a map that is computed where it is read: rows of it, if it can be.

    For a network that single positions have no use for. The type of ``x`` is kept in autocast.

    Args:
        function: a plain network of full resolution, which treats each item by itself.
        x: (B, C, H, W).

    Example:
        >>> import torch
        >>> conv, image = torch.nn.Conv2d(3, 8, 3, padding=1), torch.rand(2, 3, 64, 64)
        >>> with torch.no_grad(), bounded(2**20):
        ...     rows = deferred(conv, image)[:, :, 10:12]
        >>> torch.allclose(rows, conv(image)[:, :, 10:12], atol=1e-6)
        True
    """
    if torch.compiler.is_compiling() or _limit.get() is None:
        return Deferred(function, x)
    maps = [function(lazy(one, x.dtype)) for one in x.split(1)]
    return maps[0] if len(maps) == 1 else Items(maps)


def prepare(state: Any) -> None:
    """Sweep the image for all maps in a tuple, so that threads can read their rows."""
    for one in _maps(state):
        one.graph.prepare(one.node)


def block_rows(state: Any, height: int) -> int:
    """Return how many rows of the maps of this height should be computed at once, or 0.

    A strip of a convolution is computed with rows above and below it, the lower it is the more.
    """
    maps = [one for one in _maps(state) if one.node.size[0] == height]
    return max((one.graph.block_rows(one.node) for one in maps), default=0)


@contextlib.contextmanager
def read_ahead(state: Any, rows: slice, height: int) -> Iterator[None]:
    """Compute rows of the maps of this height at once, for what the thread reads within them."""
    maps = [one for one in _maps(state) if one.node.size[0] == height]
    maps = [one for one in maps if one.graph.block_rows(one.node)]
    try:
        for one in maps:
            one.graph.start_block(one.node, (rows.start, rows.stop))
        yield
    finally:
        for one in maps:
            one.graph.stop_block(one.node)


def _maps(state: Any) -> list[RowMap]:
    """All maps of rows in a tuple."""
    if isinstance(state, RowMap):
        return [state]
    if isinstance(state, Items):
        return list(state.maps)
    parts = state if isinstance(state, (tuple, list)) else ()
    return [one for part in parts for one in _maps(part)]


def whole(x: "Map") -> Tensor:
    """Return a map as a tensor (1, C, H, W): what is small and read by every row.

    Example:
        >>> import torch
        >>> whole(torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """
    return x.whole() if isinstance(x, RowMap) else x


Map: TypeAlias = Tensor | RowMap
"""What an encoder handles: a tensor under a graph, a map of rows without."""


def lazy(image: Tensor, dtype: torch.dtype | None = None) -> Any:
    """Return ``image`` (1, C, H, W) as a :class:`RowMap` within :func:`bounded`, else as it is.

    Args:
        image: to be read by a network of full resolution.
        dtype: of the network's maps, default autocast's or the image's.

    Example:
        >>> import torch
        >>> conv, image = torch.nn.Conv2d(3, 8, 3, padding=1), torch.rand(1, 3, 64, 64)
        >>> with torch.no_grad(), bounded(2**20):
        ...     rows = torch.relu(conv(lazy(image)))[:, :, 10:12]
        >>> torch.allclose(rows, conv(image).relu()[:, :, 10:12], atol=1e-6)
        True
    """
    limit = None if torch.compiler.is_compiling() else _limit.get()
    if limit is None or len(image) != 1:
        return image
    if dtype is None:
        kind = image.device.type
        enabled = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if enabled else image.dtype
    return RowMap(Source(image, dtype), Graph(image, limit))
