"""Blocks of work on the CPU's cores: one thread a core, each with operators of one thread.

The bounded operators are loops over blocks that fit a core's cache. If each small operator of such
a loop were spread over all cores, the cores would synchronise thousands of times in a call, and
wait for a whole time slice wherever another process has a core. Whole blocks need no such
synchronisation. Torch releases the GIL inside its operators, so threads run in parallel.
"""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

Block = TypeVar("Block")
State = TypeVar("State")

_lock = threading.Lock()
_pools: dict[int, ThreadPoolExecutor] = {}
_worker = threading.local()


def run_blocks(
    blocks: Sequence[Block],
    work: Callable[[Block, State], object],
    state: Callable[[], State],
    device: torch.device,
) -> list[State]:
    """Call ``work`` on every block; on the CPU in as many threads as torch may use.

    A worker takes every n-th block, so that sums over a worker's blocks do not depend on the
    threads' race. Inside a worker, torch and this function use one thread.

    Args:
        blocks: what to do; blocks must not write to the same memory.
        work: does one block, given the worker's state.
        state: makes the state of a worker: buffers, partial sums.
        device: where the tensors are; elsewhere than on the CPU the blocks run one by one.

    Returns:
        The states, one for each worker that had something to do.

    Example:
        >>> import torch
        >>> sums = run_blocks(range(5), lambda i, s: s.append(i), list, torch.device("cpu"))
        >>> sorted(i for worker in sums for i in worker)
        [0, 1, 2, 3, 4]
    """
    count = min(worker_count(device), len(blocks))
    if count <= 1:
        own = state()
        for block in blocks:
            work(block, own)
        return [own]
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    def share(index: int) -> State:
        # Modes belong to a thread; the worker takes over the caller's.
        with (
            torch.inference_mode(inference),
            torch.set_grad_enabled(False),
            torch.autocast("cpu", dtype, enabled=autocast),
        ):
            own = state()
            for block in blocks[index::count]:
                work(block, own)
            return own

    futures: list[Future[State]] = [_pool(count).submit(share, index) for index in range(count)]
    return [future.result() for future in futures]


def worker_count(device: torch.device) -> int:
    """Return how many threads `run_blocks` would use, for the caller to share out its memory."""
    if device.type != "cpu" or getattr(_worker, "active", False):
        return 1
    return torch.get_num_threads()


def sum_parts(parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of the workers' partial sums, in the place of the first."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _pool(count: int) -> ThreadPoolExecutor:
    """Return the pool of ``count`` threads in which torch uses one thread each."""
    with _lock:
        if count not in _pools:
            _pools[count] = _start(count)
        return _pools[count]


def _start(count: int) -> ThreadPoolExecutor:
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(count, "upfeat-block", _use_one_thread)
    meeting = threading.Barrier(count)
    for future in [pool.submit(meeting.wait) for _ in range(count)]:
        future.result()  # by now every thread runs and has its setting
    # A thread's setting is also what threads to come start with; give them the caller's again.
    torch.set_num_threads(threads)
    return pool


def _use_one_thread() -> None:
    torch.get_num_threads()  # a thread's first question overwrites its setting with the process's
    torch.set_num_threads(1)
    _worker.active = True


def _forget_pools(*_: Any) -> None:
    """Start anew in a forked process, which has none of the threads."""
    global _lock
    _lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
