"""How an operator picks its implementation, and the precision rules all operators share.

Order of choice: while ``torch.compile`` or ``torch.export`` traces, and within transforms of
``torch.func``, the plain reference (a graph of ordinary operators); for CUDA tensors with Triton at
hand, ``upfeat.ops.triton.<operator file>``; otherwise the version in bounded memory.

A Triton module is named like the operator's file and has two functions::

    forward(query, key, value, **options) -> (output, residuals)
    backward(grad_output, query, key, value, residuals, **options) -> (grad_q, grad_k, grad_v)

``residuals`` is a tuple of tensors (for example the log-sum-exp). Query, key and value come as the
operator was given them, shapes checked. The options, all resolved:

- ``head_averaged_attention``: ``num_heads``, ``scale``;
- ``windowed_attention``: ``num_heads``, ``scale``, ``grid_size``, ``row_bounds`` (R, 2) and
  ``col_bounds`` (C, 2) of the computed part, int64 on the CPU;
- ``neighborhood_attention``: ``num_heads``, ``scale``, ``head_values``, ``row_cells`` (R, Ky) and
  ``col_cells`` (C, Kx) of the computed part, int64 on the CPU.

``forward`` raises ``NotImplementedError`` for what it does not cover: the bounded version then
runs.
"""

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from upfeat._compat import is_exporting
from upfeat.errors import check_bytes
from upfeat.ops.runtime.budgets import operator_bytes

_counting: ContextVar[bool] = ContextVar("counting", default=False)


@cache
def triton_kernel(name: str) -> ModuleType | None:
    """The Triton module of an operator, or None where Triton or the kernel is missing.

    Args:
        name: file name of the operator, for example ``"head_averaged_attention"``.

    Returns:
        Module with ``forward`` and ``backward``, or None.
    """
    if importlib.util.find_spec("triton") is None:
        return None
    path = f"upfeat.ops.triton.{name}"
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name in (path, "upfeat.ops.triton"):
            return None
        raise


def _kernel_for(query: Tensor, name: str) -> ModuleType | None:
    return triton_kernel(name) if query.is_cuda else None


class BoundedOperator:
    """An attention operator in bounded memory: its forward and its recomputing backward.

    Args:
        name: file name of the operator, under which a Triton module is looked up.
        forward: ``(query, key, value, max_bytes=..., **options, **hints) -> output``.
        backward: ``(grad_output, query, key, value, max_bytes=..., needs=..., **options, **hints)``
            to the three gradients; ``needs`` is a triple of flags, an unneeded gradient may be
            None.
    """

    def __init__(
        self,
        name: str,
        forward: Callable[..., Tensor],
        backward: Callable[..., tuple[Tensor | None, ...]],
    ) -> None:
        self.name = name
        self.forward = forward
        self.backward = backward

    def budget(self, max_bytes: int | None) -> int:
        """The bound on the temporaries that a caller means; ValueError below 1."""
        return operator_bytes() if max_bytes is None else check_bytes(max_bytes)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        max_bytes: int | None,
        hints: dict[str, Any] | None = None,
        **options: Any,
    ) -> Tensor:
        """Run forward; gradients flow, and nothing of size queries x keys is kept for them.

        ``hints`` help the bounded version to cut its work and have no effect on the result, so a
        Triton kernel does not get them.
        """
        max_bytes = self.budget(max_bytes)
        bounded = {**options, **(hints or {}), "max_bytes": max_bytes}
        return _Recomputed.apply(query, key, value, self, options, bounded)


class _Recomputed(torch.autograd.Function):
    """Saves the inputs only (and a Triton kernel's residuals); backward computes weights again."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        operator: BoundedOperator,
        options: dict[str, Any],
        bounded: dict[str, Any],
    ) -> Tensor:
        ctx.operator, ctx.options, ctx.bounded = operator, options, bounded
        ctx.kernel = _kernel_for(query, operator.name)
        residuals: tuple[Tensor, ...] = ()
        with without_autocast(query):
            if ctx.kernel is not None:
                try:
                    out, residuals = ctx.kernel.forward(query, key, value, **options)
                except NotImplementedError:
                    ctx.kernel = None
            if ctx.kernel is None:
                out = operator.forward(query, key, value, **bounded)
        ctx.save_for_backward(query, key, value, *residuals)
        return out

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, *residuals = ctx.saved_tensors
        with torch.no_grad(), without_autocast(query):
            if ctx.kernel is not None:
                grads = ctx.kernel.backward(
                    grad_output, query, key, value, tuple(residuals), **ctx.options
                )
            else:
                grads = ctx.operator.backward(
                    grad_output,
                    query,
                    key,
                    value,
                    needs=ctx.needs_input_grad[:3],
                    **ctx.bounded,
                )
        if torch.is_grad_enabled():  # create_graph=True: a second derivative may be asked for
            grads = tuple(
                None if grad is None else _Once.apply(grad, grad_output, query, key, value)
                for grad in grads
            )
        return *grads, None, None, None


class _Once(torch.autograd.Function):
    """A gradient that depends on the inputs in a way that was not recorded."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, *inputs: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "second derivatives of the attention operators are not available; call the function of "
            "the same name in upfeat.ops.reference where you need them."
        )


