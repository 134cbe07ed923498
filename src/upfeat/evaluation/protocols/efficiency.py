"""What an upsampler costs, in the published tables' settings: time, peak memory, operations.

``jafar_paper`` (tables 10 and 11 of arXiv 2506.11136): an image of 448, features of 448 / 14, four
output sizes. ``jafar_released``: what its test script does instead, image, features and output grow
together. ``naf``: features of 28, an image of 448, ratios of 2 to 32. ``loftup`` (table 7 of
arXiv 2504.14032): backbone and upsampler together, one image of 224.

The first three measure the upsampler alone on random tensors. Time: 5 calls to warm up, then 10
measured ones, mean. Forward: without gradients. Forward and backward: a 1x1 convolution to one
channel, its sum, backward to image, features and weights, one SGD step. Memory: growth of the peak
over what is held before the call, weights and inputs not counted; on the CPU in a fresh process.
Operations: those of the method's definition, the same on every machine. The rows ``large:8`` and
``strided:6`` are the backbone itself, whose cost is theirs in every preset; ``low-res`` costs the
backbone, and nothing beside it.
"""

import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt, model_validator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from upfeat.backbones import Backbone
from upfeat.errors import UnsupportedError, UpfeatError
from upfeat.evaluation.benchmark import measure_memory, measure_time
from upfeat.evaluation.benchmark.measure import free_memory_only, in_fresh_process, warm_libraries
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.registry import Presets, Progress, Protocol, cost, register_protocol, silent
from upfeat.evaluation.results import Result, Score, processor
from upfeat.evaluation.running import Measured, Pending, ProtocolRun
from upfeat.loading import FinerGrid
from upfeat.ops.images import Size
from upfeat.ops.runtime import counting_operations
from upfeat.upsamplers.fitted import with_views

__all__ = ["PRESETS", "EfficiencyConfig", "efficiency_preset", "run_efficiency"]

TASK = "efficiency"
# torch's counter takes the in-place forms of these products for nothing.
_IN_PLACE = {
    torch.ops.aten.addmm_: flop_registry[torch.ops.aten.addmm],
    torch.ops.aten.baddbmm_: flop_registry[torch.ops.aten.baddbmm],
}
Pass = Literal["forward", "backward"]


class EfficiencyConfig(BaseModel):
    """Settings of the measurement; all of them stand in the result.

    Attributes:
        preset: the table that the settings come from.
        cells: (image side, feature grid side, output side), one column of the table each.
        channels: C of the features; with a backbone, its own width counts instead.
        passes: forward, and forward with backward.
        warmup, repeats: calls before, and timed calls.
        dtype: of weights and features.
        threads: on the CPU.
        memory: measure the peak.
        operations: count operations of matrix products and convolutions, 2 for a multiply-add, as
            the method is defined: what a faster implementation saves or computes twice is no part.
        with_backbone: measure backbone and upsampler together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    preset: Literal["jafar_paper", "jafar_released", "loftup", "naf"]
    cells: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...]
    channels: PositiveInt = 384
    passes: tuple[Pass, ...] = ("forward", "backward")
    warmup: PositiveInt = 5
    repeats: PositiveInt = 10
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: PositiveInt = 2
    memory: bool = True
    operations: bool = True
    with_backbone: bool = False

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.with_backbone and "backward" in self.passes:
            raise ValueError("a frozen backbone has no backward pass; measure passes=[forward]")
        return self


_SIDES = (56, 112, 224, 448)
PRESETS: dict[str, dict[str, Any]] = {
    "jafar_paper": {"cells": tuple((448, 32, side) for side in _SIDES)},
    "jafar_released": {"cells": tuple((side, side // 14, side) for side in _SIDES)},
    "naf": {"cells": tuple((448, 28, 28 * ratio) for ratio in (2, 4, 8, 16, 32))},
    "loftup": {"cells": ((224, 16, 224),), "passes": ("forward",), "with_backbone": True},
}


efficiency_preset = Presets(EfficiencyConfig, PRESETS)


@dataclass(frozen=True)
class _Cell:
    """One column of the table for one method; can be sent to another process."""

    method: Method
    backbone: Backbone | None
    config: EfficiencyConfig
    sides: tuple[int, int, int]
    which: Pass

    @property
    def name(self) -> str:
        """Return the output side, with the image's where that differs between the columns."""
        image, _, output = self.sides
        return f"{output}" if self.config.preset != "jafar_released" else f"{image}"

    @property
    def networks(self) -> list[nn.Module]:
        """What is measured: the upsampler, and the backbone where it counts."""
        modules: list[nn.Module] = [self.method.upsampler]
        counts = not isinstance(self.method.upsampler, FinerGrid)  # which holds its backbone
        return modules if self.backbone is None or not counts else [*modules, self.backbone]

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        weights = itertools.chain(*(module.parameters() for module in self.networks))
        return next(weights, torch.empty(0)).device

    def call(self) -> Callable[[], object]:
        """Return the workload, a call without arguments on the same inputs each time."""
        device, dtype, backbone = self.device, getattr(torch, self.config.dtype), self.backbone
        image_side, grid, output = self.sides
        size, free = (output, output), torch.no_grad()
        generator = torch.Generator().manual_seed(0)
        upsampler = copy.deepcopy(self.method.upsampler).to(dtype)  # the step changes weights
        image = torch.randn(1, 3, image_side, image_side, generator=generator).to(device)
        finer = isinstance(upsampler, FinerGrid)
        if isinstance(self.method, LowRes) and backbone is None:
            raise UnsupportedError(
                "low-res has no upsampler to measure; its cost is the backbone's, which preset "
                "loftup measures"
            )
        if finer and self.which == "backward":
            raise UnsupportedError(f"{upsampler.info.name} is a frozen backbone: no backward pass")
        if backbone is not None and not finer:
            if isinstance(self.method, LowRes):
                return free(lambda: backbone(image))
            with_both = with_views(upsampler, backbone)
            return free(lambda: with_both(image, backbone(image), size))
        if upsampler.info.views and not finer:
            raise UnsupportedError(
                f"{upsampler.info.name} looks at views of the image through the backbone, which "
                f"preset {self.config.preset} does not have; measure it with preset loftup"
            )
        shape = (1, self.config.channels, grid, grid)
        features = torch.randn(shape, generator=generator).to(device, dtype)
        if self.which == "forward":
            return free(lambda: upsampler(image, features, size))
        return _step(upsampler, image, features, size)


