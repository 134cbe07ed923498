"""Triton kernels of the attention operators, for CUDA tensors.

The operators in ``upfeat.ops`` pick them by themselves; nothing here is imported before that, and
nothing but `load` names Triton. A kernel module has ``forward`` and ``backward`` as
``upfeat.ops.runtime.dispatch`` describes them.
"""

import importlib
import importlib.util
from types import ModuleType

from upfeat.errors import MissingPackageError, UnknownNameError

__all__ = ["OPERATORS", "load"]

OPERATORS = (
    "adaptive_convolution",
    "head_averaged_attention",
    "local_attender",
    "neighborhood_attention",
    "windowed_attention",
)


def load(name: str) -> ModuleType:
    """The kernel module of an operator, for those who want the kernels and nothing else.

    Args:
        name: file name of the operator, one of `OPERATORS`.

    Returns:
        Module with ``forward(query, key, value, **options) -> (output, residuals)`` and
        ``backward(grad_output, query, key, value, residuals, **options)``.

    Raises:
        MissingPackageError: without Triton; the message holds the install line.
        UnknownNameError: if no operator has that name.

    Example:
        >>> from upfeat.ops.triton import load
        >>> load("windowed")
        Traceback (most recent call last):
        upfeat.errors.UnknownNameError: unknown kernel 'windowed'; did you mean ...
    """
    if name not in OPERATORS:
        raise UnknownNameError("kernel", name, OPERATORS)
    if importlib.util.find_spec("triton") is None:
        raise MissingPackageError("triton", "triton", "the GPU kernels")
    return importlib.import_module(f"{__name__}.{name}")