def matmul_dtype(value: Tensor, compute: torch.dtype) -> torch.dtype:
    """The type weights and values are multiplied in: bfloat16 stays, as its sums are float32.

    For few channels the product is so cheap that converting the weights would cost more.
    """
    narrow = value.dtype == torch.bfloat16 and value.shape[-1] >= 64
    return torch.bfloat16 if narrow else compute


def wants_reference() -> bool:
    """Whether only ordinary operators may be used, without buffers, threads and branches on values.

    So it is while the call is traced, within transforms of ``torch.func``, where tangents are
    carried forward (``torch.autograd.forward_ad``), and while operations are counted.
    """
    return torch.compiler.is_compiling() or is_transformed() or counts_operations()


@contextlib.contextmanager
def counting_operations() -> Iterator[None]:
    """Run the definitions, for a counter of operations; inputs and weights on the meta device.

    Operators whose definition computes more than it uses run something of the shapes that count.

    Example:
        >>> with counting_operations():
        ...     counts_operations()
        True
    """
    token = _counting.set(True)
    try:
        yield
    finally:
        _counting.reset(token)


def counts_operations() -> bool:
    """Whether the call runs within `counting_operations`."""
    return not torch.compiler.is_compiling() and _counting.get()


def records_graph() -> bool:
    """Whether the call may become a part of a graph, so that nothing may be done in place."""
    return torch.is_grad_enabled() or wants_reference()


def tracing() -> Literal["compile", "export"] | None:
    """What traces the call: ``torch.compile``, ``torch.export``, or nothing."""
    if not torch.compiler.is_compiling():
        return None
    return "export" if is_exporting() else "compile"


def output_dtype(features: Tensor) -> torch.dtype:
    """The type of a module's result: autocast's where it is on (it leaves float64), else theirs."""
    kind = features.device.type
    if features.dtype == torch.float64 or kind == "meta" or not torch.is_autocast_enabled(kind):
        return features.dtype
    return torch.get_autocast_dtype(kind)


def is_transformed() -> bool:
    """Whether the call runs within a transform of ``torch.func`` or a level of forward AD."""
    if torch.compiler.is_compiling():
        return False
    active: bool = torch._C._are_functorch_transforms_active()
    return active or forward_ad._current_level >= 0


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type scores and softmax are computed in: float64 if any input is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def without_autocast(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which autocast leaves our explicit types alone, on the tensor's device."""
    kind = tensor.device.type
    off = tensor.is_meta or not (torch.compiler.is_compiling() or torch.is_autocast_enabled(kind))
    return contextlib.nullcontext() if off else torch.autocast(kind, enabled=False)


def check_heads(query: Tensor, key: Tensor, num_heads: int, channel_dim: int) -> None:
    """Raise ValueError unless query and key agree in channels and the heads divide them."""
    width, key_width = query.shape[channel_dim], key.shape[channel_dim]
    if width != key_width:
        raise ValueError(
            f"query has {width} channels and key {key_width}; both must have the same number."
        )
    if num_heads < 1 or width < 1 or width % num_heads:
        raise ValueError(
            f"num_heads={num_heads} does not divide the {width} channels of query and key; "
            "choose a divisor."
        )


def check_same_place(query: Tensor, key: Tensor, value: Tensor) -> None:
    """Raise ValueError unless the three tensors share batch size and device."""
    if not (query.shape[0] == key.shape[0] == value.shape[0]):
        raise ValueError(
            f"batch sizes differ: query {query.shape[0]}, key {key.shape[0]}, value "
            f"{value.shape[0]}; expand the smaller ones first."
        )
    if not (query.device == key.device == value.device):
        raise ValueError(
            f"devices differ: query on {query.device}, key on {key.device}, value on "
            f"{value.device}; move them to one device."
        )
    if not all(t.is_floating_point() for t in (query, key, value)):
        raise ValueError(
            f"query, key and value must be floating point, got {query.dtype}, {key.dtype}, "
            f"{value.dtype}."
        )
