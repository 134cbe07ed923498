"""Workloads, and their runs: times of all in one process, memory of each in a fresh one."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from upfeat.errors import ForeignFileError, UpfeatError
from upfeat.evaluation.benchmark.measure import (
    BenchmarkRun,
    Environment,
    Measurement,
    free_memory_only,
    in_fresh_process,
    measure_memory,
    measure_time,
    warm_libraries,
)
from upfeat.loading import load_upsampler
from upfeat.ops.images import Size
from upfeat.ops.runtime import DrawsFrom
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.fitted import short_fit
from upfeat.upsamplers.registry import get_class

__all__ = ["CASES", "Case", "Rival", "load_rival", "run_benchmark", "scaling_cases"]

Implementation = Literal["upfeat", "plain", "bilinear"]


@dataclass(frozen=True)
class Case:
    """One workload.

    Attributes:
        name: as the tables show it.
        image_size: (H, W) of the guidance.
        grid: (h, w) of the features.
        output_size: (H', W').
        channels: C of the features.
        values: a linear head with so many outputs is wanted; None for the features themselves.
        backward: measure forward and backward instead of forward.
        tiles: consume :meth:`Upsampler.tiles` instead of calling.
    """

    name: str
    image_size: Size
    grid: Size
    output_size: Size
    channels: int = 384
    values: int | None = None
    backward: bool = False
    tiles: bool = False

    @property
    def plain_forward(self) -> bool:
        """Whether the case is one forward call that returns features."""
        return self.values is None and not self.backward and not self.tiles

    def build(self, method: str, dtype: torch.dtype, device: torch.device) -> Upsampler:
        """Return the method with random weights, in eval mode, its fit shortened if it is long."""
        short = short_fit(get_class(method))
        with DrawsFrom(torch.Generator().manual_seed(0)):
            upsampler = load_upsampler(method, self.channels, allow_random=True, **short)
        return upsampler.eval().to(device, dtype)

    def inputs(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return a random image (1, 3, H, W), float32 at least, and features (1, C, h, w)."""
        wide = torch.promote_types(dtype, torch.float32)
        generator = torch.Generator().manual_seed(1)
        image = torch.randn(1, 3, *self.image_size, generator=generator).to(device, wide)
        features = torch.randn(1, self.channels, *self.grid, generator=generator)
        return image, features.to(device, dtype)

    def ours(
        self, upsampler: Upsampler, head: nn.Module | None
    ) -> Callable[[Tensor, Tensor], None]:
        """Return the workload on upfeat: the head goes first where the method allows it."""
        first = upsampler.info.abilities.linear

        def forward(image: Tensor, features: Tensor) -> Tensor:
            if head is None:
                return upsampler(image, features, self.output_size)
            if first:
                return upsampler(image, features, self.output_size, values=head(features))
            return head(upsampler(image, features, self.output_size))

        def tiled(image: Tensor, features: Tensor) -> None:
            values = head(features) if head is not None and first else None
            for _, tile in upsampler.tiles(image, features, self.output_size, values):
                del tile

        return tiled if self.tiles else self._workload(forward, upsampler)

    def rival(
        self, function: Callable[..., Tensor], upsampler: Upsampler, head: nn.Module | None
    ) -> Callable[[Tensor, Tensor], None]:
        """Return the workload on another implementation: features first, then the head."""

        def forward(image: Tensor, features: Tensor) -> Tensor:
            output = function(image.to(features.dtype), features, self.output_size)
            return output if head is None else head(output)

        return self._workload(forward, upsampler)

    def head(self, dtype: torch.dtype, device: torch.device) -> nn.Module | None:
        """Return the linear head of the case, or None."""
        if self.values is None:
            return None
        return nn.Conv2d(self.channels, self.values, 1).to(device, dtype)

    def _workload(
        self, forward: Callable[[Tensor, Tensor], Tensor], upsampler: Upsampler
    ) -> Callable[[Tensor, Tensor], None]:
        def infer(image: Tensor, features: Tensor) -> None:
            with torch.inference_mode():
                forward(image, features)

        gradients: list[Tensor] = []  # of the output, made once: a loss is not the method's cost

        def train(image: Tensor, features: Tensor) -> None:
            upsampler.zero_grad(set_to_none=True)
            output = forward(image, features)
            if not gradients:
                gradients.append(torch.randn_like(output))
            output.backward(gradients[0])

        return train if self.backward else infer


