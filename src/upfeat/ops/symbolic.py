"""What an exported graph computes where sizes are symbols, or another runtime lacks an operator.

``torch.export`` specialises a graph to the traced size wherever Python asks for a number: equality
of sizes, an ``int()``, a loop. ONNX has neither adaptive pooling nor torch's antialiased resizing.
Both kinds of resizing are linear along each axis, so that here they are products with two small
matrices, whose weights the graph computes from the sizes.

Legend: B batch, C channels, H W map, H' W' output.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from upfeat.ops.runtime import tracing

__all__ = [
    "antialias_weights",
    "area_weights",
    "divides",
    "exporting",
    "linspace",
    "pieces",
    "resize_axes",
    "same_size",
]

Weights = Callable[[int, int, Tensor], Tensor]
PIECE_FLOATS = 2**24  # scores that an exported graph holds at once, where sizes are numbers


def exporting() -> bool:
    """Whether ``torch.export`` traces the call.

    Example:
        >>> exporting()
        False
    """
    return tracing() == "export"


def _known(condition: object) -> bool:
    """Whether a condition holds for all sizes that the symbols stand for, specialising none."""
    if isinstance(condition, bool):
        return condition
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(condition))  # type: ignore[arg-type]


def same_size(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes are equal; symbols that merely may be are not.

    Example:
        >>> same_size((4, 6), (4, 6)), same_size((4, 6), (4, 5))
        (True, False)
    """
    return all(_known(a == b) for a, b in zip(size, other, strict=True))


def divides(cells: int, length: int) -> bool:
    """Whether ``length`` is a multiple of ``cells``, whatever the symbols stand for.

    Example:
        >>> divides(4, 12), divides(5, 12)
        (True, False)
    """
    return _known(length % cells == 0)


def linspace(
    start: float, stop: float, steps: int, *, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return ``torch.linspace``; the number of steps may be a symbol.

    Example:
        >>> cpu = torch.device("cpu")
        >>> linspace(-1, 1, 3, dtype=torch.float32, device=cpu).tolist()
        [-1.0, 0.0, 1.0]
    """
    if not exporting():
        return torch.linspace(start, stop, steps, dtype=dtype, device=device)
    index, last = torch.arange(steps, device=device), torch.sym_max(steps - 1, 1)
    step = (torch.full((), stop - start, dtype=dtype, device=device) / last).double()
    # From both ends, rounded once, as torch does.
    places = torch.where(index < steps // 2, start + step * index, stop - step * (last - index))
    return places.to(dtype)


def area_weights(length: int, wanted: int, like: Tensor) -> Tensor:
    """Return the weights of adaptive average pooling along one axis, (wanted, length).

    Example:
        >>> area_weights(3, 2, torch.empty(0)).tolist()
        [[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]
    """
    place = torch.arange(length, device=like.device)
    cell = torch.arange(wanted, device=like.device)[:, None]
    first = cell * length // wanted
    stop = ((cell + 1) * length + wanted - 1) // wanted
    inside = (place >= first) & (place < stop)
    return inside.to(like.dtype) / (stop - first).to(like.dtype)


def antialias_weights(length: int, wanted: int, like: Tensor, mode: str = "bilinear") -> Tensor:
    """Return the weights of torch's antialiased resizing along one axis, (wanted, length).

    Args:
        length: of the axis.
        wanted: of the result.
        like: gives dtype and device.
        mode: the kernel, "bilinear" or "bicubic" (a = -0.5).

    Example:
        >>> weights = antialias_weights(4, 2, torch.empty(0, dtype=torch.float64))
        >>> [round(weight, 4) for weight in weights[0].tolist()]
        [0.4286, 0.4286, 0.1429, 0.0]
    """
    place = torch.arange(length, device=like.device).to(like.dtype) + 0.5
    pixel = torch.arange(wanted, device=like.device).to(like.dtype)[:, None] + 0.5
    factor = torch.full((), 1.0, dtype=like.dtype, device=like.device) * length / wanted
    far = ((place - pixel * factor) / factor.clamp(min=1)).abs()
    if mode == "bilinear":
        weights = (1 - far).clamp(min=0)
    else:
        near = (1.5 * far - 2.5) * far * far + 1
        beyond = ((-0.5 * far + 2.5) * far - 4) * far + 2
        weights = torch.where(far < 1, near, torch.where(far < 2, beyond, 0.0))
    return weights / weights.sum(1, keepdim=True)


def resize_axes(x: Tensor, size: tuple[int, int], weights: Weights) -> Tensor:
    """Resize a map by the weights of its rows and of its columns, in float32 at least.

    An axis that is known to keep its length is left as it is.

    Args:
        x: (B, C, H, W).
        size: (H', W').
        weights: ``weights(length, wanted, like)`` gives (wanted, length).

    Returns:
        (B, C, H', W') of the type of ``x``.

    Example:
        >>> resize_axes(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]]), (1, 2), area_weights).tolist()
        [[[[1.5, 3.5]]]]
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if not _known(x.shape[2] == size[0]):
        wide = weights(x.shape[2], size[0], wide) @ wide
    if not _known(x.shape[3] == size[1]):
        wide = wide @ weights(x.shape[3], size[1], wide).mT
    return wide.to(x.dtype)


def pieces(count: int, floats: int) -> Iterator[slice]:
    """Cut queries whose number is known into pieces that hold ``PIECE_FLOATS`` numbers at most.

    A graph of fixed size so holds the scores of a piece at once, not of all; where the number of
    queries or what each takes is a symbol, there is one piece.

    Example:
        >>> list(pieces(10, PIECE_FLOATS // 4))
        [slice(0, 4, None), slice(4, 8, None), slice(8, 10, None)]
    """
    if not all(isinstance(one, int) for one in (count, floats)):
        yield slice(None)
        return
    step = max(1, PIECE_FLOATS // max(floats, 1))
    for start, stop in itertools.pairwise([*range(0, count, step), count]):
        yield slice(start, stop)
