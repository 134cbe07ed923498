"""What is measured beside the training: the cost of a run, the loss on held-out images."""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from upfeat.ops.runtime import recycled_memory
from upfeat.training.config import TrainConfig
from upfeat.training.logs import Means
from upfeat.training.optimization import make_optimizer
from upfeat.training.parts import Parts, build_parts
from upfeat.training.processes import derive_seed, flush_denormals, keep_global_draws, pick_device
from upfeat.upsamplers import Upsampler

STEPS = 2
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def _on_device(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


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

    Nothing is written; parts that are given are changed. One process runs them, so that several
    processes that share cores take longer than this estimate.

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
    batch = _on_device(parts.source.batch((step - 1) * count, count), device)
    generator = torch.Generator().manual_seed(derive_seed(config.seed, step, 0))
    _wait(device)
    start = time.perf_counter()
    dtype = AUTOCAST.get(config.precision)
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


@torch.no_grad()
def validation_loss(
    parts: Parts,
    model: Upsampler,
    *,
    batch_size: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[None]],
    seed: int,
) -> dict[str, float]:
    """Return the mean of the objective's terms over the held-out images.

    Crops and draws are the same at each call, so that the numbers of a run compare. Nothing of the
    run changes. The model is the upsampler as it would be exported, in eval mode.

    Raises:
        ValueError: there are no held-out images.
    """
    source = parts.validation
    if source is None or not len(source):
        raise ValueError("this run holds no images out; name some with --val DIR")
    means = Means()
    with _evaluating(parts.objective), torch.random.fork_rng(devices=[]):
        for start in range(0, len(source), batch_size):
            count = min(batch_size, len(source) - start)
            batch = _on_device(source.batch(start, count), device)
            drawn = derive_seed(seed, 0, start)
            torch.manual_seed(drawn)
            generator = torch.Generator().manual_seed(drawn)
            with autocast():
                terms = parts.objective.step(batch, parts.backbones, model, generator)
            for _ in range(count):  # the last batch may be smaller
                means.add({name: float(value) for name, value in terms.items()})
    return means.take()


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, and each of its modules back into its own afterwards."""
    training = [each for each in module.modules() if each.training]
    module.eval()
    try:
        yield
    finally:
        for each in training:
            each.training = True
