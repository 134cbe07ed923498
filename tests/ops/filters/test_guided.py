"""The guided filter: goldens, the formulas written out, gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.goldens import load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from upfeat.ops import guided_filter
from upfeat.ops.filters.guided import box_mean, guided_model


@pytest.mark.golden
@pytest.mark.parametrize("case", ["guided_filter_r3_s1", "guided_filter_r8_s2"])
def test_golden(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "classical" / f"{case}.safetensors")
    arguments = meta["arguments"]
    out = guided_filter(
        tensors["input.guide"],
        tensors["input.p"],
        arguments["radius"],
        arguments["eps"],
        arguments["scale"],
    )
    difference = max_abs_difference(out, tensors["output"])
    assert difference <= GOLDEN_ATOL


@pytest.mark.parametrize("radius", [0, 1, 3, 9])
def test_box_mean_by_hand(radius: int) -> None:
    x = torch.randn(1, 2, 5, 4, dtype=torch.float64)
    out = box_mean(x, radius)
    for i in range(5):
        for j in range(4):
            box = x[:, :, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
            torch.testing.assert_close(out[:, :, i, j], box.mean((2, 3)))


def test_model_is_ridge_regression_in_every_box() -> None:
    guide = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    source = torch.randn(1, 2, 4, 5, dtype=torch.float64)
    slopes, offsets = guided_model(guide, source, radius=9, eps=0.1)  # one box: the whole map
    i, p = guide[0].flatten(1), source[0].flatten(1)
    centred = i - i.mean(1, keepdim=True)
    covariance = centred @ centred.T / 20 + 0.1 * torch.eye(3)
    expected = torch.linalg.solve(covariance, centred @ p.T / 20)  # (3, 2)
    torch.testing.assert_close(slopes[0, :, :, 2, 3], expected)
    torch.testing.assert_close(offsets[0, :, 1, 1], p.mean(1) - i.mean(1) @ expected)


def test_one_channel_model_is_the_filter() -> None:
    guide, source = (torch.randn(2, 1, 7, 6, dtype=torch.float64) for _ in range(2))
    slopes, offsets = guided_model(guide, source, radius=2, eps=0.01)
    expected = guided_filter(guide, source, radius=2, eps=0.01)
    torch.testing.assert_close(slopes[:, 0] * guide + offsets, expected)


def test_gradcheck() -> None:
    guide, source = (
        torch.randn(1, 2, 6, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda i, p: guided_filter(i, p, 2, 0.1, 2), (guide, source))
    assert torch.autograd.gradcheck(lambda i, p: guided_model(i, p, 1, 0.1), (guide, source))


def test_every_type(device, dtype) -> None:
    guide, source = (torch.rand(1, 3, 9, 8, device=device).to(dtype) for _ in range(2))
    out = guided_filter(guide, source, 2, 0.1)
    assert out.dtype == dtype
    expected = guided_filter(guide.double(), source.double(), 2, 0.1)
    torch.testing.assert_close(out.double(), expected, **tolerance(dtype))


def test_refuses_what_does_not_fit() -> None:
    x = torch.rand(1, 3, 6, 6)
    with pytest.raises(ValueError, match="one shape"):
        guided_filter(x, x[:, :2], 1, 0.1)
    for arguments in ((-1, 0.1, 1), (1, 0.0, 1), (1, 0.1, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            guided_filter(x, x, *arguments)


@pytest.mark.parametrize("scale", [1.0, 255.0, 1e4])
@pytest.mark.parametrize("kind", ["grey", "flat", "two colours", "one row"])
def test_flat_and_grey_boxes_of_any_range_have_a_solution(kind: str, scale: float) -> None:
    """The covariance is singular there, and rounding may take more from it than eps adds."""
    image = torch.rand(1, 3, 8, 9)
    guide = {
        "grey": image[:, :1].expand(1, 3, 8, 9),
        "flat": torch.full((1, 3, 8, 9), 0.7),
        "two colours": (image[:, :1] > 0.5).float() * torch.tensor([0.9, 0.3, 0.1])[:, None, None],
        "one row": image[:, :, :1, :2],
    }[kind] * scale
    source = torch.randn(1, 4, *guide.shape[2:])
    exact = guided_model(guide.double(), source.double(), radius=2, eps=1e-3)
    slopes, offsets = guided_model(guide, source, radius=2, eps=1e-3)
    fitted, expected = (
        (s * g[:, :, None]).sum(1) + o for s, o, g in ((slopes, offsets, guide), (*exact, guide))
    )
    assert fitted.isfinite().all()
    torch.testing.assert_close(fitted.double(), expected.double(), atol=0.05, rtol=0)
    one = guide[:, :1].expand(-1, 4, -1, -1)
    filtered = guided_filter(one, source, radius=2, eps=1e-3)
    wanted = guided_filter(one.double(), source.double(), radius=2, eps=1e-3)
    torch.testing.assert_close(filtered.double(), wanted, atol=0.05, rtol=0)
