"""ReSFU against the stored outputs of the original, and its limits."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError
from upfeat.upsamplers.resfu import ReSFU, ReSFUBlock, mix_neighbours


class TestReSFU(UpsamplerContract):
    name = "resfu"


@pytest.mark.golden
def test_golden_of_the_block(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "resfu" / "x4_y32_x64.safetensors")
    block = ReSFUBlock(32, 64).eval()
    state = ReSFU.convert_official(golden_state(tensors))
    block.load_state_dict({key.removeprefix("block."): value for key, value in state.items()})
    features = tensors["input.x"]
    output = block(tensors["input.y"], features, features, (4, 4))
    assert max_abs_difference(output, tensors["output"]) < GOLDEN_ATOL


@pytest.mark.golden
def test_golden_with_the_image_as_guide(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "resfu" / "x16_image_guide.safetensors")
    upsampler = upfeat.from_official("resfu", golden_state(tensors))
    output = upsampler(tensors["input.y"], tensors["input.x"])
    assert max_abs_difference(output, tensors["output"]) < GOLDEN_ATOL


def test_count_of_parameters() -> None:
    upsampler = upfeat.create_upsampler("resfu", feature_dim=384)
    assert sum(p.numel() for p in upsampler.parameters()) == 43_320


def written_out(weights: Tensor, values: Tensor, scale: tuple[int, int]) -> Tensor:
    """The sum of the paper, tap by tap: positions clamped after the offset."""
    grid, size = values.shape[2:], weights.shape[2:]
    out = torch.zeros(len(values), values.shape[1], *size, dtype=values.dtype)
    for tap in range(9):
        axes = []
        for axis, step in enumerate((tap // 3 - 1, tap % 3 - 1)):
            place = torch.arange(size[axis], dtype=values.dtype)
            place = ((place + 0.5) / scale[axis] - 0.5 + step).clamp(0, grid[axis] - 1)
            low = place.floor().long().clamp(max=max(0, grid[axis] - 2))
            axes.append((low, (low + 1).clamp(max=grid[axis] - 1), place - low))
        (top, bottom, f_row), (left, right, f_col) = axes
        upper = values[:, :, top][..., left] * (1 - f_col) + values[:, :, top][..., right] * f_col
        lower = (
            values[:, :, bottom][..., left] * (1 - f_col) + values[:, :, bottom][..., right] * f_col
        )
        sample = upper * (1 - f_row)[:, None] + lower * f_row[:, None]
        out += weights[:, tap, None] * sample
    return out


@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    scale=st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_mixing_equals_the_sum_of_the_paper(grid: tuple[int, int], scale: tuple[int, int]) -> None:
    size = (grid[0] * scale[0], grid[1] * scale[1])
    weights = torch.rand(2, 9, *size, dtype=torch.float64)
    values = torch.randn(2, 3, *grid, dtype=torch.float64)
    expected = written_out(weights, values, scale)
    torch.testing.assert_close(mix_neighbours(weights, values, scale), expected)


def test_lr_mult_scales_the_gradients_of_the_scores_only() -> None:
    image, grads = torch.randn(1, 3, 12, 15, dtype=torch.float64), []
    for lr_mult in (1.0, 500.0):
        torch.manual_seed(0)
        upsampler = upfeat.create_upsampler("resfu", feature_dim=16, lr_mult=lr_mult)
        generator = torch.Generator().manual_seed(1)
        features = torch.randn(1, 16, 4, 5, generator=generator, dtype=torch.float64)
        upsampler.double()(image, features).square().sum().backward()
        grads.append({name: p.grad for name, p in upsampler.named_parameters()})
    for name, grad in grads[0].items():
        assert grad is not None
        scaled = grad * (500 if "_scores" in name else 1)
        torch.testing.assert_close(grads[1][name], scaled, atol=1e-9, rtol=1e-9)


def test_lr_mult_within_torch_func() -> None:
    upsampler = upfeat.create_upsampler("resfu", feature_dim=16, lr_mult=3.0)
    image, features = torch.randn(1, 3, 12, 15), torch.randn(1, 16, 4, 5, requires_grad=True)

    def loss(features: Tensor) -> Tensor:
        return upsampler(image, features).square().mean()

    (expected,) = torch.autograd.grad(loss(features), features)
    torch.testing.assert_close(torch.func.grad(loss)(features.detach()), expected)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"feature_dim": 48}, "32 groups"),
        ({"feature_dim": 16, "groups": 3}, "groups=3"),
        ({"feature_dim": 16, "radius": 1}, "gf_scale"),
    ],
)
def test_refuses_sizes_that_do_not_fit(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        upfeat.create_upsampler("resfu", **options)


def test_refuses_files_of_other_modules(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "resfu" / "x4_y32_x64.safetensors")
    with pytest.raises(CheckpointError, match="32 channels"):
        upfeat.from_official("resfu", golden_state(tensors))
    tensors, _ = load_golden(golden_dir / "resfu" / "x16_image_guide.safetensors")
    state = golden_state(tensors)
    with pytest.raises(CheckpointError, match="ones only"):
        upfeat.from_official("resfu", {**state, "GF.kernel": 2 * state["GF.kernel"]})
    with pytest.raises(CheckpointError, match=r"GF\.kernel"):
        upfeat.from_official("resfu", {k: v for k, v in state.items() if k != "GF.kernel"})