def _operations(cell: _Cell) -> int:
    """Count the operations of a forward call as the method is defined."""
    upsampler, backbone = cell.method.upsampler, cell.backbone
    decided = upsampler.info.abilities.per_image  # what it does is decided by the values
    if decided or isinstance(upsampler, FinerGrid) or isinstance(cell.method, LowRes):
        return _counted(cell.call())
    image_side, grid, output = cell.sides
    shape: tuple[int, ...] = (1, cell.config.channels, grid, grid)
    image = torch.zeros(1, 3, image_side, image_side)
    total = 0
    if backbone is not None:
        weight = next(backbone.parameters(), image)
        seen = image.to(weight.device)
        with torch.no_grad():
            total = _counted(lambda: backbone(seen))
        shape = (1, backbone.dim, *backbone.grid_size((image_side, image_side)))
    # Without values nothing is computed; no thread and no kernel of a GPU hides from the counter.
    definition = copy.deepcopy(upsampler).to("meta")
    size, guidance = (output, output), image.to("meta")
    features = torch.empty(shape, device="meta")
    with torch.no_grad(), counting_operations():
        return total + _counted(lambda: definition(guidance, features, size))


def _counted(call: Callable[[], object]) -> int:
    """Count matrix products, convolutions and attention of a call, in this thread alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with FlopCounterMode(display=False, custom_mapping=_IN_PLACE) as counter:
            call()
    finally:
        torch.set_num_threads(before)
    return counter.get_total_flops()


def _step(
    upsampler: nn.Module, image: Tensor, features: Tensor, size: Size
) -> Callable[[], object]:
    """Forward, ``conv1x1(out).sum()``, backward and an SGD step."""
    head = nn.Conv2d(features.shape[1], 1, 1).to(features.device, features.dtype)
    parameters = [*upsampler.parameters(), *head.parameters()]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.SGD(parameters, lr=1e-6)
    image.requires_grad_()
    features.requires_grad_()

    def call() -> None:
        optimizer.zero_grad()
        image.grad = features.grad = None
        head(upsampler(image, features, size)).sum().backward()
        optimizer.step()

    return call


def run_efficiency(
    config: EfficiencyConfig,
    methods: Sequence[Method],
    *,
    backbone: Backbone | None = None,
    out: str | Path,
    on_progress: Progress | None = None,
) -> list[Result]:
    """Measure upsamplers, see :attr:`Protocol.run`; on this kind of processor known ones are read.

    A backbone is needed by presets that measure it, too; for the others its width counts. Scores
    are ``parameters`` in millions and, for each column SIDE, ``ms_forward_SIDE``,
    ``mb_forward_SIDE``, ``ms_backward_SIDE``, ``mb_backward_SIDE`` and ``gflop_SIDE``. What could
    not be measured (out of memory, no gradients) is missing, and ``details["failures"]`` says why.
    A result without any measured column has no scores and is not stored.

    Raises:
        ValueError: the preset measures a backbone and there is none.

    Example:
        >>> import tempfile, upfeat
        >>> from upfeat.evaluation.methods import Method
        >>> from upfeat.evaluation.protocols.efficiency import efficiency_preset, run_efficiency
        >>> config = efficiency_preset("naf", cells=((32, 4, 16),), repeats=2, memory=False)
        >>> methods = [Method("bilinear", upfeat.create_upsampler("bilinear"))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = run_efficiency(config, methods, out=folder)[0]
        >>> sorted(result.scores)
        ['gflop_16', 'ms_backward_16', 'ms_forward_16', 'parameters']
    """
    if config.with_backbone and backbone is None:
        raise ValueError(f"preset {config.preset} measures the backbone, too; name one")
    network = backbone if config.with_backbone else None
    if backbone is not None:
        config = config.model_copy(update={"channels": backbone.dim})
    return _Measuring(config, Path(out), on_progress or silent, network).run(methods)


@dataclass(eq=False)
class _Measuring(ProtocolRun):
    """The columns of one preset."""

    task = TASK
    unit = "ms, MB, GFLOP (2 a multiply-add), millions of parameters, as the names say"

    config: EfficiencyConfig
    backbone: Backbone | None

    @property
    def group(self) -> str:
        return self.config.preset

    def settings(self, method: Method) -> dict[str, Any]:
        device = next(method.upsampler.parameters(), torch.empty(0)).device
        return super().settings(method) | {
            "backbone": None if self.backbone is None else {"name": self.backbone.name},
            "processor": processor(),
            "device": str(device),
        }

    def measure_all(self, pending: Sequence[Pending]) -> Iterator[Measured]:
        """Measure one method after the other."""
        yield from map(self.measure, pending)

    def measure(self, pending: Pending) -> Measured:
        """Measure all columns of one method."""
        method, config = pending.method, self.config
        failures: dict[str, str] = {}
        cells = [
            _Cell(method, self.backbone, config, sides, which)
            for which in config.passes
            for sides in config.cells
        ]
        counted = itertools.chain(*(module.parameters() for module in cells[0].networks))
        scores = {"parameters": Score.of([sum(weight.numel() for weight in counted) / 1e6])}
        before = torch.get_num_threads()
        torch.set_num_threads(config.threads)
        try:
            for number, cell in enumerate(cells):
                self.on_progress(method.label, f"{cell.which} {cell.name}", number, len(cells))
                try:
                    scores |= _numbers(cell)
                except (UpfeatError, ValueError, RuntimeError, MemoryError) as error:
                    failures[f"{cell.which}_{cell.name}"] = f"{type(error).__name__}: {error}"
        finally:
            torch.set_num_threads(before)
        measured = any(name.startswith("ms_") for name in scores)
        details = {"failures": failures} | _parameter_note(method, cells[0].networks)
        return scores if measured else {}, details

    def save(self, pending: Pending, scores: dict[str, Score], details: dict[str, Any]) -> Result:
        """Write a result that holds a measured column."""
        keep = super().save if scores else self.result
        return keep(pending, scores, details)


def _parameter_note(method: Method, networks: Sequence[nn.Module]) -> dict[str, str]:
    """Say how many parameters the published network has where some of them do nothing."""
    unused = method.upsampler.unused_parameters
    if not unused:
        return {}
    held = sum(weight.numel() for module in networks for weight in module.parameters())
    return {
        "note": f"the published network has {held + unused:,} parameters; {unused:,} of them are a "
        "value path that never reaches the output, and are not held here"
    }


def _numbers(cell: _Cell) -> dict[str, Score]:
    """Measure one column."""
    config, call, device = cell.config, cell.call(), cell.device
    tail = f"{cell.which}_{cell.name}"
    with free_memory_only(device):
        cost = measure_time(
            call, warmup=config.warmup, repeats=config.repeats, max_seconds=float("inf"),
            device=device,
        )  # fmt: skip
        scores = {f"ms_{tail}": Score.of([1e3 * seconds for seconds in cost.seconds])}
        if config.operations and cell.which == "forward":
            scores[f"gflop_{cell.name}"] = Score.of([_operations(cell) / 1e9])
    del call
    if config.memory:
        peak = _peak(cell, device)
        scores[f"mb_{tail}"] = Score.of([peak / 2**20])
    return scores


def _peak(cell: _Cell, device: torch.device) -> int:
    """Measure the peak where nothing else has run: a spawned process, on the CPU."""
    if device.type == "cuda":
        return measure_memory(cell.call(), device)
    return in_fresh_process(_peak_here, cell)


def _peak_here(cell: _Cell) -> int:
    torch.set_num_threads(cell.config.threads)
    call = cell.call()
    warm_libraries(torch.float32)
    with free_memory_only():
        return measure_memory(call)


register_protocol(
    Protocol(
        name=TASK,
        title="Time and memory",
        summary="Measure time, peak memory and FLOPs in the settings of the papers' tables.",
        scores={
            "parameters": cost("parameters", "million"),
            "ms_forward": cost("forward time", "ms"),
            "mb_forward": cost("forward memory", "MB"),
            "ms_backward": cost("forward and backward time", "ms"),
            "mb_backward": cost("forward and backward memory", "MB"),
            "gflop": cost("operations", "GFLOP"),
        },
        configure=efficiency_preset,
        presets=tuple(PRESETS),
        run=run_efficiency,
        width=lambda config: int(config.channels),
        weights="untrained",
    )
)
