"""Blocks in threads: every block once, the caller's modes, errors, forks, one thread inside."""

import os
import threading

import pytest
import torch

from upfeat.ops.runtime import run_blocks, sum_parts, worker_count

CPU = torch.device("cpu")


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_every_block_once_in_at_most_as_many_workers(threads: int, count: int) -> None:
    states = run_blocks(range(count), lambda block, own: own.append(block), list, CPU)
    assert sorted(block for own in states for block in own) == list(range(count))
    assert len(states) == max(1, min(threads, count))
    assert torch.get_num_threads() == threads


def test_workers_use_one_thread_and_do_not_nest(threads: int) -> None:
    def work(block: int, own: list[tuple[int, int]]) -> None:
        inner = run_blocks(range(4), lambda b, s: s.append(b), list, CPU)
        torch.randn(64, 64) @ torch.randn(64, 64)  # the first product of a thread may reset it
        own.append((torch.get_num_threads(), len(inner)))

    states = run_blocks(range(6), work, list, CPU)
    if threads > 1:
        assert {seen for own in states for seen in own} == {(1, 1)}


def test_a_new_thread_starts_with_the_callers_setting(threads: int) -> None:
    run_blocks(range(4), lambda block, own: None, list, CPU)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [threads]


def test_modes_are_the_callers(threads: int) -> None:
    target = torch.zeros(4)

    def modes(block: int, own: list[tuple[bool, bool]]) -> None:
        own.append((torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")))

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        states = run_blocks(range(4), modes, list, CPU)
        made = torch.zeros(4)
        run_blocks(range(4), lambda i, _: made[i].add_(1), lambda: None, CPU)
    assert {seen for own in states for seen in own} == {(True, True)}
    assert made.tolist() == [1.0] * 4
    with torch.no_grad():
        run_blocks(range(4), lambda i, _: target[i].add_(1), lambda: None, CPU)
    assert target.tolist() == [1.0] * 4


def test_errors_reach_the_caller(threads: int) -> None:
    def fail(block: int, own: None) -> None:
        if block == 3:
            raise ValueError("block 3")

    with pytest.raises(ValueError, match="block 3"):
        run_blocks(range(5), fail, lambda: None, CPU)
    assert run_blocks([1], lambda b, s: s.append(b), list, CPU) == [[1]]


def test_sums_do_not_depend_on_the_race(threads: int) -> None:
    values = torch.randn(50, 1000)

    def total() -> torch.Tensor:
        parts = run_blocks(list(values), lambda v, own: own.add_(v), lambda: torch.zeros(1000), CPU)
        return sum_parts(parts)

    first = total()
    assert all(torch.equal(total(), first) for _ in range(5))


def test_other_devices_run_one_by_one() -> None:
    assert worker_count(torch.device("cuda")) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_starts_its_own_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run_blocks(range(4), lambda b, s: None, list, CPU)
        child = os.fork()
        if child == 0:
            states = run_blocks(range(4), lambda b, s: s.append(b), list, CPU)
            os._exit(0 if len(states) == 2 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)
