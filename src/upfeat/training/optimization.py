"""What moves and follows weights: optimiser, learning rate, their average, batch statistics."""

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from upfeat.objectives import ema_update
from upfeat.training.config import EmaConfig, OptimizerConfig, ScheduleConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return what the learning rate is multiplied with at a step.

    It depends on the step only, so a resumed run needs no state for it. The warm-up rises linearly
    and reaches 1 at step ``warmup_steps``; what falls does so from there to ``final`` at the
    last step.

    Args:
        schedule: what falls, and after how long a warm-up.
        step: counted from 1.
        steps: of the whole run.

    Example:
        >>> from upfeat.training import ScheduleConfig, learning_rate_factor
        >>> cosine = ScheduleConfig(name="cosine", warmup_steps=2)
        >>> [round(learning_rate_factor(cosine, step, 6), 3) for step in range(1, 7)]
        [0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    warmup = schedule.warmup_steps
    if step < warmup:
        return step / warmup
    if schedule.name == "constant":
        return 1.0
    start = max(warmup, 1)
    progress = (step - start) / max(steps - start, 1)
    if schedule.name == "cosine":
        shape = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        shape = 1 - progress
    return schedule.final + (1 - schedule.final) * shape


def make_optimizer(
    config: OptimizerConfig, parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Build the optimiser over all parameters in one group."""
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.name == "sgd":
        return torch.optim.SGD(parameters, momentum=config.betas[0], **shared)
    family: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "nadam": torch.optim.NAdam,
    }
    options = {"betas": config.betas, "eps": config.eps} | shared
    return family[config.name](parameters, **options)


def check_optimizer_state(
    config: OptimizerConfig, parameters: Sequence[nn.Parameter], state: Mapping[str, Any]
) -> None:
    """Raise unless the stored state of an optimiser fits its parameters.

    ``load_state_dict`` compares the numbers of parameters only, so a moment of a wrong shape, or a
    missing one, would be found by the next step.
    """
    probe = nn.Parameter(torch.zeros(1))
    probe.grad = torch.zeros(1)
    stepped = make_optimizer(config, [probe])
    stepped.step()
    expected = {name: torch.as_tensor(value).dim() for name, value in stepped.state[probe].items()}
    for number, stored in state["state"].items():
        shape = parameters[number].shape
        for name, dimensions in expected.items():
            got = torch.as_tensor(stored[name]).shape
            if got != (shape if dimensions else ()):
                raise ValueError(
                    f"{name} of parameter {number} has shape {tuple(got)}, the parameter has "
                    f"{tuple(shape)}"
                )


class WeightAverage:
    """Follows the weights of a module: ``average = decay * average + (1 - decay) * weights``.

    The average starts at the weights themselves. Buffers are copied.

    Args:
        module: what to follow; it is copied, and the copy holds the average.
        config: decay and interval; the decay must not be None.

    Attributes:
        module: the copy, in evaluation mode, without gradients.
    """

    def __init__(self, module: nn.Module, config: EmaConfig) -> None:
        if config.decay is None:
            raise ValueError("a weight average needs ema.decay, got None; set for example 0.999")
        self.decay = config.decay
        self.every = config.every
        self.module = copy.deepcopy(module).requires_grad_(False).eval()

    def update(self, step: int, module: nn.Module) -> None:
        """Take the weights after a step into account; steps off the interval do nothing."""
        if step % self.every == 0:
            ema_update(self.module, module, self.decay)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the average."""
        return self.module.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self.module.load_state_dict(state)


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
