"""What the kernels share: block sizes, the matrix product, the limits of what they cover.

Scores live in base 2: ``exp(s * scale) = exp2(s * scale * log2(e))``, and the log-sum-exp that the
forward hands to the backward is ``log2 sum_j exp2(...)``.
"""

# Kernels are a language of their own: untyped, and tuples grow by concatenation.
# mypy: disable-error-code="no-untyped-def"

import os
from contextlib import AbstractContextManager, nullcontext

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2_E = 1.4426950408889634
# Stands for minus infinity: no NaN from inf - inf, and exp2 of it is 0 beside any real score.
HIDDEN = tl.constexpr(-1.0e30)
# Triton's interpreter runs the kernels on the CPU when this variable is set at import.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")

# Wider heads do not fit in the memory of a multiprocessor beside the values.
MAX_WIDTH = 128
_TYPES = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def dot(a, b):
    """Matrix product with float32 sums; float32 factors are not rounded to TF32."""
    if INTERPRETED:  # numpy has no bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def online_sum(scores, top, total):
    """One step of the running log-sum-exp in base 2: new maximum and sum relative to it."""
    raised = tl.maximum(top, tl.max(scores, axis=1))
    total = total * tl.exp2(top - raised) + tl.sum(tl.exp2(scores - raised[:, None]), axis=1)
    return raised, total


@triton.jit
def load_tile(pointer, offset, inside, first, stop, stride, SIZE: tl.constexpr):
    """(rows, SIZE) channels first, first + 1, ... < stop of the positions at ``offset``; else 0."""
    channel = first + tl.arange(0, SIZE)
    mask = inside[:, None] & (channel < stop)[None, :]
    return tl.load(pointer + offset[:, None] + channel[None, :] * stride, mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, tile, offset, inside, first, stop, SIZE: tl.constexpr):
    """The inverse of `load_tile` for channels that lie side by side, in the pointer's type."""
    channel = first + tl.arange(0, SIZE)
    mask = inside[:, None] & (channel < stop)[None, :]
    tile = tile.to(pointer.dtype.element_ty)
    tl.store(pointer + offset[:, None] + channel[None, :], tile, mask=mask)


@triton.jit
def scores_in_base_2(query, key, seen, qk_scale):
    """(M, N) scaled inner products; keys that do not exist are `HIDDEN`."""
    return tl.where(seen[None, :], dot(query, tl.trans(key)) * qk_scale, HIDDEN)


def interpreted() -> bool:
    """Whether the kernels of this process run in Triton's interpreter."""
    return bool(INTERPRETED.value)


def check_covered(query: Tensor, key: Tensor, value: Tensor, width: int) -> None:
    """Raise NotImplementedError for types, head widths and devices that are not covered."""
    types = {query.dtype, key.dtype, value.dtype}
    if not types.issubset(_TYPES):
        raise NotImplementedError(f"kernels cover float32, float16 and bfloat16, got {types}")
    if width > MAX_WIDTH:
        raise NotImplementedError(f"kernels cover heads of at most {MAX_WIDTH} channels: {width}")
    if interpreted():
        return
    if not query.is_cuda or torch.version.hip is not None:
        raise NotImplementedError(f"kernels run on CUDA tensors, got {query.device}")
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        raise NotImplementedError("kernels need compute capability 8.0")


def check_order_free() -> None:
    """Raise NotImplementedError where sums in arbitrary order (atomics) are not wanted."""
    if torch.are_deterministic_algorithms_enabled():
        raise NotImplementedError("gradients of keys and values are summed in arbitrary order")


def one_type(query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key in the wider of their types, as one matrix product takes one type."""
    dtype = torch.promote_types(query.dtype, key.dtype)
    return query.to(dtype), key.to(dtype)


def block(size: int, most: int = 1 << 30) -> int:
    """The power of two that holds ``size``, at least 16 (the least a matrix unit takes)."""
    return min(max(16, triton.next_power_of_2(size)), most)


def on_device(tensor: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device: make it the tensor's."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()