def _square(name: str, image: int, grid: int, output: int, **options: object) -> Case:
    return Case(name, (image, image), (grid, grid), (output, output), **options)  # type: ignore[arg-type]


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        _square("224", 224, 16, 224),
        _square("448", 448, 32, 448),
        _square("448-21", 448, 32, 448, values=21),
        _square("1024", 448, 32, 1024),
        _square("224-train", 224, 16, 224, backward=True),
        _square("448-train", 448, 32, 448, backward=True),
        _square("2048-21", 1024, 64, 2048, values=21),
        _square("2048-tiles", 1024, 64, 2048, tiles=True),
        _square("2048-tiles-full-image", 2048, 64, 2048, tiles=True),
    )
}


def scaling_cases(sides: tuple[int, ...] = (112, 224, 448, 896, 1024, 1536, 2048)) -> list[Case]:
    """Return one case for each output side, all from the same 224 image and 16x16 features."""
    return [_square(f"scaling-{side}", 224, 16, side, tiles=True) for side in sides]


# -- runs ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rival:
    """Other implementations of the methods, to hold against ours.

    Attributes:
        path: the Python file that they came from; None for no rival.
        build: method name to a function that takes our upsampler and returns
            ``call(image, features, output_size)``.
        flops: method name to the floating point operations that a case cannot avoid.
    """

    path: str | None = None
    build: Mapping[str, Callable[[Upsampler], Callable[..., Tensor]]] = field(default_factory=dict)
    flops: Mapping[str, Callable[[Case], float]] = field(default_factory=dict)


