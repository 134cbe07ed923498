"""Time and peak memory of a call."""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

__all__ = ["Cost", "matmul_rate", "measure_memory", "measure_time"]


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
