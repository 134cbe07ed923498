"""What a run will cost, measured with two real steps before it starts."""

import resource
import sys
import time
from dataclasses import dataclass

import torch

from upfeat.ops.runtime import recycled_memory
from upfeat.training.config import TrainConfig
from upfeat.training.optimization import make_optimizer
from upfeat.training.parts import Parts, build_parts
from upfeat.training.processes import (
    PRECISIONS,
    derive_seed,
    flush_denormals,
    keep_global_draws,
    pick_device,
)

__all__ = ["CostEstimate", "measure_cost"]

STEPS = 2


@dataclass(frozen=True)
class CostEstimate:
    """Cost of a run.

    Attributes:
        step_seconds: of one optimiser step.
        seconds: of the whole run, reading ahead and writing not counted.
        peak_bytes: on a GPU what the allocator held at most; on the CPU the peak of the
            process, Python and libraries included. Of each process, where there are several.
        device: where it was measured.
    """

    step_seconds: float
    seconds: float
    peak_bytes: int
    device: str


@keep_global_draws()
def measure_cost(config: TrainConfig, parts: Parts | None = None) -> CostEstimate:
    """Run two optimiser steps of one micro-batch on throw-away weights; the second one is timed.

    Nothing is written. One process runs them, so that several processes that share cores take
    longer than this estimate.

    Args:
        config: the settings.
        parts: what to use (and change); default: built from ``config``.

    Raises:
        ValueError: what the run itself would refuse.
    """
    torch.manual_seed(derive_seed(config.seed))
    parts = build_parts(config) if parts is None else parts
    device = pick_device(config)
    trainable = parts.prepare(config.data.crop_size, device)
    optimizer = make_optimizer(config.optimizer, trainable)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = 0.0
    with flush_denormals(), recycled_memory():
        for step in range(1, STEPS + 1):
            seconds = _step(config, parts, optimizer, device, step)
    step_seconds = seconds * config.accumulate
    return CostEstimate(step_seconds, step_seconds * config.steps, _peak(device), str(device))


def _step(
    config: TrainConfig,
    parts: Parts,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
    step: int,
) -> float:
    """Do a step of one micro-batch and return its seconds, reading not counted."""
    count = config.micro_batch(config.devices)
    batch = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in parts.source.batch((step - 1) * count, count).items()
    }
    generator = torch.Generator().manual_seed(derive_seed(config.seed, step, 0))
    _wait(device)
    start = time.perf_counter()
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(
        PRECISIONS[config.precision]
    )
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        terms = parts.objective.step(batch, parts.backbones, parts.upsampler, generator)
    optimizer.zero_grad(set_to_none=True)
    terms["loss"].backward()
    optimizer.step()
    parts.objective.after_step(step, parts.upsampler)
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
