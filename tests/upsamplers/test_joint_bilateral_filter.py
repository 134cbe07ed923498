"""NAF's two bilateral baselines: goldens, small maps, training."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.objectives.setups import tiny_backbone, tiny_batch
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.objectives import naf_config


class TestFilter(UpsamplerContract):
    name = "joint_bilateral_filter"
    config: ClassVar = {"sigma_color": 1.0}


class TestLearned(UpsamplerContract):
    name = "joint_bilateral_learned"
    config: ClassVar = {"key_dim": 8, "radius": 2}


@pytest.mark.golden
@pytest.mark.parametrize("case", ["joint_bilateral_filter", "joint_bilateral_filter_wide"])
def test_golden_filter(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "classical" / f"{case}.safetensors")
    arguments = meta["arguments"]
    model = upfeat.create_upsampler(
        "joint_bilateral_filter",
        sigma_color=arguments["sigma_color"],
        sigma_space=arguments["sigma_spatial"],
        kernel_size=arguments["kernel_size"],
    )
    out = model(tensors["input.noisy_norm"], tensors["input.noisy"], arguments["out"])
    difference = max_abs_difference(out, tensors["output"])
    assert difference <= GOLDEN_ATOL


@pytest.mark.golden
def test_golden_learned(golden_dir: Path) -> None:
    tensors, meta = load_golden(golden_dir / "classical" / "jbu_radius5.safetensors")
    model = upfeat.from_official("joint_bilateral_learned", golden_state(tensors))
    assert model.config == {"key_dim": 8, "radius": 5}
    size = meta["arguments"]["out"]
    out = model(tensors["input.noisy_norm"], tensors["input.noisy"], size)
    difference = max_abs_difference(out, tensors["output"])
    assert difference <= GOLDEN_ATOL


def test_two_training_steps() -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("joint_bilateral_learned", key_dim=8, radius=2).train()
    before = [p.detach().clone() for p in model.parameters()]
    backbone, objective = tiny_backbone(), naf_config().build()
    objective.prepare(model, backbone, (48, 48))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        loss = objective.step(tiny_batch(), backbone, model, torch.Generator())["loss"]
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message", "arguments"),
    [
        ("joint_bilateral_filter", "sigma", {"sigma_color": 0.0}),
        ("joint_bilateral_filter", "odd", {"kernel_size": 4}),
        ("joint_bilateral_filter", "factor", {"factor": 0}),
        ("joint_bilateral_learned", "radius", {"radius": 0}),
    ],
)
def test_parameters_out_of_range(name: str, message: str, arguments: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=message):
        upfeat.create_upsampler(name, **arguments)
