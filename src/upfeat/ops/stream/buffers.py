"""Memory for the strips of one thread, used again and again: fresh pages cost more than sums."""

import torch
from torch import Tensor

from upfeat.ops.runtime import new_large


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
