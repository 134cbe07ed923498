"""DySample against the stored outputs of the original, and its limits."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError
from upfeat.upsamplers.dysample import DySampleStage, grouped_sampling


class TestDySample(UpsamplerContract):
    name = "dysample"
    config = {"stages": 2}  # noqa: RUF012
    guided = False
    refused_transforms = ("jvp",)  # torch has no tangents of grid_sample


@pytest.mark.golden
@pytest.mark.parametrize("case", ["lp", "lp_dyscope_s4_g2", "pl", "pl_dyscope"])
def test_golden(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "dysample" / f"{case}.safetensors")
    upsampler = upfeat.from_official("dysample", golden_state(tensors))
    for name, value in meta["arguments"]["kw"].items():
        assert upsampler.config[name] == value
    features, expected = tensors["input.feats"], tensors["output"]
    output = upsampler(torch.zeros(len(features), 3, 8, 8), features, expected.shape[2:])
    assert max_abs_difference(output, expected) < GOLDEN_ATOL


@pytest.mark.parametrize(
    ("style", "dyscope", "count"),
    [("lp", False, 12_320), ("lp", True, 24_608), ("pl", False, 776), ("pl", True, 1544)],
)
def test_counts_of_parameters(style: str, dyscope: bool, count: int) -> None:
    stage = DySampleStage(384, style=style, dyscope=dyscope)  # type: ignore[arg-type]
    assert sum(p.numel() for p in stage.parameters()) == count


@pytest.mark.parametrize("style", ["lp", "pl"])
def test_starts_as_bilinear_interpolation(style: str) -> None:
    upsampler = upfeat.create_upsampler("dysample", feature_dim=16, style=style, stages=1)
    features = torch.randn(1, 16, 4, 5)
    expected = F.interpolate(features, scale_factor=2, mode="bilinear")
    output = upsampler(torch.zeros(1, 3, 8, 10), features)
    assert (output - expected).abs().max() < 0.02


@pytest.mark.parametrize("style", ["lp", "pl"])
def test_every_weight_of_four_stages_learns(style: str) -> None:
    upsampler = upfeat.create_upsampler("dysample", feature_dim=16, style=style, dyscope=True)
    assert upsampler.info.factor == 16
    features = torch.randn(1, 16, 3, 4, requires_grad=True)
    upsampler(torch.zeros(1, 3, 40, 50), features).square().sum().backward()
    assert features.grad is not None
    for name, parameter in upsampler.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_refuses_what_does_not_fit() -> None:
    for options, match in (
        ({"style": "pp"}, "style"),
        ({"groups": 5}, "groups=5"),
        ({"style": "pl", "scale": 3}, "scale"),
        ({"stages": 0}, "stages"),
    ):
        with pytest.raises(ValueError, match=match):
            upfeat.create_upsampler("dysample", feature_dim=16, **options)
    state = DySampleStage(16).state_dict()
    with pytest.raises(CheckpointError, match="init_pos"):
        upfeat.from_official("dysample", {**state, "init_pos": torch.rand(1, 32, 1, 1)})


def plain_sampling(features: Tensor, positions: Tensor) -> Tensor:
    """The definition, four corners each."""
    groups, dtype = positions.shape[1], torch.promote_types(features.dtype, positions.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    height, width = features.shape[2:]
    grouped = features.to(dtype).unflatten(1, (groups, -1)).flatten(3)  # (B, g, C / g, h * w)
    x, y = positions.to(dtype).unbind(2)  # (B, g, H', W')
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    left, top = x.detach().floor(), y.detach().floor()
    out = grouped.new_zeros(())
    for row in (top, top + 1):
        for col in (left, left + 1):
            weight = (1 - (y - row).abs()) * (1 - (x - col).abs())  # (B, g, H', W')
            cell = row.clamp(max=height - 1) * width + col.clamp(max=width - 1)
            cell = cell.long().flatten(2)[:, :, None].expand(-1, -1, grouped.shape[2], -1)
            picked = grouped.gather(3, cell).unflatten(3, x.shape[2:])  # (B, g, C / g, H', W')
            out = out + weight[:, :, None] * picked
    return out.flatten(1, 2).to(features.dtype)


def inputs(
    size: tuple[int, int],
    groups: int,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    features = torch.randn(2, 2 * groups, *size).to(device, dtype)
    span = torch.tensor([size[1] + 1.0, size[0] + 1.0])[:, None, None]
    positions = torch.rand(2, groups, 2, 6, 7) * span - 1  # also beyond the map
    # Half precision would put positions on pixels, where the derivative jumps.
    positions = positions.to(device, torch.promote_types(dtype, torch.float32))
    return [features.requires_grad_(), positions.requires_grad_()]


def compare(tensors: list[Tensor], limit: dict[str, float]) -> None:
    ours, plain = grouped_sampling(*tensors), plain_sampling(*tensors)
    assert ours.dtype == tensors[0].dtype
    torch.testing.assert_close(ours, plain, **limit)
    grad = torch.randn_like(plain)
    for got, wanted in zip(
        torch.autograd.grad(ours, tensors, grad),
        torch.autograd.grad(plain, tensors, grad),
        strict=True,
    ):
        scaled = {**limit, "atol": limit["atol"] * max(1.0, float(wanted.abs().max()))}
        torch.testing.assert_close(got, wanted, **scaled)


@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), groups=st.integers(1, 3))
def test_any_size(size: tuple[int, int], groups: int) -> None:
    compare(inputs(size, groups), tolerance(torch.float64))


def test_every_type(device: torch.device, dtype: torch.dtype) -> None:
    compare(inputs((5, 6), 2, device=device, dtype=dtype), tolerance(dtype))
