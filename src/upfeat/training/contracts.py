"""The interfaces of the engine: its source of batches, its callbacks, their reports."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from upfeat.training.engine import Trainer

__all__ = ["Batch", "BatchSource", "Callback", "StepReport", "TrainResult"]

Batch = dict[str, Any]


class BatchSource(Protocol):
    """An endless, fixed sequence of training images that can be read at any position.

    The sequence depends on its seed only, never on the number of readers, so a run is continued
    by position and shared among processes by position.
    """

    def __len__(self) -> int:
        """Return the number of different images."""
        ...

    def batch(self, start: int, count: int) -> Mapping[str, Any]:
        """Return the images at positions ``start`` to ``start + count - 1`` as one batch.

        Returns:
            ``image`` (B, 3, H, W) in [0, 1], ``paths`` (list of B), and what the objective needs.
        """
        ...

    def describe(self) -> dict[str, Any]:
        """Return what identifies the sequence, as JSON: a resumed run must find the same."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        step: counted from 1.
        numbers: ``loss``, the other terms of the objective, ``lr`` and ``gradient_norm``.
        images_per_second: over the last steps.
        seconds_left: at that rate.
    """

    step: int
    numbers: dict[str, float]
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class TrainResult:
    """What a finished run left behind.

    Attributes:
        folder: of the run.
        model: folder of ``save_pretrained``.
        loss: mean of the last log interval.
        seconds: of training, summed over the first start and all resumptions.
        curve: rows of ``log.csv``.
    """

    folder: Path
    model: Path
    loss: float
    seconds: float
    curve: Sequence[dict[str, float]]


class Callback:
    """Watches a run on its first process; override what is needed.

    A callback must not change the modules it is shown; ``trainer.current_model()`` is a copy.

    Example:
        >>> from upfeat.training import Callback
        >>> class Losses(Callback):
        ...     def __init__(self):
        ...         self.values = []
        ...
        ...     def on_step(self, trainer, report):
        ...         self.values.append(report.numbers["loss"])
    """

    def on_start(self, trainer: "Trainer", step: int) -> None:
        """Called before the first step; ``step`` steps are done already."""

    def on_step(self, trainer: "Trainer", report: StepReport) -> None:
        """Called after each step."""

    def on_checkpoint(self, trainer: "Trainer", step: int, path: Path) -> None:
        """Called after a checkpoint was written."""

    def on_end(self, trainer: "Trainer", result: TrainResult) -> None:
        """Called after the model was exported."""


def to_floats(terms: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the scalars of an objective as numbers."""
    return {name: float(value.detach()) for name, value in terms.items()}
