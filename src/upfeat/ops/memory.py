"""Memory for large results.

A result of a hundred megabytes is fresh memory in every call, and the system hands it over a page
at a time: on the CPU that takes longer than a resize that fills it. Linux gives larger pages where
they are asked for. NumPy asks for them and PyTorch does not, so that large results lie in memory of
NumPy's.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes, as PyTorch's own
LARGE = 2**22  # bytes from which NumPy asks for larger pages


def new_large(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """Return an uninitialised contiguous tensor, like ``Tensor.new_empty`` but quicker to fill.

    Args:
        like: gives the device, and the type where none is named.
        *shape: of the result.
        dtype: of the result.

    Example:
        >>> import torch
        >>> from upfeat.ops.memory import new_large
        >>> large = new_large(torch.empty(0, dtype=torch.bfloat16), 3, 1024, 1024)
        >>> large.shape, large.dtype, large.is_contiguous(), large.data_ptr() % 64
        (torch.Size([3, 1024, 1024]), torch.bfloat16, True, 0)
    """
    dtype = dtype or like.dtype
    count = math.prod(shape)
    size = count * dtype.itemsize
    plain = type(like) in (Tensor, nn.Parameter) and like.device.type == "cpu"
    if size < LARGE or not plain or torch.compiler.is_compiling():
        return like.new_empty(shape, dtype=dtype)
    buffer = np.empty(size + ALIGNMENT, np.uint8)
    offset = -buffer.ctypes.data % ALIGNMENT
    return torch.frombuffer(buffer, dtype=dtype, count=count, offset=offset).view(shape)
