"""Run the cases: times of all implementations in one process, memory of each in a fresh one."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from upfeat.errors import ForeignFileError, UpfeatError
from upfeat.evaluation.benchmark.cases import Case
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
from upfeat.upsamplers.base import Upsampler
from upfeat.upsamplers.fitted import short_fit
from upfeat.upsamplers.registry import get_class

__all__ = ["Rival", "load_rival", "run_benchmark"]

Implementation = Literal["upfeat", "plain", "bilinear"]
Workload = Callable[[Tensor, Tensor], None]


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
    with _threads(threads):
        environment = Environment.here(dtype, device)
        report = BenchmarkRun(environment=environment, settings=settings, records=[])
        for case in cases:
            for method in methods:
                for record in _cell(
                    method, case, rival, dtype, device, environment,
                    repeats, warmup, max_seconds, memory,
                ):  # fmt: skip
                    records = [*report.records, record]
                    report = BenchmarkRun(
                        environment=environment, settings=settings, records=records
                    )
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


def _cell(
    method: str,
    case: Case,
    rival: Rival,
    dtype: torch.dtype,
    device: torch.device,
    environment: Environment,
    repeats: int,
    warmup: int,
    max_seconds: float,
    memory: bool,
) -> Iterator[Measurement]:
    """Measure all implementations of one method in one case."""
    implementations: list[Implementation] = ["upfeat"]
    if method in rival.build and not case.tiles:
        implementations.append("plain")
    if method != "bilinear":
        implementations.append("bilinear")
    flops = rival.flops.get(method)
    # Backward costs about twice the forward: gradients of inputs and of weights.
    factor = 3.0 if case.backward else 1.0
    floor = None if flops is None else factor * flops(case) / environment.matmul_flops
    for implementation in implementations:
        try:
            difference = half_error = None
            if implementation == "upfeat" and dtype.itemsize < 4 and case.plain_forward:
                half_error = _half_error(method, case, dtype, device)
            if implementation == "plain" and not case.backward:
                difference = _difference(method, case, rival, dtype, device)
            call = _call(implementation, method, case, rival, dtype, device)
            # A fit of many steps warms up by itself, and takes too long to be done twice.
            fitted = implementation == "upfeat" and get_class(method).info.abilities.per_image
            with free_memory_only(device):
                cost = measure_time(
                    call,
                    repeats=1 if fitted else repeats,
                    warmup=0 if fitted else warmup,
                    max_seconds=max_seconds,
                    device=device,
                )
            del call
            peak = 0
            if memory:
                arguments = (implementation, method, case, rival.path, dtype, device)
                peak = _memory_in_fresh_process(arguments, torch.get_num_threads())
            yield Measurement(
                method=method,
                case=case.name,
                implementation=implementation,
                seconds=list(cost.seconds),
                peak_bytes=peak,
                floor_seconds=floor if implementation != "bilinear" else None,
                max_difference=difference,
                half_error=half_error,
            )
        except (UpfeatError, ValueError, RuntimeError, MemoryError) as error:
            yield Measurement(
                method=method,
                case=case.name,
                implementation=implementation,
                seconds=[],
                peak_bytes=0,
                error=f"{type(error).__name__}: {error}",
            )


def _call(
    implementation: Implementation,
    method: str,
    case: Case,
    rival: Rival,
    dtype: torch.dtype,
    device: torch.device,
) -> Callable[[], None]:
    """Return a call without arguments that runs the workload on the same inputs each time."""
    name = "bilinear" if implementation == "bilinear" else method
    upsampler = case.build(name, dtype, device)
    head = case.head(dtype, device)
    workload: Workload
    if implementation == "plain":
        workload = case.rival(rival.build[method](upsampler), upsampler, head)
    else:
        workload = case.ours(upsampler, head)
    image, features = case.inputs(dtype, device)
    if case.backward:
        features.requires_grad_()
    return lambda: workload(image, features)


def _difference(
    method: str, case: Case, rival: Rival, dtype: torch.dtype, device: torch.device
) -> float:
    """Return the largest difference between the two implementations, at a small size."""
    small = Case("check", (112, 112), (16, 16), (112, 112), case.channels)
    upsampler = small.build(method, dtype, device)
    image, features = small.inputs(dtype, device)
    with torch.inference_mode():
        ours = upsampler(image, features, small.output_size)
        theirs = rival.build[method](upsampler)(image, features, small.output_size)
    return float((ours.double() - theirs.double()).abs().max())


def _half_error(method: str, case: Case, dtype: torch.dtype, device: torch.device) -> float:
    """Return the mean difference to float32 at the case's size, in units of the output's spread."""
    exact = case.build(method, torch.float32, device)
    image, features = case.inputs(torch.float32, device)
    with torch.inference_mode():
        expected = exact(image, features, case.output_size)
        half = exact.to(dtype)(image, features.to(dtype), case.output_size)
        return float((half.float() - expected).abs().mean() / expected.std())


def _memory_in_fresh_process(arguments: tuple[Any, ...], threads: int) -> int:
    """Measure the peak where nothing else has run: a spawned process."""
    implementation, method, case, path, dtype, device = arguments
    if device.type == "cuda":
        call = _call(implementation, method, case, load_rival(path), dtype, device)
        return measure_memory(call, device)
    return in_fresh_process(_measure_memory, *arguments, threads)


def _measure_memory(
    implementation: Implementation,
    method: str,
    case: Case,
    path: str | None,
    dtype: torch.dtype,
    device: torch.device,
    threads: int,
) -> int:
    torch.set_num_threads(threads)
    call = _call(implementation, method, case, load_rival(path), dtype, device)
    warm_libraries(dtype)
    with free_memory_only(device):
        return measure_memory(call, device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
