"""Upsample Anything: goldens with their two tolerances, the fit, its limits."""

from pathlib import Path
from typing import ClassVar

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import UnsupportedError
from upfeat.objectives import MultiResolutionConfig
from upfeat.upsamplers import upsample_anything as ua


class TestContract(UpsamplerContract):
    name = "upsample_anything"
    config: ClassVar = {"steps": 2}
    output_sizes = ((10, 14), (11, 16), (15, 22))
    # The fit follows the rounding of the image.
    half: ClassVar = {torch.bfloat16: 0.1, torch.float16: 0.01}
    refused_transforms = ("grad", "grad of weights", "jvp", "vmap")


@pytest.mark.golden
@pytest.mark.parametrize("case", ["forward_scale8", "forward_default_scale16"])
def test_golden_filter(golden_dir: Path, case: str) -> None:
    tensors, _ = load_golden(golden_dir / "upsample_anything" / f"{case}.safetensors")
    out = ua.apply_filter(golden_state(tensors), tensors["input.guide"], tensors["input.feats"])
    difference = max_abs_difference(out, tensors["output"])
    assert difference <= GOLDEN_ATOL


@pytest.mark.golden
def test_golden_gradient(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "upsample_anything" / "gradient_scale8.safetensors")
    maps = {key: value.requires_grad_() for key, value in golden_state(tensors).items()}
    loss = ua.reconstruction_loss(maps, tensors["input.guide"], (5, 6))
    assert max_abs_difference(loss, tensors["loss"]) < 1e-6
    for key, value in maps.items():
        expected = tensors[f"grad.{key}"]
        assert value.grad is not None
        assert max_abs_difference(value.grad, expected) < 1e-4 * float(expected.abs().max())


@pytest.mark.golden
def test_golden_fit(golden_dir: Path) -> None:
    """51 Adam steps amplify rounding: the losses agree closely, the outputs on average."""
    tensors, _ = load_golden(golden_dir / "upsample_anything" / "optimise_51_steps.safetensors")
    image = (tensors["input.image_uint8"].float() / 255).permute(2, 0, 1)[None].contiguous()
    maps, losses = ua.optimise(image, (5, 6), 51)
    curve = max_abs_difference(torch.tensor(losses), tensors["loss_curve"])
    out = upfeat.create_upsampler("upsample_anything")(image, tensors["input.feats"])
    assert torch.equal(out, ua.apply_filter(maps, image, tensors["input.feats"]))
    spread = (out - tensors["output"]).square().mean().sqrt().item()
    assert curve < 1e-4
    assert spread < 0.05


def test_the_loss_falls_and_the_fit_repeats_itself() -> None:
    image = torch.rand(1, 3, 4, 5).repeat_interleave(8, 2).repeat_interleave(8, 3)
    _, losses = ua.optimise(image, (4, 5), 12)
    assert losses[-1] < 0.8 * losses[0]
    torch.manual_seed(7)
    maps, again = ua.optimise(image, (4, 5), 12)
    assert again == losses
    with torch.inference_mode():
        other, _ = ua.optimise(image, (4, 5), 12)
    assert all(torch.equal(maps[key], other[key]) for key in maps)


def written_out(maps, guide, values, y: int, x: int) -> torch.Tensor:
    """The formula for one pixel, tap by tap."""
    grid, scale = values.shape[2:], (guide.shape[2] // values.shape[2])
    low = torch.nn.functional.interpolate(guide, grid, mode="bilinear")[0]
    sigma = torch.maximum(maps["sx_raw"].exp(), maps["sy_raw"].exp())
    large = torch.nn.functional.interpolate(sigma, guide.shape[2:], mode="bilinear")
    radius = int((2 * large[0, 0, y, x]).ceil().clamp(1, 8))
    cell = [min(max(round((n + 0.5) / scale - 0.5), 0), m - 1) for n, m in zip((y, x), grid)]  # noqa: B905
    logits, seen = [], []
    for i in range(-8, 9):
        for j in range(-8, 9):
            if i * i + j * j > radius**2:
                continue
            r, c = min(max(cell[0] + i, 0), grid[0] - 1), min(max(cell[1] + j, 0), grid[1] - 1)
            sx, sy, sr = (maps[k][0, 0, r, c].exp() for k in ("sx_raw", "sy_raw", "sr_raw"))
            angle = torch.pi * maps["th_raw"][0, 0, r, c].tanh()
            dy, dx = y - ((r + 0.5) * scale - 0.5), x - ((c + 0.5) * scale - 0.5)
            along = dx * angle.cos() + dy * angle.sin()
            across = -dx * angle.sin() + dy * angle.cos()
            color = (guide[0, :, y, x] - low[:, r, c]).square().sum()
            logits.append(
                -(along**2) / (2 * sx**2 + 1e-8)
                - across**2 / (2 * sy**2 + 1e-8)
                - color / (2 * sr**2 + 1e-8)
            )
            seen.append(values[0, :, r, c])
    return torch.stack(logits).softmax(0) @ torch.stack(seen)


def test_filter_is_the_formula() -> None:
    maps = {
        name: value + 0.3 * torch.randn(1, 1, 3, 4, dtype=torch.float64)
        for name, value in {"sx_raw": 0.4, "sy_raw": -0.2, "th_raw": 0.3, "sr_raw": -1.0}.items()
    }
    guide = torch.rand(1, 3, 15, 20, dtype=torch.float64)
    values = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    out = ua.apply_filter(maps, guide, values)
    for y, x in ((0, 0), (7, 9), (14, 19), (3, 12)):
        torch.testing.assert_close(out[0, :, y, x], written_out(maps, guide, values, y, x))


def test_it_is_not_trained() -> None:
    backbone = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4)
    model = upfeat.create_upsampler("upsample_anything")
    with pytest.raises(UnsupportedError, match="test time"):
        MultiResolutionConfig().build().prepare(model, backbone)


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_if_asked(monkeypatch: pytest.MonkeyPatch, progress: bool) -> None:
    shown = []

    def track(sequence, description, *, disable, **_):
        shown.append((description, not disable))
        return sequence

    monkeypatch.setattr("rich.progress.track", track)
    up = upfeat.create_upsampler("upsample_anything", steps=1, progress=progress)
    up(torch.rand(1, 3, 4, 4), torch.rand(1, 2, 2, 2))
    assert shown == [("fitting the image", progress)]


def test_negative_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        upfeat.create_upsampler("upsample_anything", steps=-1)
