"""The affinity loss: every way to compute it is the reference, and none builds the matrix."""

from __future__ import annotations

from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.tolerances import tolerance
from upfeat.objectives.affinity import (
    affinity_loss,
    affinity_loss_blockwise,
    affinity_loss_reference,
)

METHODS = {
    "chosen": affinity_loss,
    "blocks": lambda *args, **kwargs: affinity_loss_blockwise(*args, **kwargs, max_bytes=3000),
}


class LargestTensor(TorchDispatchMode):
    """Remembers the number of values of the largest tensor that any operator returned."""

    values = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.values = max(self.values, tensor.numel())
        return out


@pytest.mark.parametrize("distance", ["l2", "l1"])
@pytest.mark.parametrize("method", METHODS)
@hypothesis.settings(max_examples=8)
@hypothesis.given(
    sizes=st.tuples(*[st.integers(3, 9)] * 3), border=st.sampled_from([0.0, 0.1, 0.3])
)
def test_is_the_reference(
    method: str, distance: str, sizes: tuple[int, int, int], border: float
) -> None:
    maps = [torch.randn(2, *sizes, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    expected = affinity_loss_reference(*maps, distance, border)
    actual = METHODS[method](*maps, distance, border)
    torch.testing.assert_close(actual, expected, **tolerance(torch.float64))
    expected_grads = torch.autograd.grad(expected, maps)
    actual_grads = torch.autograd.grad(3 * actual, maps)
    for one, two in zip(actual_grads, expected_grads, strict=True):
        torch.testing.assert_close(one / 3, two, **tolerance(torch.float64))


def test_gradient_of_one_map_only() -> None:
    pred, target = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8, requires_grad=True)
    for loss in METHODS.values():
        for distance in ("l2", "l1"):
            (grad,) = torch.autograd.grad(loss(pred, target, distance), target)
            (expected,) = torch.autograd.grad(
                affinity_loss_reference(pred, target, distance), target
            )
            torch.testing.assert_close(grad, expected)


def test_nearly_equal_maps_keep_their_digits() -> None:
    # The two large matrices almost cancel here; the loss must not come out as rounding noise.
    target = torch.randn(1, 16, 20, 20)
    pred = target + 1e-4 * torch.randn_like(target)
    exact = affinity_loss_reference(pred.double(), target.double())
    assert float(affinity_loss(pred, target)) == pytest.approx(float(exact), rel=1e-2)


@pytest.mark.parametrize(("distance", "side"), [("l2", 224), ("l1", 64)])
def test_never_allocates_the_matrix(distance: str, side: int) -> None:
    # 224: the 179 x 179 inner pixels of a 448 image's region; the matrix would have 1e9 values.
    pred = torch.randn(1, 6, side, side, requires_grad=True)
    target = torch.randn(1, 6, side, side)
    inner = (int(0.9 * side) - int(0.1 * side)) ** 2
    max_bytes = 2**20
    with LargestTensor() as largest:
        if distance == "l2":
            affinity_loss(pred, target).backward()
        else:
            affinity_loss_blockwise(pred, target, "l1", max_bytes=max_bytes).backward()
    assert inner > 2500
    assert largest.values <= max(pred.numel(), max_bytes // 4)
    assert largest.values < inner**2 / 10


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_within_torch_func(distance: Any) -> None:
    pred, target = torch.randn(2, 1, 4, 6, 6)
    leaf = pred.clone().requires_grad_()
    (expected,) = torch.autograd.grad(affinity_loss(leaf, target, distance), leaf)
    actual = torch.func.grad(affinity_loss)(pred, target, distance)
    torch.testing.assert_close(actual, expected)


def test_half_precision_under_autocast() -> None:
    pred, target = torch.randn(1, 8, 10, 10), torch.randn(1, 8, 10, 10)
    expected = affinity_loss_reference(pred, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = affinity_loss(pred, target)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected)


def test_refuses() -> None:
    x = torch.randn(1, 4, 8, 8)
    with pytest.raises(ValueError, match="'l2' or 'l1'"):
        affinity_loss(x, x, "l3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nothing is left"):
        affinity_loss(x[:, :, :1], x[:, :, :1], border=0.1)
    with pytest.raises(ValueError, match="border"):
        affinity_loss(x, x, border=0.5)
