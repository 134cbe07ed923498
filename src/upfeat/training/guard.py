"""Noticing that a run has failed: NaN, infinity, divergence."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from upfeat.errors import UpfeatError
from upfeat.training.config import StopConfig

__all__ = ["LossGuard", "TrainingFailedError"]

SMOOTHING = 0.98
SETTLING_STEPS = 50


class TrainingFailedError(UpfeatError, RuntimeError):
    """A run that cannot go on; the message names the step, the batch and the last good state.

    Attributes:
        step: where it happened, counted from 1.
        files: the images of that step.
        checkpoint: the last checkpoint before it, or None.

    Example:
        >>> from upfeat.training import TrainingFailedError
        >>> print(TrainingFailedError("the loss is nan", 7, ["a.jpg"], None))
        step 7: the loss is nan. Images of this step: a.jpg. No checkpoint was written yet. Lower
        optimizer.lr, clip (clip.max_norm=1), use precision=fp32, or look at these images.
    """

    def __init__(
        self, reason: str, step: int, files: Sequence[str], checkpoint: Path | None
    ) -> None:
        self.step = step
        self.files = list(files)
        self.checkpoint = checkpoint
        kept = (
            f"Last good checkpoint: {checkpoint}" if checkpoint else "No checkpoint was written yet"
        )
        super().__init__(
            f"step {step}: {reason}. Images of this step: {', '.join(files) or 'not known'}. "
            f"{kept}. Lower optimizer.lr, clip (clip.max_norm=1), use precision=fp32, or look at "
            "these images."
        )


class LossGuard:
    """Watches the loss and the gradient's norm of each step.

    Args:
        config: when to stop.

    Example:
        >>> from upfeat.training import LossGuard, StopConfig
        >>> LossGuard(StopConfig()).failure_reason(float("nan"), 1.0)
        'the loss is nan'
    """

    def __init__(self, config: StopConfig) -> None:
        self.config = config
        self.smooth: float | None = None
        self.lowest = math.inf
        self.steps = 0
        self.skipped = 0

    def failure_reason(self, loss: float, gradient_norm: float) -> str | None:
        """Take a step into account; return what is wrong with the run, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        self.skipped = 0 if math.isfinite(gradient_norm) else self.skipped + 1
        if self.skipped >= self.config.skipped_steps:
            return f"the gradient was not finite for {self.skipped} steps in a row"
        self.steps += 1
        self.smooth = (
            loss if self.smooth is None else SMOOTHING * self.smooth + (1 - SMOOTHING) * loss
        )
        if self.steps >= SETTLING_STEPS:
            self.lowest = min(self.lowest, self.smooth)
        factor = self.config.divergence_factor
        if factor is not None and 0 < self.lowest * factor < self.smooth:
            return (
                f"the smoothed loss is {self.smooth:.4g}, over {factor:g} times its lowest value "
                f"{self.lowest:.4g} (stop.divergence_factor)"
            )
        return None

    def state_dict(self) -> dict[str, Any]:
        """Return what the judgement of later steps depends on."""
        return {
            "smooth": self.smooth,
            "lowest": self.lowest,
            "steps": self.steps,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.smooth, self.lowest = state["smooth"], state["lowest"]
        self.steps, self.skipped = state["steps"], state["skipped"]
