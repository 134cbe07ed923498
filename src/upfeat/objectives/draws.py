"""Random draws that come from the generator they are given, and from nothing else.

The generator may live on the CPU while the tensors are elsewhere: the draws are then the same on
every device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["draw_chance", "draw_integer", "draw_like", "draw_uniform"]


def draw_uniform(generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """Return a number from [low, high).

    Example:
        >>> import torch
        >>> 2 <= draw_uniform(torch.Generator().manual_seed(0), 2, 3) < 3
        True
    """
    drawn = torch.rand((), generator=generator, device=generator.device, dtype=torch.float64)
    return low + (high - low) * drawn.item()


def draw_integer(generator: torch.Generator, count: int) -> int:
    """Return one of 0, …, count - 1."""
    drawn = torch.randint(count, (), generator=generator, device=generator.device)
    return int(drawn.item())


def draw_chance(generator: torch.Generator, probability: float) -> bool:
    """Return True with this probability.

    Example:
        >>> import torch
        >>> draw_chance(torch.Generator(), 1.0), draw_chance(torch.Generator(), 0.0)
        (True, False)
    """
    return draw_uniform(generator) < probability


def draw_like(
    generator: torch.Generator, tensor: Tensor, shape: Sequence[int], *, normal: bool = True
) -> Tensor:
    """Return N(0, 1) or, with ``normal=False``, [0, 1) numbers in dtype and place of ``tensor``.

    Example:
        >>> import torch
        >>> draw_like(torch.Generator(), torch.empty(1, dtype=torch.float64), (2, 3)).dtype
        torch.float64
    """
    draw = torch.randn if normal else torch.rand
    return draw(tuple(shape), generator=generator, device=generator.device).to(tensor)
