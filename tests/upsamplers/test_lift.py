"""LiFT: goldens of both original codes, with and without a graph, official files, training."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.objectives.setups import two_steps_lower_the_loss
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.objectives import DoubledInputConfig
from upfeat.upsamplers.registry import get_checkpoint


class TestContract(UpsamplerContract):
    name = "lift"


class TestContractIterated(UpsamplerContract):
    name = "lift"
    config: ClassVar = {"iterations": 2}
    channels = (15, 20)


@pytest.mark.golden
@pytest.mark.parametrize("grad", [False, True], ids=["no graph", "graph"])
@pytest.mark.parametrize(
    ("case", "output", "iterations"),
    [
        ("dim32_p14", "output", 1),
        ("dim48_p8_iter3", "intermediate.iter1", 1),
        ("dim48_p8_iter3", "intermediate.iter2", 2),
        ("dim48_p8_iter3", "output", 3),
    ],
)
def test_golden(golden_dir: Path, case: str, output: str, iterations: int, grad: bool) -> None:
    tensors, _ = load_golden(golden_dir / "lift" / f"{case}.safetensors")
    model = upfeat.from_official("lift", golden_state(tensors), iterations=iterations)
    expected = tensors[output]
    with torch.set_grad_enabled(grad):
        out = model(tensors["input.image"], tensors["input.feats"], expected.shape[2:])
    difference = max_abs_difference(out, expected)
    assert difference <= GOLDEN_ATOL


@pytest.mark.golden
@pytest.mark.parametrize(("distance", "name"), [("cosine", "cosine"), ("l1", "l1"), ("mse", "l2")])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_golden_loss(golden_dir: Path, distance: str, name: str, training: bool) -> None:
    tensors, _ = load_golden(golden_dir / "losses" / "lift_loss.safetensors")
    model = upfeat.from_official("lift", golden_state(tensors)).train(training)
    image, kernel = tensors["input.image"], tensors["input.backbone"]
    # The stored image is normalised already: name the normalisation that brings it back.
    low, span = image.amin(), image.amax() - image.amin()
    backbone = upfeat.CallableBackbone(
        lambda x: F.conv2d(x, kernel, stride=8),
        dim=24,
        patch_size=8,
        image_mean=(float(-low / span),) * 3,
        image_std=(float(1 / span),) * 3,
    )
    objective = DoubledInputConfig(distance=distance, feature_space="raw").build()
    objective.prepare(model, backbone)
    batch = {"image": ((image - low) / span).clamp(0, 1)}
    loss = objective.step(batch, backbone, model, torch.Generator())["loss"]
    key = f"output.{'train' if training else 'eval'}.{name}"
    difference = max_abs_difference(loss, tensors[key])
    assert difference <= GOLDEN_ATOL


def test_parameters_of_the_paper() -> None:
    for width, count in ((384, 1_187_280), (768, 4_417_296)):
        model = upfeat.create_upsampler("lift", feature_dim=width)
        assert sum(p.numel() for p in model.parameters()) == count


def test_official_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = get_checkpoint("lift.dino_vits16")
    assert record is not None
    model = upfeat.create_upsampler("lift", feature_dim=384)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "lift_dino_vits16.pth")
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    loaded = upfeat.create_upsampler("lift.dino_vits16")
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


@torch.no_grad()
def test_max_pooling_is_the_originals_for_patch_16() -> None:
    """Adaptive pooling to twice the grid is the 2x2 pooling of the original where that fits."""
    model = upfeat.create_upsampler("lift", feature_dim=8).eval()
    image, features = torch.randn(1, 3, 64, 96), torch.randn(1, 8, 4, 6)
    fine = F.max_pool2d(model.image_convs_1(image), 2)
    x = model.up1.up(torch.cat((features, model.image_convs_2(fine)), dim=1))
    expected = model.outc(model.up1.conv_1.double_conv(torch.cat((x, fine), dim=1)))
    torch.testing.assert_close(model(image, features, (8, 12)), expected)


@torch.no_grad()
def test_other_sizes_are_bilinear() -> None:
    model = upfeat.create_upsampler("lift", feature_dim=8).eval()
    image, features = torch.randn(1, 3, 32, 32), torch.randn(1, 8, 4, 4)
    doubled = model(image, features, (8, 8))
    expected = F.interpolate(doubled, (32, 32), mode="bilinear")
    torch.testing.assert_close(model(image, features), expected)


def test_two_training_steps() -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("lift", feature_dim=12).train()
    two_steps_lower_the_loss(model, DoubledInputConfig(feature_space="raw").build())


def test_limits_are_explained() -> None:
    with pytest.raises(ValueError, match="feature_dim must be at least 2"):
        upfeat.create_upsampler("lift", feature_dim=1)
    with pytest.raises(ValueError, match="iterations"):
        upfeat.create_upsampler("lift", feature_dim=8, iterations=0)
