"""Time and peak memory of a call, and the record of a run with hardware, versions and settings."""

import datetime
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import torch
from pydantic import PositiveFloat, PositiveInt

from upfeat._files import write_bytes
from upfeat.errors import check_file
from upfeat.evaluation.results import FrozenRecord, checkout, processor


@dataclass(frozen=True)
class Cost:
    """Times of repeated calls, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median time."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Longest minus shortest time."""
        return max(self.seconds) - min(self.seconds)


def measure_time(
    call: Callable[[], object],
    *,
    repeats: int = 5,
    warmup: int = 1,
    max_seconds: float = 60.0,
    device: torch.device | None = None,
) -> Cost:
    """Time a call after warming up; device work is waited for.

    Args:
        call: what to time.
        repeats: how often; fewer once ``max_seconds`` are spent, but at least once.
        warmup: calls before, not counted.
        max_seconds: budget of the repeats.
        device: where the work runs.
    """
    for _ in range(warmup):
        call()
    seconds: list[float] = []
    while len(seconds) < repeats and (not seconds or sum(seconds) < max_seconds):
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return Cost(tuple(seconds))


def measure_memory(call: Callable[[], object], device: torch.device | None = None) -> int:
    """Return by how many bytes a call lifts the peak over what is held before it.

    On a GPU that is the allocator's peak. On the CPU it is the resident set, and only the first
    such call of a process is exact: later ones reuse pages that the allocator kept.

    Args:
        call: what to measure.
        device: where the work runs.
    """
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    _reset_peak()
    before = _peak()
    call()
    return _peak() - before


def in_fresh_process(function: Callable[..., int], *arguments: object) -> int:
    """Return the result of a module's function from a fresh (spawned) process.

    Raises:
        RuntimeError: the process ended without a result.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def warm_libraries(dtype: torch.dtype) -> None:
    """Let the matrix and convolution libraries load before the base of a peak is read."""
    x = torch.randn(1, 8, 16, 16).to(dtype)
    torch.nn.functional.conv2d(x, torch.randn(8, 8, 3, 3).to(dtype))
    torch.mm(x.view(64, 32), x.view(32, 64))


@contextmanager
def free_memory_only(device: torch.device | None = None) -> Iterator[None]:
    """Let an allocation beyond the machine's free memory fail, instead of ending the process.

    A plain implementation at 1024 pixels wants more than most machines have; without a limit the
    system would kill the whole run. Does nothing for a GPU, which has a limit of its own and whose
    driver maps far more than it uses, nor where the system does not tell what is free.
    """
    free = _free_bytes() if device is None or device.type == "cpu" else None
    if free is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    wanted = mapped + free
    for limit in (soft, hard):
        if limit != resource.RLIM_INFINITY:
            wanted = min(wanted, limit)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _free_bytes() -> int | None:
    """Return what the system can still hand out without swapping, or None."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(line for line in lines if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    except (OSError, StopIteration):
        return None


def _reset_peak() -> None:
    """Bring the kernel's high-water mark down to the present size, where it allows that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak since the start of the process is the base, which is no smaller


def _peak() -> int:
    """Return the high-water mark of the resident set, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def matmul_rate(dtype: torch.dtype, device: torch.device, side: int = 4096) -> float:
    """Return this machine's matrix product rate in FLOP/s, the best of three."""
    a, b = (torch.randn(side, side).to(device, dtype) for _ in range(2))
    out = torch.empty_like(a)
    cost = measure_time(lambda: torch.mm(a, b, out=out), repeats=3, device=device)
    return 2 * side**3 / min(cost.seconds)


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


# -- records -------------------------------------------------------------------------------------


class Environment(FrozenRecord):
    """Where and with what the numbers were measured."""

    date: str
    commit: str
    upfeat_version: str
    python_version: str
    torch_version: str
    processor: str
    cores: PositiveInt
    memory_bytes: PositiveInt
    gpu: str | None
    threads: PositiveInt
    dtype: str
    matmul_flops: PositiveFloat

    @classmethod
    def here(cls, dtype: torch.dtype, device: torch.device) -> "Environment":
        """Describe this process; measures the matrix product rate (a second or two)."""
        import upfeat

        pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        cuda = device.type == "cuda"
        return cls(
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            commit=checkout(),
            upfeat_version=upfeat.__version__,
            python_version=platform.python_version(),
            torch_version=torch.__version__,
            processor=processor(),
            cores=os.cpu_count() or 1,
            memory_bytes=pages,
            gpu=torch.cuda.get_device_name(device) if cuda else None,
            threads=torch.get_num_threads(),
            dtype=str(dtype).removeprefix("torch."),
            matmul_flops=matmul_rate(dtype, device),
        )


class Measurement(FrozenRecord):
    """One implementation of one method in one case.

    Attributes:
        method: registry name.
        case: name of the case.
        implementation: ours, the plain one, or bilinear interpolation of the same features.
        seconds: every timed call; empty if the case failed.
        peak_bytes: growth of the peak over what is held before the call; 0 if not measured.
        floor_seconds: unavoidable operations over the measured matrix product rate.
        max_difference: largest absolute difference of plain to ours on a small input.
        half_error: mean absolute difference to float32 over the output's standard deviation, at the
            case's own size, where the run is in half precision.
        error: why the case failed.
    """

    method: str
    case: str
    implementation: Literal["upfeat", "plain", "bilinear"]
    seconds: list[float]
    peak_bytes: int
    floor_seconds: float | None = None
    max_difference: float | None = None
    half_error: float | None = None
    error: str | None = None

    @property
    def median_seconds(self) -> float | None:
        """Median time, or None if the call failed."""
        return statistics.median(self.seconds) if self.seconds else None


class BenchmarkRun(FrozenRecord):
    """A whole run."""

    schema_version: Literal[1] = 1
    environment: Environment
    settings: dict[str, str | int | float | bool | None]
    records: list[Measurement]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, whole or not at all."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, f"{self.model_dump_json(indent=1)}\n".encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file is no report.
        """
        check_file(path, "report of a benchmark")
        return cls.read_json(path, "a report of upfeat bench")

    def find(self, method: str, case: str, implementation: str) -> Measurement | None:
        """Return a record that succeeded, or None."""
        wanted = (method, case, implementation)
        for each in self.records:
            if each.error is None and (each.method, each.case, each.implementation) == wanted:
                return each
        return None
