"""Memory for large results: an ordinary tensor, whatever its size."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from upfeat.ops.runtime import memory
from upfeat.ops.runtime.memory import (
    ALIGNMENT,
    LARGE,
    check_fits,
    new_large,
    recycled_memory,
    total_memory,
)


@pytest.mark.parametrize("count", [0, 7, LARGE // 4 - 1, LARGE // 4, LARGE])
def test_is_an_ordinary_tensor(count, device, dtype) -> None:
    like = torch.empty(2, dtype=torch.float64, device=device)
    out = new_large(like, count // 7, 7, dtype=dtype)
    assert out.shape == (count // 7, 7)
    assert out.dtype == dtype
    assert out.device == like.device
    assert out.is_contiguous()
    assert not out.requires_grad
    assert not out.numel() or out.data_ptr() % ALIGNMENT == 0
    assert torch.equal(out.fill_(3) + 1, torch.full_like(out, 4))


def test_takes_the_type_of_its_model() -> None:
    assert new_large(torch.empty(1, dtype=torch.bfloat16), LARGE).dtype == torch.bfloat16


def test_lives_as_long_as_the_tensor() -> None:
    held = [new_large(torch.empty(1), LARGE).fill_(number) for number in range(3)]
    views = [one[-1:] for one in held]
    del held
    assert torch.cat(views).tolist() == [0, 1, 2]


def test_gradients_pass_through_it() -> None:
    weight = torch.ones(1, requires_grad=True)
    (new_large(weight, LARGE).fill_(2) * weight).sum().backward()
    assert weight.grad.item() == 2 * LARGE


def test_fake_tensors_stay_fake() -> None:
    with FakeTensorMode():
        like = torch.empty(1)
        assert type(new_large(like, LARGE)) is type(like)


SMALL = torch.empty(0)


def test_recycled_memory_serves_results_of_the_same_size_only() -> None:
    with recycled_memory():
        first = new_large(SMALL, LARGE)
        place = first.data_ptr()
        view = first[-3:].fill_(7)
        del first
        second = new_large(SMALL, LARGE).fill_(1)
        assert second.data_ptr() != place  # a view still reads the first
        assert view.tolist() == [7, 7, 7]
        del view
        again = new_large(SMALL, LARGE)
        assert again.data_ptr() == place
        del again  # it waits while memory of another size is asked for
        assert new_large(SMALL, LARGE + 64).data_ptr() != place
        again = new_large(SMALL, LARGE)
    used = (again.data_ptr(), second.data_ptr())
    assert new_large(SMALL, LARGE).fill_(3).data_ptr() not in used
    assert again.fill_(2).sum().item() == 2 * LARGE
    assert second.sum().item() == LARGE


def test_recycled_memory_never_keeps_more_than_was_in_use() -> None:
    with recycled_memory():
        recycler = memory._recyclers[-1]
        one, two = (new_large(SMALL, LARGE) for _ in range(2))
        most = recycler._total
        assert most == 2 * (4 * LARGE + ALIGNMENT)
        del one, two
        three = new_large(SMALL, LARGE + LARGE // 2)  # one of the two must make room
        assert recycler._total <= most
        assert len(recycler._waiting) == 0  # 1.5 + 1 would be more than 2
        del three
    assert not recycler._waiting
    assert not recycler._returned


def test_recycled_memory_of_workers_does_not_overlap() -> None:
    def use(number: int) -> bool:
        for round_ in range(20):
            mine = new_large(SMALL, LARGE).fill_(number)
            if mine.min().item() != number or mine.max().item() != number:
                return False
            del mine
            if round_ % 5 == number % 5:
                new_large(SMALL, LARGE + 64 * number)
        return True

    with recycled_memory(), ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(4)))


def test_an_error_ends_recycling() -> None:
    with pytest.raises(RuntimeError, match="inside"), recycled_memory():
        raise RuntimeError("inside")
    assert not memory._recyclers


def test_what_no_memory_holds_is_refused() -> None:
    like = torch.zeros(1)
    check_fits((2, 3), like, "this", "that")
    with pytest.raises(
        ValueError, match=r"this \(1, 4, 1000000000, 1000000000\) takes .* GB.*; ask"
    ):
        check_fits((1, 4, 10**9, 10**9), like, "this", "ask for less")
    check_fits((1, 4, 10**9, 10**9), like.to("meta"), "this", "ask for less")
    assert total_memory(like.device) > 2**28
