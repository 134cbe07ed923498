"""DySample against the stored outputs of the original, and its limits."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError
from upfeat.upsamplers.dysample import DySampleStage


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
