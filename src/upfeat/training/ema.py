"""The exponential moving average of a module's weights."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from upfeat.training.config import EmaConfig

__all__ = ["WeightAverage"]


class WeightAverage:
    """Follows the weights of a module: ``average = decay * average + (1 - decay) * weights``.

    The average starts at the weights themselves. Buffers are copied.

    Args:
        module: what to follow; it is copied, and the copy holds the average.
        config: decay and interval; the decay must not be None.

    Attributes:
        module: the copy, in evaluation mode, without gradients.

    Example:
        >>> import torch
        >>> from upfeat.training import EmaConfig, WeightAverage
        >>> layer = torch.nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(layer, EmaConfig(decay=0.75))
        >>> before = layer.weight.item()
        >>> with torch.no_grad():
        ...     _ = layer.weight.add_(1)
        >>> average.update(1, layer)
        >>> round(average.module.weight.item() - before, 6)
        0.25
    """

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        if config.decay is None:
            raise ValueError("a weight average needs ema.decay, got None; set for example 0.999")
        self.decay = config.decay
        self.every = config.every
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int, module: nn.Module) -> None:
        """Take the weights after a step into account; steps off the interval do nothing."""
        if step % self.every:
            return
        for mean, value in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(value, 1 - self.decay)
        for buffer, current in zip(self.module.buffers(), module.buffers(), strict=True):
            buffer.copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.module.load_state_dict(state)
