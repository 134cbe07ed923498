"""RaysUp: goldens of the original code, its cameras, its limits."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import FUSED_GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.upsamplers.raysup import SLOWEST_DIRECTION, SLOWEST_ORIGIN


class TestContract(UpsamplerContract):
    name = "raysup"
    config: ClassVar = {"qk_dim": 64, "num_heads": 2}
    grid = (6, 7)
    smallest_grid = (6, 6)
    narrow = False


class TestContractOneConvolution(UpsamplerContract):
    """Without branches and without the code of rays."""

    name = "raysup"
    config: ClassVar = {"qk_dim": 8, "num_heads": 1, "use_spe": False, "use_rope": False}
    grid = (6, 7)
    smallest_grid = (6, 6)
    narrow = False


@pytest.mark.parametrize("grad", [False, True], ids=["strips", "plain"])
@pytest.mark.parametrize("case", ["default_384", "nonint_nonsquare_small", "posed_odd_intrinsics"])
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "raysup" / f"{case}.safetensors")
    heads = meta["constructor"].get("num_heads", 4)
    model = upfeat.from_official("raysup", golden_state(tensors), num_heads=heads).eval()
    assert sum(p.numel() for p in model.parameters()) == meta["n_params"]
    if meta["pose"] != "fake":
        model = model.with_camera(tensors["input.c2w"], tensors["input.fxfycxcy"])
    image, features = tensors["input.image"], tensors["input.features"]
    with torch.set_grad_enabled(grad):
        out = model(image, features, meta["output_size"])
    assert max_abs_difference(out, tensors["output"]) <= FUSED_GOLDEN_ATOL
    if "ray_d" in tensors:
        for name, like in (("ray_d", out), ("key_ray_d", features)):
            rays = model.rays(like, (like.shape[2], like.shape[3])).expand_as(tensors[name])
            torch.testing.assert_close(rays, tensors[name], atol=1e-6, rtol=0)


def test_constants_of_the_paper() -> None:
    model = upfeat.create_upsampler("raysup")
    assert sum(p.numel() for p in model.parameters()) == 102_592
    assert model.config["rope_freq_base"] == 3.0
    assert pytest.approx(torch.pi / 2) == SLOWEST_ORIGIN
    assert pytest.approx(torch.pi / 4) == SLOWEST_DIRECTION


def cameras(turn: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    """A camera that looks to the side, and its intrinsics."""
    angle = torch.tensor(turn)
    pose = torch.eye(4)[None].clone()
    pose[0, 0, 0], pose[0, 0, 2] = angle.cos(), angle.sin()
    pose[0, 2, 0], pose[0, 2, 2] = -angle.sin(), angle.cos()
    return pose, torch.tensor([[70.0, 60.0, 32.0, 24.0]])


@torch.no_grad()
def test_a_camera_turns_the_code_and_its_place_does_not() -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("raysup", qk_dim=64, num_heads=2).eval()
    image, features = torch.randn(1, 3, 48, 64), torch.randn(1, 8, 6, 8)
    pose, intrinsics = cameras()
    plain = model(image, features)
    seen = model.with_camera(pose, intrinsics)(image, features)
    assert max_abs_difference(plain, seen) > 1e-4
    moved = pose.clone()
    moved[0, :3, 3] = torch.tensor([3.0, -1.0, 2.0])
    assert torch.equal(model.with_camera(moved, intrinsics)(image, features), seen)
    assert torch.equal(model(image, features), plain)  # the other one has the camera


def test_limits_are_explained() -> None:
    model = upfeat.create_upsampler("raysup", qk_dim=64, num_heads=2)
    image, features = torch.randn(1, 3, 48, 64), torch.randn(1, 8, 6, 8)
    with pytest.raises(ValueError, match="the feature grid has 5 rows"):
        model(image, features[:, :, :5])
    with pytest.raises(ValueError, match="pad them with zeros to 8"):
        model(image, features[:, :7])
    with pytest.raises(ValueError, match="2x2"):
        model(image[:, :, :1], features)
    with pytest.raises(ValueError, match="divisible"):
        upfeat.create_upsampler("raysup", qk_dim=40)
    with pytest.raises(ValueError, match="a camera is a pose"):
        model.with_camera(torch.eye(4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="cameras of 1 images and got 2"):
        model.with_camera(*cameras())(image.expand(2, -1, -1, -1), features.expand(2, -1, -1, -1))
