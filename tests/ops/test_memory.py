"""Memory for large results: an ordinary tensor, whatever its size."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from upfeat.ops.memory import ALIGNMENT, LARGE, new_large


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
