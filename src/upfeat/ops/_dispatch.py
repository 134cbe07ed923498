"""How an operator picks its implementation, and the precision rules all operators share.

Order of choice: while ``torch.compile`` or ``torch.export`` traces, the plain reference (a graph of
ordinary operators); for CUDA tensors with Triton at hand, ``upfeat.ops.triton.<operator file>``;
otherwise the version in bounded memory.

A Triton module is named like the operator's file and has two functions::

    forward(query, key, value, **options) -> (output, residuals)
    backward(grad_output, query, key, value, residuals, **options) -> (grad_q, grad_k, grad_v)

``residuals`` is a tuple of tensors (for example the log-sum-exp), ``options`` are the keyword
arguments that the operator's ``_options`` docstring lists, all of them resolved (no ``None``). A
function raises ``NotImplementedError`` for what it does not cover; the bounded version then runs.
"""

import importlib
import importlib.util
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor


@lru_cache(maxsize=None)
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


def wants_reference() -> bool:
    """Whether the call is being traced, so that only ordinary operators may be used."""
    return torch.compiler.is_compiling()


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The type scores and softmax are computed in: float64 if any input is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which autocast leaves our explicit types alone, on the tensor's device."""
    return torch.autocast(tensor.device.type, enabled=False)


def check_heads(query: Tensor, key: Tensor, num_heads: int, channel_dim: int) -> None:
    """Raise ValueError unless query and key agree in channels and the heads divide them."""
    width, key_width = query.shape[channel_dim], key.shape[channel_dim]
    if width != key_width:
        raise ValueError(
            f"query has {width} channels and key {key_width}; both must have the same number."
        )
    if num_heads < 1 or width % num_heads:
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
