"""Running statistics of batch normalisation when a batch is cut into pieces."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

if TYPE_CHECKING:
    from lightning_fabric import Fabric

__all__ = ["RunningStatistics"]


class RunningStatistics:
    """Makes the running statistics of a step independent of who computes which micro-batch.

    Every micro-batch updates the statistics from where they stood before the step, and their mean
    over all micro-batches is kept. So all processes hold the same ones, and one process that
    accumulates holds those of several that do not. A step of a single micro-batch is left alone.

    Args:
        module: whose batch normalisations are meant.
        micros: micro-batches of a step, over all processes.

    Example:
        >>> import torch
        >>> from upfeat.training import RunningStatistics
        >>> norm = torch.nn.BatchNorm1d(1, momentum=0.5)
        >>> statistics = RunningStatistics(norm, micros=2)
        >>> for value in (1.0, 3.0):
        ...     statistics.begin()
        ...     _ = norm(torch.full((4, 1), value))
        ...     statistics.end()
        >>> statistics.finish(None)
        >>> norm.running_mean.item()  # half of 0 and half of the mean of 1 and 3
        1.0
    """

    def __init__(self, module: nn.Module, micros: int) -> None:
        self.micros = micros
        norms = [m for m in module.modules() if isinstance(m, _NormBase) and micros > 1]
        pairs = [(norm.running_mean, norm.running_var) for norm in norms]
        self.tensors = [tensor for pair in pairs for tensor in pair if tensor is not None]
        self.before: list[Tensor] = []
        self.sums: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Call before each micro-batch."""
        if not self.before:
            self.before = [tensor.clone() for tensor in self.tensors]
            self.sums = [torch.zeros_like(tensor) for tensor in self.tensors]
        for tensor, start in zip(self.tensors, self.before, strict=True):
            tensor.copy_(start)

    @torch.no_grad()
    def end(self) -> None:
        """Call after each micro-batch."""
        for tensor, total in zip(self.tensors, self.sums, strict=True):
            total.add_(tensor)

    @torch.no_grad()
    def finish(self, fabric: "Fabric | None") -> None:
        """Call after the last micro-batch of a step, on every process."""
        if not self.tensors:
            return
        flat = torch.cat([total.flatten() for total in self.sums])
        if fabric is not None and fabric.world_size > 1:
            reduced = fabric.all_reduce(flat, reduce_op="sum")
            if not isinstance(reduced, Tensor):
                raise TypeError(f"all_reduce returned {type(reduced).__name__}, expected a tensor")
            flat = reduced
        means = (flat / self.micros).split([tensor.numel() for tensor in self.tensors])
        for tensor, mean in zip(self.tensors, means, strict=True):
            tensor.copy_(mean.view_as(tensor))
        self.before, self.sums = [], []
