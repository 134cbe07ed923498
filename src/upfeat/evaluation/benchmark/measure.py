"""Time and peak memory of a call."""

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = [
    "Cost",
    "free_memory_only",
    "in_fresh_process",
    "matmul_rate",
    "measure_memory",
    "measure_time",
    "warm_libraries",
]


@dataclass(frozen=True)
class Cost:
    """Times of repeated calls, in seconds.

    Example:
        >>> from upfeat.evaluation.benchmark import Cost
        >>> Cost((1.0, 2.0, 4.0)).median
        2.0
    """

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

    Example:
        >>> from upfeat.evaluation.benchmark import measure_time
        >>> len(measure_time(lambda: sum(range(100)), repeats=3).seconds)
        3
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

    Example:
        >>> import torch
        >>> from upfeat.evaluation.benchmark import measure_memory
        >>> measure_memory(lambda: torch.ones(32 * 2**20 // 4).sum()) >= 0
        True
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
    """Return what a function of a module says where nothing else has run: a spawned process.

    Raises:
        RuntimeError: the process ended before it said anything.
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

    Example:
        >>> import torch
        >>> from upfeat.evaluation.benchmark.measure import free_memory_only
        >>> with free_memory_only():
        ...     total = torch.ones(4).sum().item()
        >>> total
        4.0
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