def load_rival(path: str | os.PathLike[str] | None) -> Rival:
    """Load a Python file that defines ``PLAIN`` and ``FLOPS``, as ``benchmarks/plain.py`` does.

    Args:
        path: the file; None for no rival.

    Raises:
        ValueError: there is no such file, or it lacks the two names.
    """
    if path is None:
        return Rival()
    if not Path(path).is_file():
        raise ValueError(f"no file {path}; give a Python file with PLAIN and FLOPS, or none")
    spec = importlib.util.spec_from_file_location("upfeat_benchmark_rival", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file; give one with PLAIN and FLOPS, or none")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        return Rival(os.fspath(path), module.PLAIN, module.FLOPS)
    except AttributeError as error:
        raise ValueError(f"{path} must define PLAIN and FLOPS: {error}") from error


def run_benchmark(
    methods: Sequence[str],
    cases: Iterable[Case],
    *,
    rival: Rival | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    threads: int = 2,
    repeats: int = 5,
    warmup: int = 1,
    max_seconds: float = 60.0,
    memory: bool = True,
    on_record: Callable[[Measurement], None] | None = None,
    out: str | os.PathLike[str] | None = None,
) -> BenchmarkRun:
    """Measure methods in cases.

    Args:
        methods: registry names.
        cases: workloads.
        rival: other implementations of the same methods.
        dtype: of weights and inputs.
        device: where to run; default the CPU.
        threads: intra-operator threads on the CPU.
        repeats: timed calls after those that warm up.
        warmup: calls before; calls of a minute need none.
        max_seconds: budget of the repeats of one cell.
        memory: measure the peak too, each in a process of its own on the CPU.
        on_record: called with each record as it comes.
        out: JSON file, written again after each record, so that a run that is cut short leaves
            what it measured. An earlier report there is replaced, anything else is not.

    Raises:
        ForeignFileError: ``out`` is there and no report.

    Example:
        >>> import torch
        >>> from upfeat.evaluation.benchmark import Case, run_benchmark
        >>> case = Case("small", (16, 16), (4, 4), (16, 16), channels=8)
        >>> report = run_benchmark(["nearest"], [case], repeats=2, memory=False)
        >>> [record.implementation for record in report.records]
        ['upfeat', 'bilinear']
    """
    if out is not None and os.path.lexists(out):
        _check_replaced(out)
    rival = rival or Rival()
    device = device or torch.device("cpu")
    settings: dict[str, Any] = {
        "repeats": repeats,
        "warmup": warmup,
        "max_seconds": max_seconds,
        "memory": memory,
        "device": str(device),
        "rival": None if rival.path is None else Path(rival.path).name,
        "short_fit": ", ".join(
            f"{method} {name}={value}"
            for method in methods
            for name, value in short_fit(get_class(method)).items()
        ),
    }
    setup = _Setup(rival, dtype, device)
    timing = {"repeats": repeats, "warmup": warmup, "max_seconds": max_seconds}
    with _threads(threads):
        environment = Environment.here(dtype, device)
        report = BenchmarkRun(environment=environment, settings=settings, records=[])
        for case in cases:
            for method in methods:
                for record in _cell(setup, method, case, environment, timing, memory):
                    report = report.model_copy(update={"records": [*report.records, record]})
                    if out is not None:
                        report.save(out)
                    if on_record is not None:
                        on_record(record)
    return report


def _check_replaced(out: str | os.PathLike[str]) -> None:
    try:
        BenchmarkRun.load(out)
    except (OSError, ValueError) as error:
        raise ForeignFileError(
            f"{os.fspath(out)} is there already and is no report of upfeat bench; name another file"
        ) from error


@dataclass(frozen=True)
class _Setup:
    """What all cells of a run share."""

    rival: Rival
    dtype: torch.dtype
    device: torch.device

    def call(self, implementation: str, method: str, case: Case) -> Callable[[], None]:
        """Return a call without arguments that runs the workload on the same inputs each time."""
        name = "bilinear" if implementation == "bilinear" else method
        upsampler = case.build(name, self.dtype, self.device)
        head = case.head(self.dtype, self.device)
        if implementation == "plain":
            workload = case.rival(self.rival.build[method](upsampler), upsampler, head)
        else:
            workload = case.ours(upsampler, head)
        image, features = case.inputs(self.dtype, self.device)
        if case.backward:
            features.requires_grad_()
        return lambda: workload(image, features)

    def difference(self, method: str, case: Case) -> float:
        """Return the largest difference between the two implementations, at a small size."""
        small = Case("check", (112, 112), (16, 16), (112, 112), case.channels)
        upsampler = small.build(method, self.dtype, self.device)
        image, features = small.inputs(self.dtype, self.device)
        with torch.inference_mode():
            ours = upsampler(image, features, small.output_size)
            theirs = self.rival.build[method](upsampler)(image, features, small.output_size)
        return float((ours.double() - theirs.double()).abs().max())

    def half_error(self, method: str, case: Case) -> float:
        """Return the mean difference to float32 at the case's size, over the output's spread."""
        exact = case.build(method, torch.float32, self.device)
        image, features = case.inputs(torch.float32, self.device)
        with torch.inference_mode():
            expected = exact(image, features, case.output_size)
            half = exact.to(self.dtype)(image, features.to(self.dtype), case.output_size)
            return float((half.float() - expected).abs().mean() / expected.std())

    def peak(self, implementation: str, method: str, case: Case) -> int:
        """Measure the peak where nothing else has run: on the CPU in a spawned process."""
        if self.device.type == "cuda":
            return measure_memory(self.call(implementation, method, case), self.device)
        names = (implementation, method, case, self.rival.path, self.dtype, self.device)
        return in_fresh_process(_measure_memory, *names, torch.get_num_threads())


def _measure_memory(
    implementation: str,
    method: str,
    case: Case,
    path: str | None,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
) -> int:
    torch.set_num_threads(threads)
    call = _Setup(load_rival(path), dtype, device).call(implementation, method, case)
    warm_libraries(dtype)
    with free_memory_only(device):
        return measure_memory(call, device)


def _cell(
    setup: _Setup,
    method: str,
    case: Case,
    environment: Environment,
    timing: Mapping[str, Any],
    memory: bool,
) -> Iterator[Measurement]:
    """Measure all implementations of one method in one case."""
    implementations: list[Implementation] = ["upfeat"]
    if method in setup.rival.build and not case.tiles:
        implementations.append("plain")
    if method != "bilinear":
        implementations.append("bilinear")
    flops = setup.rival.flops.get(method)
    # Backward costs about twice the forward: gradients of inputs and of weights.
    factor = 3.0 if case.backward else 1.0
    floor = None if flops is None else factor * flops(case) / environment.matmul_flops
    for implementation in implementations:
        found: dict[str, Any] = {"seconds": [], "peak_bytes": 0}
        try:
            if implementation == "upfeat" and setup.dtype.itemsize < 4 and case.plain_forward:
                found["half_error"] = setup.half_error(method, case)
            if implementation == "plain" and not case.backward:
                found["max_difference"] = setup.difference(method, case)
            call = setup.call(implementation, method, case)
            # A fit of many steps warms up by itself, and takes too long to be done twice.
            fitted = implementation == "upfeat" and get_class(method).info.abilities.per_image
            once = {"repeats": 1, "warmup": 0} if fitted else {}
            with free_memory_only(setup.device):
                cost = measure_time(call, device=setup.device, **{**timing, **once})
            del call
            if memory:
                found["peak_bytes"] = setup.peak(implementation, method, case)
            found["seconds"] = list(cost.seconds)
            found["floor_seconds"] = floor if implementation != "bilinear" else None
        except (UpfeatError, ValueError, RuntimeError, MemoryError) as error:
            text = f"{type(error).__name__}: {error}"
            found = {"seconds": [], "peak_bytes": 0, "error": text}
        yield Measurement(method=method, case=case.name, implementation=implementation, **found)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
