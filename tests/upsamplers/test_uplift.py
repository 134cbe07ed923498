"""UPLiFT: goldens of the original code, its configurations, with and without a graph."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import FUSED_GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.upsamplers.registry import get_checkpoint
from upfeat.upsamplers.uplift import NEIGHBOURHOODS

SMALL: dict[str, Any] = {
    "taps": 9,
    "encoder": [{"block": "single", "widths": [6]}, {"block": "single", "widths": [8]}],
    "decoder": [{"block": "double", "widths": [8]}, {"block": "double", "widths": [8]}],
}
POOLED = [
    {"block": "single", "widths": [8]},
    {"block": "single", "widths": [12, 12]},
    {"block": "double", "widths": [16], "pool": True},
]


class TestContract(UpsamplerContract):
    name = "uplift"
    config: ClassVar = SMALL

    def resize(self, own: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(own, size, mode="bilinear", antialias=True)


class TestContractRefined(TestContract):
    """The autoencoder's configuration: layer norm, refiner; one fixed doubling."""

    name = "uplift"
    config: ClassVar = {
        **SMALL,
        "norm": "layer",
        "refiner": {"block": "single", "widths": [10]},
        "iterations": 1,
    }


@pytest.mark.golden
@pytest.mark.parametrize("grad", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize("case", ["dinov2_s14_iter2", "small_layernorm_refiner_iter2"])
@pytest.mark.parametrize(
    ("output", "iterations"),
    [("intermediate.iter1", 1), ("output", 2), ("output_resized", 2)],
)
def test_golden(golden_dir: Path, case: str, output: str, iterations: int, grad: bool) -> None:
    tensors, _ = load_golden(golden_dir / "uplift" / f"{case}.safetensors")
    untold = {"patch_size": 14} if "s14" in case else {"encoder": POOLED}
    model = upfeat.from_official("uplift", golden_state(tensors), iterations=iterations, **untold)
    expected = tensors[output]
    with torch.set_grad_enabled(grad):
        out = model(tensors["input.image"], tensors["input.feats"], expected.shape[2:])
    difference = max_abs_difference(out, expected)
    assert difference <= 2e-5 < FUSED_GOLDEN_ATOL  # the reference's own tolerance


def test_parameters_of_the_paper() -> None:
    model = upfeat.create_upsampler("uplift", feature_dim=384)
    assert sum(p.numel() for p in model.parameters()) == 789_521


def test_official_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = get_checkpoint("uplift.dinov2_s14")
    assert record is not None
    model = upfeat.create_upsampler("uplift", feature_dim=384)
    torch.save(model.state_dict(), tmp_path / "uplift_dinov2-s14.pth")
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    loaded = upfeat.create_upsampler(
        "uplift.dinov2_s14", pretrained=True, weights=tmp_path / "uplift_dinov2-s14.pth"
    )
    assert loaded.config["patch_size"] == 14
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_configuration_is_read_from_the_tensors() -> None:
    config = {
        **SMALL,
        "encoder": [{**stage, "pool": False} for stage in SMALL["encoder"]],
        "norm": "layer",
        "refiner": {"block": "double", "widths": [10, 12]},
        "noise_channels": 4,
    }
    model = upfeat.create_upsampler("uplift", feature_dim=5, **config)
    read = upfeat.from_official("uplift", model.state_dict()).config
    assert read == model.config


@pytest.mark.parametrize("taps", sorted(NEIGHBOURHOODS))
def test_neighbourhoods(taps: int) -> None:
    steps = NEIGHBOURHOODS[taps]
    assert len(steps) == len(set(steps)) == taps
    assert steps == sorted(steps)  # row by row
    assert {(-row, -col) for row, col in steps} == set(steps)


@torch.no_grad()
def test_iterations_cover_the_asked_size() -> None:
    model = upfeat.create_upsampler("uplift", feature_dim=4, **SMALL).eval()
    image, features = torch.randn(1, 3, 32, 32), torch.randn(1, 4, 4, 4)
    for size, count in (((3, 4), 1), ((8, 8), 1), ((8, 9), 2), ((64, 5), 4)):
        assert model._count(features, size) == count
    fixed = upfeat.create_upsampler("uplift", feature_dim=4, iterations=3, **SMALL).eval()
    fixed.load_state_dict(model.state_dict())
    large = fixed(image, features, (32, 32))
    torch.testing.assert_close(model(image, features, (32, 32)), large)
    expected = F.interpolate(large, (27, 20), mode="bilinear", antialias=True)
    torch.testing.assert_close(fixed(image, features, (27, 20)), expected)


@torch.no_grad()
def test_output_stays_among_the_features() -> None:
    model = upfeat.create_upsampler("uplift", feature_dim=4, **SMALL).eval()
    features = torch.randn(1, 4, 4, 4)
    out = model(torch.randn(1, 3, 32, 32), features, (32, 32))
    assert (out.amax((2, 3)) <= features.amax((2, 3)) + 1e-5).all()
    assert (out.amin((2, 3)) >= features.amin((2, 3)) - 1e-5).all()


def test_noise_differs_in_training_only() -> None:
    model = upfeat.create_upsampler("uplift", feature_dim=4, noise_channels=2, **SMALL)
    image, features = torch.randn(2, 3, 16, 16), torch.randn(2, 4, 4, 4)
    assert not torch.equal(model(image, features), model(image, features))
    model.eval()
    both = model(image, features)
    assert torch.equal(model(image, features), both)
    torch.testing.assert_close(model(image[1:], features[1:]), both[1:])


def test_limits_are_explained() -> None:
    for message, arguments in (
        ("iterations", {"iterations": 0}),
        ("taps", {"taps": 7}),
        ("norm", {"norm": "group"}),
        ("stages", {"decoder": SMALL["decoder"][:1]}),
    ):
        with pytest.raises(ValueError, match=message):
            upfeat.create_upsampler("uplift", feature_dim=4, **{**SMALL, **arguments})
