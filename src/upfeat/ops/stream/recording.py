"""Which operators are recorded, and how: the table of everything that a :class:`RowMap` knows.

A recorder takes the operator's arguments and returns a map, or None for arguments that it does not
cover. An operator that is missing from the table, or not covered, gets whole tensors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from upfeat.ops.stream import convolution, nodes
from upfeat.ops.stream.nodes import Node

Recorder = Callable[..., Any]

RECORDERS: dict[Any, Recorder] = {}


def record(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Record an operator that is called with at least one map, or run it on whole maps."""
    recorder = RECORDERS.get(function)
    if recorder is not None:
        result = recorder(*args, **kwargs)
        if result is not None:
            return result
    return function(*_whole(args), **{name: _whole(value) for name, value in kwargs.items()})


def recorded_as(function: Recorder) -> Callable[[Recorder], Recorder]:
    """Say that an operator of ours is recorded as the decorated function says.

    The operator must hand its arguments over with ``torch.overrides.handle_torch_function``.
    """

    def register(reference: Recorder) -> Recorder:
        RECORDERS[function] = reference
        return reference

    return register


def row_local(x: Any, function: Callable[..., Tensor], channels: int | None = None) -> Any:
    """Apply a function of a map's rows that also gets to know which rows they are.

    Args:
        x: a map (B, C, H, W).
        function: ``function(strip, rows, out)`` writes the result (R, W, C') for the pixels
            (R, W, C) of the image rows ``(start, stop)`` into ``out``, which may be ``strip``.
        channels: C', default C.
    """
    if not is_map(x):
        raise TypeError(f"row_local needs a recorded map, got {type(x).__name__}")
    return _like(x, nodes.RowLocal(x.node, function, channels))


def is_map(x: Any) -> bool:
    """Whether ``x`` is a recorded map."""
    return hasattr(type(x), "whole") and hasattr(x, "node")


def _whole(value: Any) -> Any:
    if is_map(value):
        return value.whole()
    if isinstance(value, (list, tuple)):
        return type(value)(_whole(one) for one in value)
    return value


def _like(x: Any, node: Node) -> Any:
    return type(x)(node, x.graph)


def _records(*functions: Any) -> Callable[[Recorder], Recorder]:
    def register(recorder: Recorder) -> Recorder:
        for function in functions:
            RECORDERS[function] = recorder
        return recorder

    return register


# -- convolutions and borders --------------------------------------------------------------------


