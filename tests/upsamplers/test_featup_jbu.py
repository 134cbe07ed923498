"""FeatUp's joint bilateral upsampler: goldens, official layouts, and its three paths."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.upsamplers.featup_jbu import (
    RADIUS,
    Stage,
    bilinear_rows,
    resizing_taps,
    source_rows,
    taps_of,
)

STACK_ATOL = 2e-5  # of the reference page, for the stack


class TestContract(UpsamplerContract):
    name = "featup_jbu"
    channels = (8, 12)
    grid = (3, 4)
    image_size = (28, 42)
    output_sizes = ((20, 28), (23, 31), (60, 75))
    smallest_grid = (2, 2)


def small(**config):
    torch.manual_seed(0)
    model = upfeat.create_upsampler("featup_jbu", feature_dim=6, **config).eval()
    for stage in model.stages():
        torch.nn.init.constant_(stage.range_temp, 0.7)
        torch.nn.init.constant_(stage.sigma_spatial, 0.8)
    return model


@pytest.mark.parametrize("grad", [False, True], ids=["bands", "plain"])
def test_golden_stack(golden_dir: Path, grad: bool) -> None:
    tensors, _ = load_golden(golden_dir / "featup_jbu" / "stack_dim64.safetensors")
    model = upfeat.from_official("featup_jbu", golden_state(tensors))
    assert model.config == {"feature_dim": 64, "channel_norm": False}
    image, source = tensors["input.guidance"], tensors["input.source"]
    size = (16 * source.shape[2], 16 * source.shape[3])
    with torch.set_grad_enabled(grad):
        output = model(image, source, size)
        tiles = [tile for _, tile in model.tiles(image, source, size, max_bytes=1 << 20)]
        x, found = source, {}
        for name, stage in zip(("x2", "x4"), model.stages(), strict=False):
            x = stage(x, F.adaptive_avg_pool2d(image, [2 * n for n in x.shape[2:]]))
            found[f"intermediate.{name}"] = x
    found |= {"output": output}
    differences = {name: max_abs_difference(x, tensors[name]) for name, x in found.items()}
    differences["tiles"] = max_abs_difference(torch.cat(tiles, 2), tensors["output"])
    assert max(differences.values()) <= STACK_ATOL


@torch.no_grad()
def test_golden_stage_of_any_ratio(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "featup_jbu" / "module_dim8.safetensors")
    stage = Stage().eval()
    stage.load_state_dict(golden_state(tensors), strict=True)
    output = stage(tensors["input.source"], tensors["input.guidance"])
    spatial = stage.spatial().view(1, 49, 1, 1)
    differences = {
        "output": max_abs_difference(output, tensors["output"]),
        "spatial": max_abs_difference(spatial, tensors["intermediate.spatial_kernel"]),
    }
    assert max(differences.values()) <= GOLDEN_ATOL


@torch.no_grad()
def test_composed_weights_are_resizing_then_mixing() -> None:
    stage = Stage().eval()
    source, kernel = torch.randn(2, 3, 5, 4), torch.randn(2, 10, 8, 7, 7)
    fine = F.pad(F.interpolate(source, (10, 8), mode="bicubic"), [RADIUS] * 4, mode="reflect")
    windows = F.unfold(fine, 7).view(2, 3, 49, 10, 8)
    expected = torch.einsum("bctyx,byxt->bcyx", windows, kernel.flatten(3))
    taps = taps_of(source)
    whole = stage.mix(source, kernel, taps, (0, 10))
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-5)
    band = stage.mix(source, kernel[:, 4:8], taps, (4, 8))
    torch.testing.assert_close(band, expected[:, :, 4:8], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cells", [2, 3, 4, 5, 9])
def test_resizing_taps_lose_nothing(cells: int) -> None:
    taps = resizing_taps(cells, torch.empty(0))
    torch.testing.assert_close(taps.sum(2), torch.ones(2 * cells, 7))


@pytest.mark.parametrize(("height", "source"), [(7, 16), (40, 16), (16, 16), (1, 16)])
def test_bilinear_rows_are_torchs(height: int, source: int) -> None:
    x = torch.randn(1, 2, source, 3)
    expected = F.interpolate(x, (height, 5), mode="bilinear")
    for rows in (slice(height // 3, height), slice(0, height), slice(height // 2, height // 2 + 1)):
        first, last = source_rows(rows, height, source)
        assert first % 2 == last % 2 == 0
        actual = bilinear_rows(x[:, :, first:last], first, source, rows, (height, 5))
        torch.testing.assert_close(actual, expected[:, :, rows], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", ["clip", "maskclip"])
@torch.no_grad()
def test_real_files_load_strictly(
    weights_dir: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = upfeat.from_official("featup_jbu", weights_dir / f"featup_jbu_{name}.safetensors")
    assert model.config == {"feature_dim": 512, "channel_norm": False}
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(weights_dir))
    tagged = upfeat.create_upsampler(f"featup_jbu.{name}")
    image, features = torch.randn(1, 3, 32, 48), torch.randn(1, 512, 2, 3)
    output = tagged(image, features)
    assert torch.equal(output, model(image, features))
    assert tagged.info.image_mean is not None
    # The trained stages sharpen; they do not leave what bilinear resizing gives.
    smooth = F.interpolate(features, (32, 48), mode="bilinear")
    assert F.cosine_similarity(output, smooth).mean() > 0.5


def test_lightning_layouts(tmp_path: Path) -> None:
    for norm in (True, False):
        model = small(channel_norm=norm)
        state = {
            f"upsampler.{key}": value
            for key, value in model.state_dict().items()
            if not key.startswith("channel_norm")
        }
        state["model.0.blocks.0.weight" if norm else "model.blocks.0.weight"] = torch.zeros(3)
        state["downsampler.w"] = state["scale_net.net.bias"] = torch.zeros(3)
        if norm:
            state["model.1.norm.weight"] = torch.rand(6)
            state["model.1.norm.bias"] = torch.rand(6)
        path = tmp_path / f"{norm}.ckpt"
        torch.save({"state_dict": state, "epoch": 1}, path)
        loaded = upfeat.from_official("featup_jbu", path)
        assert loaded.config == model.config
        assert torch.equal(loaded.up3.fixup_proj[3].bias, model.up3.fixup_proj[3].bias)
        if norm:
            assert torch.equal(loaded.channel_norm.weight, state["model.1.norm.weight"])


def test_norm_is_not_trained() -> None:
    model = small()
    assert not any("channel_norm" in name for name, _ in model.named_parameters())
    image, features = torch.randn(1, 3, 32, 32), torch.randn(1, 6, 2, 2)
    normed = F.layer_norm(features.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    raw = small(channel_norm=False)
    assert max_abs_difference(model(image, features), raw(image, normed)) < 1e-5


def test_training_without_dropout_is_evaluation() -> None:
    """Moving the last layer in front changes nothing but rounding."""
    model = small().train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.0
    image, features = torch.randn(2, 3, 40, 30), torch.randn(2, 6, 3, 2)
    trained = model(image, features)
    assert max_abs_difference(model.eval()(image, features), trained) < 1e-5


def test_records() -> None:
    names = upfeat.list_upsamplers("featup_jbu*", pretrained=True)
    assert len(names) == 11
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        next(small().train().tiles(torch.randn(1, 3, 32, 32), torch.randn(1, 6, 2, 2)))


def test_gradcheck() -> None:
    model = small(channel_norm=False).double()
    stage = model.up1
    source = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    guidance = torch.randn(1, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(stage, (source, guidance), fast_mode=True)
