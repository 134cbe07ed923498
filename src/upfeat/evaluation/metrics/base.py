"""The base class of the metrics: ``add`` predictions, ``compute`` scores, ``reset``."""

from abc import ABC, abstractmethod
from typing import Any

import torch.distributed as dist
from torch import Tensor

__all__ = ["Metric"]


class Metric(ABC):
    """Scores of a data set, gathered image by image.

    A subclass keeps sums over images as tensors, names them in :meth:`totals`, and defines ``add``
    with arguments of its own.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.metrics import DepthMetric
        >>> metric, target = DepthMetric(), torch.tensor([[[1.0, 2.0, 4.0]]])
        >>> metric.add(target, target)
        >>> metric.compute()["d1"]
        1.0
        >>> metric.reset()
        >>> metric.compute()["d1"]
        nan
    """

    add: Any  # a method; its arguments differ

    def totals(self) -> tuple[Tensor, ...]:
        """Return the tensors that hold all that was added; they are changed in place."""
        return ()

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Return the scores of everything added so far; NaN where nothing was."""

    def reset(self) -> None:
        """Forget everything that was added."""
        for total in self.totals():
            total.zero_()

    def sync(self) -> None:
        """Add up the totals of all processes of ``torch.distributed``; each then has them all."""
        if dist.is_available() and dist.is_initialized():
            for total in self.totals():
                dist.all_reduce(total)