@_records(torch.conv2d, F.conv2d)
def _conv2d(
    x: Any,
    weight: Any,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not is_map(x) or groups != 1 or _pair(stride) != (1, 1) or padding == "same":
        return None
    border = (0, 0) if padding == "valid" else _pair(padding)
    node, graph = _cast(x.node, _autocast_dtype(x)), x.graph
    node = nodes.Pad(node, border, "constant") if any(border) else node
    prepared = convolution.prepare(weight, bias, node.dtype, dilation=_pair(dilation))
    return _like(x, nodes.Convolution(node, prepared, lambda: graph.buffers))


def _autocast_dtype(x: Any) -> torch.dtype:
    """The type that a convolution of ``x`` runs in."""
    kind, dtype = x.device.type, x.node.dtype
    enabled = torch.is_autocast_enabled(kind) and dtype != torch.float64
    return torch.get_autocast_dtype(kind) if enabled else dtype


def _cast(node: Node, dtype: torch.dtype) -> Node:
    return node if node.dtype == dtype else nodes.Cast(node, dtype)


@_records(Tensor.to)
def _to(x: Any, dtype: Any, *rest: Any, **options: Any) -> Any:
    if not isinstance(dtype, torch.dtype) or rest or options:
        return None
    return _like(x, _cast(x.node, dtype))


@_records(F.pad, torch.nn.functional.pad)
def _pad(x: Any, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    even = len(pad) == 4 and pad[0] == pad[1] and pad[2] == pad[3] and min(pad) >= 0
    if not even or mode not in ("constant", "reflect", "replicate") or value not in (None, 0):
        return None
    border = (pad[2], pad[0])  # rows, columns; the framework counts from the last axis
    if not any(border):
        return x
    if mode == "reflect" and any(n <= b for n, b in zip(x.node.size, border, strict=True)):
        return None
    return _like(x, nodes.Pad(x.node, border, mode))


def _pair(value: Any) -> tuple[Any, Any]:
    return (value, value) if isinstance(value, (int, str)) else (value[0], value[-1])


# -- norms ---------------------------------------------------------------------------------------


@_records(F.group_norm, torch.group_norm)
def _group_norm(
    x: Any,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *_: Any,
) -> Any:
    return _like(x, nodes.GroupNorm(x.node, num_groups, weight, bias, eps))


@_records(F.batch_norm)
def _batch_norm(
    x: Any,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    if training or running_mean is None or running_var is None:
        return None
    wide = torch.promote_types(running_var.dtype, torch.float32)
    scale = (running_var.to(wide) + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    scale, shift = scale.detach(), shift.detach()
    if isinstance(x.node, nodes.Convolution):
        return _like(x, x.node.scaled(scale, shift))
    return _like(x, nodes.Affine(x.node, scale, shift))


# -- single pixels -------------------------------------------------------------------------------


def _elementwise(out_variant: Callable[..., Tensor]) -> Recorder:
    def recorder(x: Any, *_: Any, **__: Any) -> Any:
        return _like(x, nodes.Elementwise(out_variant, x.node))

    return recorder


def _gelu(x: Any, approximate: str = "none") -> Any:
    def function(strip: Tensor, out: Tensor) -> Tensor:
        return torch.ops.aten.gelu.out(strip, approximate=approximate, out=out)

    return _like(x, nodes.Elementwise(function, x.node))


_records(F.silu, torch.nn.functional.silu)(_elementwise(torch.ops.aten.silu.out))
_records(F.relu, torch.relu, Tensor.relu, Tensor.relu_, torch.relu_)(
    _elementwise(torch.ops.aten.relu.out)
)
_records(torch.sigmoid, Tensor.sigmoid)(_elementwise(torch.ops.aten.sigmoid.out))
_records(F.gelu)(_gelu)


def _binary(out_variant: Callable[..., Tensor], scaling: bool) -> Recorder:
    def recorder(x: Any, y: Any, **options: Any) -> Any:
        if options:
            return None
        if is_map(x) and is_map(y):
            same = x.shape == y.shape and x.dtype == y.dtype
            return _like(x, nodes.Elementwise(out_variant, x.node, y.node)) if same else None
        x, y = (x, y) if is_map(x) else (y, x)
        vector = _channel_vector(y, x)
        if vector is None:
            return None
        one, zero = torch.ones_like(vector), torch.zeros_like(vector)
        pair = (vector, zero) if scaling else (one, vector)
        return _like(x, nodes.Affine(x.node, *pair))

    return recorder


def _channel_vector(value: Any, x: Any) -> Tensor | None:
    """A number, or a tensor (1, C, 1, 1), as (C,)."""
    if isinstance(value, (int, float)):
        return torch.full((x.node.channels,), float(value), device=x.device)
    if isinstance(value, Tensor):
        if value.numel() == 1:
            return value.detach().flatten().expand(x.node.channels)
        if value.dim() >= 3 and value.shape[-2:] == (1, 1) and value.numel() == x.node.channels:
            return value.detach().flatten()
    return None


_records(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__)(_binary(nodes.ADD, False))
_records(torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__)(
    _binary(torch.ops.aten.mul.out, True)
)


@_records(torch.cat, torch.concat)
def _cat(tensors: Sequence[Any], dim: int = 0) -> Any:
    if dim != 1 or not all(is_map(one) for one in tensors):
        return None
    first = tensors[0]
    if any(one.node.size != first.node.size or one.dtype != first.dtype for one in tensors):
        return None
    return _like(first, nodes.Concatenation([one.node for one in tensors]))


@_records(F.dropout, F.dropout2d)
def _dropout(x: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return None if training else x


# -- other grids ---------------------------------------------------------------------------------


@_records(F.adaptive_avg_pool2d)
def _adaptive_avg_pool2d(x: Any, output_size: Any) -> Any:
    size = _pair(output_size)
    return x if size == x.node.size else _like(x, nodes.Pool(x.node, size))


@_records(Tensor.contiguous, Tensor.detach)
def _same(x: Any, *_: Any, **__: Any) -> Any:
    return x
