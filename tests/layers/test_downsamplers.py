"""FeatUp's reductions: goldens of the original code, and cases whose answer is known."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from upfeat.layers import AttentionDownsampler, ScaleNet, SimpleDownsampler
from upfeat.ops.images import Crop, draw_crop, take_crop


@pytest.mark.parametrize("case", ["attention_k14", "attention_k29_noblur"])
@torch.no_grad()
def test_attention_golden(golden_dir: Path, case: str) -> None:
    tensors, meta = load_golden(golden_dir / "featup_downsamplers" / f"{case}.safetensors")
    state, arguments = golden_state(tensors), meta["arguments"]
    model = AttentionDownsampler(
        arguments["dim"], arguments["kernel_size"], blur=arguments["blur_attn"]
    ).eval()
    model.load_state_dict(
        {
            "weight": state["w"],
            "bias": state["b"],
            "attention.weight": state["attention_net.1.weight"],
            "attention.bias": state["attention_net.1.bias"],
        }
    )
    kept = tensors["input.dropout_mask"].squeeze(-1)
    size = (arguments["final_size"],) * 2
    difference = max_abs_difference(
        model(tensors["input.feats"], output_size=size, kept=kept), tensors["output"]
    )
    assert difference <= GOLDEN_ATOL


@torch.no_grad()
def test_simple_golden(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "featup_downsamplers" / "simple_k14.safetensors")
    model = SimpleDownsampler(14)
    model.load_state_dict(golden_state(tensors), strict=True)
    differences = (
        max_abs_difference(model(tensors["input.feats"], output_size=(4, 4)), tensors["output"]),
        max_abs_difference(model.kernel(), tensors["intermediate.kernel"]),
    )
    assert max(differences) <= GOLDEN_ATOL


@torch.no_grad()
def test_scale_golden(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "losses" / "featup_jbu_reconstruction.safetensors")
    scale = ScaleNet(12)
    state = golden_state(tensors, "net.")
    scale.load_state_dict(state, strict=True)
    assert max_abs_difference(scale(tensors["input.target"]), tensors["output.scales"]) <= 1e-5


@pytest.mark.parametrize("jitter", [0, 1, 2])
def test_crop_golden(golden_dir: Path, jitter: int) -> None:
    tensors, meta = load_golden(golden_dir / "losses" / "featup_jitter.safetensors")
    arguments = meta["arguments"]
    crop = Crop(*arguments["params"][jitter])
    view = take_crop(tensors["input.image"], crop, arguments["max_pad"])
    assert max_abs_difference(view, tensors[f"output.jitter_{jitter}"]) <= 1e-6


def test_drawn_crops_stay_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 2, 9, 13)
    crops = [draw_crop(generator, (9, 13), 4, 2.0) for _ in range(60)]
    assert all(take_crop(x, crop, 4).shape == x.shape for crop in crops)
    assert {crop.flip for crop in crops} == {True, False}
    assert min(crop.zoom for crop in crops) == 1.0
    assert max(crop.zoom for crop in crops) > 1.5
    with pytest.raises(ValueError, match="leaves the padded map"):
        take_crop(x, Crop(row=20), 4)


@pytest.mark.parametrize("kind", ["attention", "simple"])
def test_a_constant_stays_and_gradients_are_right(kind: str) -> None:
    model = SimpleDownsampler(4) if kind == "simple" else AttentionDownsampler(5, 4)
    constant = torch.randn(1, 5, 1, 1).expand(1, 5, 8, 12)
    out = model(constant, torch.Generator())
    torch.testing.assert_close(out, constant[:, :, :2, :3])
    with pytest.raises(ValueError, match="multiples of the kernel size 4"):
        model(torch.zeros(1, 5, 8, 10))
    with pytest.raises(ValueError, match="different windows"):
        model(torch.zeros(1, 5, 8, 10), output_size=(9, 2))
    model = model.double().eval()
    x = torch.randn(1, 5, 7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x, output_size=(2, 3)), (x,), fast_mode=True)


def test_simple_starts_as_the_mean() -> None:
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(SimpleDownsampler(4)(x), F.avg_pool2d(x, 4))


def test_windows_overlap_where_they_must() -> None:
    model = SimpleDownsampler(3)
    out = model(torch.arange(7.0).view(1, 1, 1, 7).expand(1, 1, 3, 7), output_size=(1, 3))
    assert out.flatten().tolist() == pytest.approx([1.0, 3.0, 5.0])


def test_the_generator_decides() -> None:
    x, model = torch.randn(1, 5, 12, 12), AttentionDownsampler(5, 4)
    draw = lambda seed: model(x, torch.Generator().manual_seed(seed))  # noqa: E731
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))
    assert not torch.equal(model.eval()(x, torch.Generator().manual_seed(0)), model(x))


def test_error_of_large_features_is_finite(dtype) -> None:
    """The scale itself, exp(W x), overflows; its logarithm does not."""
    torch.manual_seed(0)
    scale = ScaleNet(12).to(dtype)
    features = 1000 * torch.randn(2, 12, 3, 4).to(dtype)
    loss = scale.error((features - 1).float().square(), features)
    assert torch.isfinite(loss)
    if dtype != torch.float16:  # whose range ends at 65504
        loss.backward()
        assert all(p.grad.isfinite().all() for p in scale.parameters())
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
