"""Memory for large results.

A result of a hundred megabytes is fresh memory in every call, and the system hands it over a page
at a time: on the CPU that takes longer than a resize that fills it. Linux gives larger pages where
they are asked for. NumPy asks for them and PyTorch does not, so that large results lie in memory of
NumPy's. Within `recycled_memory` such a result takes the place of an earlier one that is no longer
used: in a training step, which needs the same maps again and again, only the first costs that time.
"""

import contextlib
import functools
import math
import os
import threading
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
        >>> from upfeat.ops.runtime.memory import new_large
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
    recycler = _recyclers[-1] if _recyclers else None
    buffer = np.empty(size + ALIGNMENT, np.uint8) if recycler is None else recycler.take(size)
    offset = -buffer.ctypes.data % ALIGNMENT
    part = buffer[offset : offset + size]
    if recycler is not None:
        weakref.finalize(part, recycler.give_back, buffer).atexit = False
    return torch.frombuffer(part, dtype=dtype, count=count).view(shape)


@functools.cache
def total_memory(device: torch.device) -> int | None:
    """Return the bytes of a device's memory, or of what a container may take; None if untold."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    if device.type != "cpu" or not hasattr(os, "sysconf"):
        return None
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def check_fits(shape: Sequence[int], like: Tensor, what: str, advice: str) -> None:
    """Raise ``ValueError`` for a tensor larger than the whole memory of its device.

    To be asked before the work begins: the system refuses such a tensor late, or ends the process.

    Args:
        shape: of the tensor.
        like: gives type and device.
        what: what the tensor is, with its shape's letters, for the message.
        advice: what to do instead, for the message.
    """
    if torch.compiler.is_compiling():
        return
    size, total = math.prod(shape) * like.element_size(), total_memory(like.device)
    if total is not None and size > total:
        raise ValueError(
            f"{what} {tuple(shape)} takes {size / 1e9:.4g} GB, more than the {total / 1e9:.4g} GB "
            f"of memory on {like.device}; {advice}"
        )


@contextlib.contextmanager
def recycled_memory() -> Iterator[None]:
    """Keep the memory of large results that are no longer used, for others of their size.

    For the whole process, on the CPU. What waits for use and what is in use are together never more
    than what was once in use; at the end nothing is kept.

    Example:
        >>> import torch
        >>> from upfeat.ops.runtime.memory import LARGE, new_large, recycled_memory
        >>> with recycled_memory():
        ...     first = new_large(torch.empty(0), LARGE)
        ...     place = first.data_ptr()
        ...     del first
        ...     new_large(torch.empty(0), LARGE).data_ptr() == place
        True
    """
    recycler = _Recycler()
    _recyclers.append(recycler)
    try:
        yield
    finally:
        _recyclers.remove(recycler)
        recycler.close()


class _Recycler:
    """Buffers that wait for use, the longest waiting first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A buffer may come back at any moment, also while this thread has the lock; appending to
        # this queue needs none.
        self._returned: deque[np.ndarray[Any, Any]] = deque()
        self._waiting: list[np.ndarray[Any, Any]] = []
        self._total = 0  # bytes in use and waiting
        self._most = 0  # bytes once in use
        self._open = True

    def take(self, size: int) -> "np.ndarray[Any, Any]":
        """Return a buffer for ``size`` bytes, used before where one of that size waits."""
        size += ALIGNMENT
        with self._lock:
            while self._returned:
                self._waiting.append(self._returned.popleft())
            for place in reversed(range(len(self._waiting))):
                if self._waiting[place].nbytes == size:
                    buffer = self._waiting.pop(place)
                    break
            else:
                buffer = np.empty(size, np.uint8)
                self._total += size
            used = self._total - sum(one.nbytes for one in self._waiting)
            self._most = max(self._most, used)
            while self._total > self._most:
                self._total -= self._waiting.pop(0).nbytes
            return buffer

    def give_back(self, buffer: "np.ndarray[Any, Any]") -> None:
        """Take a buffer back; after `close` it goes to the system."""
        if self._open:
            self._returned.append(buffer)

    def close(self) -> None:
        """Give everything back to the system."""
        with self._lock:
            self._open = False
            self._waiting.clear()
            self._returned.clear()


_recyclers: list[_Recycler] = []


class Scratch:
    """Named buffers that are allocated once and reused: fresh pages cost more than arithmetic."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self.like, self.dtype = like.new_empty(0), dtype
        self._flat: dict[str, Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """An uninitialised contiguous tensor, valid until the same name is taken again."""
        size = 1
        for length in shape:
            size *= length
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = new_large(self.like, size, dtype=dtype or self.dtype)
            self._flat[name] = flat
        return flat[:size].view(shape)


class ThreadScratch:
    """A `Scratch` of its own for every thread that asks, for functions that several may run."""

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._like, self._dtype = like, dtype
        self._own = threading.local()

    def take(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """As `Scratch.take`; valid until the same thread takes the same name again."""
        if not hasattr(self._own, "scratch"):
            self._own.scratch = Scratch(self._like, self._dtype)
        buffer: Tensor = self._own.scratch.take(name, *shape, dtype=dtype)
        return buffer


class Buffers:
    """Memory for strips, one set for each thread: a strip that was used gives way to the next.

    Example:
        >>> buffers, like = Buffers(), torch.empty(0)
        >>> strip = buffers.take(like, torch.float32, 2, 3)
        >>> buffers.give(strip)
        >>> buffers.take(like, torch.float32, 3, 1).data_ptr() == strip.data_ptr()
        True
    """

    def __init__(self) -> None:
        self.free: list[Tensor] = []
        self.taken: dict[int, Tensor] = {}

    def take(self, like: Tensor, dtype: torch.dtype, *shape: int) -> Tensor:
        """Return an uninitialised contiguous tensor: the smallest free one that is large enough."""
        count = 1
        for length in shape:
            count *= length
        size = count * dtype.itemsize
        fitting = [place for place, flat in enumerate(self.free) if flat.numel() >= size]
        if fitting:
            flat = self.free.pop(min(fitting, key=lambda place: self.free[place].numel()))
        else:
            flat = new_large(like, size, dtype=torch.uint8)
        self.taken[flat.data_ptr()] = flat
        return flat[:size].view(dtype).view(shape)

    def give(self, strip: Tensor) -> None:
        """Take a strip back; one that is no buffer of ours is left alone."""
        flat = self.taken.pop(strip.data_ptr(), None)
        if flat is not None:
            self.free.append(flat)

    def reclaim(self) -> None:
        """Take everything back."""
        self.free += self.taken.values()
        self.taken.clear()
