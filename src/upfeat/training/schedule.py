"""Optimisers and learning-rate schedules, made from their settings."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from upfeat.training.config import OptimizerConfig, ScheduleConfig

__all__ = ["learning_rate_factor", "make_optimizer"]


def learning_rate_factor(schedule: ScheduleConfig, step: int, steps: int) -> float:
    """Return what the learning rate is multiplied with at a step.

    It depends on the step only, so a resumed run needs no state for it. The warm-up rises linearly
    and reaches 1 at step ``warmup_steps``; what falls does so from there to ``final`` at the
    last step.

    Args:
        schedule: the settings.
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
    """Build the optimiser over all parameters in one group.

    Args:
        config: the settings.
        parameters: what to train.

    Example:
        >>> import torch
        >>> from upfeat.training import OptimizerConfig, make_optimizer
        >>> make_optimizer(OptimizerConfig(name="nadam"), [torch.nn.Parameter(torch.ones(2))])
        NAdam (...
    """
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

    Args:
        config: the settings of the optimiser.
        parameters: what it trains, in order.
        state: what its ``state_dict`` returned.

    Raises:
        ValueError: a tensor is missing or has another shape than its parameter.
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
