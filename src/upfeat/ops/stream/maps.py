"""Maps whose rows are computed when they are read."""

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
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
        return self.graph.read(self.node, (start, stop)).permute(2, 0, 1)[None]

    def whole(self) -> Tensor:
        """Return the whole map (1, C, H, W), channels last in memory."""
        return self.graph.whole(self.node).permute(2, 0, 1)[None]

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


def prepare(state: Any) -> None:
    """Sweep the image for all maps in a tuple, so that threads can read their rows."""
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, RowMap):
            part.graph.prepare(part.node)


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
