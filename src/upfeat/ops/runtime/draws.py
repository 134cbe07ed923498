"""Random numbers from a generator of one's own, for code that draws from the process's.

A seed for torch's global generator disturbs every thread that draws at the same time, and is
disturbed by them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DrawsFrom"]


class DrawsFrom(TorchDispatchMode):
    """Within, what this thread draws comes from a generator, as if it were the global one.

    It is for building modules and for single calls: every operator passes through Python.

    Args:
        generator: on the CPU; numbers for another device are drawn there and moved.

    Raises:
        RuntimeError: within, an operator draws that takes no generator.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> with DrawsFrom(torch.Generator().manual_seed(0)):
        ...     one = nn.Linear(2, 3)
        >>> with DrawsFrom(torch.Generator().manual_seed(0)):
        ...     other = nn.Linear(2, 3)
        >>> torch.equal(one.weight, other.weight)
        True
    """

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run an operator, with the generator where it draws."""
        kwargs = dict(kwargs or {})
        if torch.Tag.nondeterministic_seeded not in func.tags or kwargs.get("generator"):
            return func(*args, **kwargs)
        if not any(argument.name == "generator" for argument in func._schema.arguments):
            func = getattr(func.overloadpacket, "generator", None) or _refuse(func)
        kwargs["generator"] = self.generator
        if args and isinstance(args[0], Tensor):
            return _fill(func, args[0], args[1:], kwargs)
        device = kwargs.pop("device", None)
        drawn: Tensor = func(*args, **kwargs, device=self.generator.device)
        return drawn if device is None else drawn.to(device)


def _fill(
    func: Callable[..., Tensor], target: Tensor, rest: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor:
    """Run an operator that draws like or into a tensor."""
    if target.device.type == "cpu":
        return func(target, *rest, **kwargs)
    drawn = func(target.cpu(), *rest, **kwargs)
    return target.copy_(drawn)


def _refuse(func: Any) -> Any:
    raise RuntimeError(f"{func} draws from the global generator alone; draw in another way")
