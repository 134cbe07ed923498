"""NAF: goldens of the original code, its limits, its training quirks, and its two paths."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import FUSED_GOLDEN_ATOL, max_abs_difference
from tests.upsamplers.contract import UpsamplerContract
from upfeat.upsamplers.naf_diveup import clamped_dilation
from upfeat.upsamplers.registry import get_checkpoint


class TestContract(UpsamplerContract):
    name = "naf"
    config: ClassVar = {"dim": 32, "heads_attn": 4, "heads_rope": 2, "kernel_size": 3}
    smallest_grid = (3, 3)
    narrow = False


class TestContractWide(UpsamplerContract):
    """Rope heads other than attention heads, an even kernel, one block."""

    name = "naf"
    config: ClassVar = {
        "dim": 48,
        "heads_attn": 2,
        "heads_rope": 3,
        "kernel_size": 4,
        "img_layers": 1,
    }
    smallest_grid = (4, 4)
    narrow = False


def small(**config):
    torch.manual_seed(0)
    settings = {"dim": 32, "heads_attn": 2, "heads_rope": 2, "kernel_size": 3, **config}
    return upfeat.create_upsampler("naf", **settings).eval()


@pytest.mark.parametrize("grad", [False, True], ids=["strips", "plain"])
@pytest.mark.parametrize("case", ["default_384", "nonint_ratio_small", "image_predownscale"])
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "naf" / f"{case}.safetensors")
    untold = {k: v for k, v in meta["constructor"].items() if k in ("heads_attn", "kernel_size")}
    model = upfeat.from_official("naf", golden_state(tensors), **untold)
    for key, value in meta["constructor"].items():
        assert model.config[key] == value
    with torch.set_grad_enabled(grad):
        out = model(tensors["input.image"], tensors["input.features"], meta["output_size"])
    difference = max_abs_difference(out, tensors["output"])
    # Scores reach 79, so rounding of the convolutions is amplified: in float64 throughout, the
    # default case already differs from the original's float32 run by 7e-6.
    assert difference <= FUSED_GOLDEN_ATOL


@pytest.mark.parametrize("grad", [False, True], ids=["strips", "plain"])
@pytest.mark.parametrize("case", ["grid_below_kernel", "smaller_than_features"])
def test_diveup_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "diveup" / f"{case}.safetensors")
    record = get_checkpoint("naf.diveup")
    assert record is not None
    untold = {k: v for k, v in meta["constructor"].items() if k in ("heads_attn", "kernel_size")}
    model = upfeat.from_official("naf", golden_state(tensors), **untold, **record.config)
    image, features = tensors["input.image"], tensors["input.features"]
    grid, size = (features.shape[2], features.shape[3]), tuple(meta["output_size"])
    assert list(clamped_dilation(grid, size, model.kernel_size)) == meta["dilation"]
    with torch.set_grad_enabled(grad):
        out = model(image, features, meta["output_size"])
    assert max_abs_difference(out, tensors["output"]) <= FUSED_GOLDEN_ATOL


def test_official_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = get_checkpoint("naf.release")
    assert record is not None
    assert record.feature_dim is None
    torch.manual_seed(0)
    model = upfeat.create_upsampler("naf")
    state = {}
    for key, value in model.state_dict().items():
        name = key.replace("pixel.", "encoder.").replace("context.", "sem_encoder.")
        name = name.replace("stem", "0").replace("blocks.1", "2").replace("blocks.0", "1")
        state["image_encoder." + name.replace("periods", "rope.periods")] = value
    assert len(state) == 37
    assert state["image_encoder.rope.periods"].shape == (16,)
    torch.save(state, tmp_path / "naf_release.pth")
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    loaded = upfeat.create_upsampler("naf.release")
    assert loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


# -- limits --------------------------------------------------------------------------------------


def test_limits_are_explained() -> None:
    image, features = torch.randn(1, 3, 32, 32), torch.randn(1, 8, 8, 8)
    with pytest.raises(ValueError, match=r"kernel_size x dilation.*9 x 4.*grid has 8"):
        small(kernel_size=9)(image, features)
    with pytest.raises(ValueError, match="cannot reduce"):
        small()(image, features, (7, 16))
    with pytest.raises(ValueError, match="pad them with zeros to 8"):
        small()(image, features[:, :7])
    with pytest.raises(ValueError, match="values"):
        small()(image, features, values=features[:, :3])
    with pytest.raises(ValueError, match="2x2"):
        small()(image[:, :, :1], features)
    with pytest.raises(ValueError, match="divisible"):
        small(dim=40)
    with pytest.raises(ValueError, match="prescale"):
        small(prescale="none")
    with pytest.raises(ValueError, match="rope_rescale"):
        small(rope_rescale=0.5)


@torch.no_grad()
def test_eight_cells_work_where_the_kernel_fits() -> None:
    """The limit is kernel x dilation, not the grid itself."""
    out = small(kernel_size=9)(torch.randn(1, 3, 20, 20), torch.randn(1, 4, 8, 8), (9, 10))
    assert out.shape == (1, 4, 9, 10)


# -- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "output", "released", "aspect"),
    [
        ((300, 500), (40, 20), (80, 80), (48, 80)),
        ((100, 500), (40, 60), (100, 160), (48, 240)),
        ((160, 80), (40, 20), (160, 80), (160, 80)),
    ],
)
def test_prescale(image, output, released, aspect) -> None:
    tensor = torch.empty(1, 3, *image)
    assert small().guidance_size(tensor, output) == released
    assert small(prescale="aspect").guidance_size(tensor, output) == aspect


def test_rope_factor_is_kept_per_size_as_released() -> None:
    model = small().train()
    first = model.rescaling((8, 8))
    assert first != 1
    assert 0.5 <= first <= 2
    assert model.rescaling((8, 8)) == first
    assert model.eval().rescaling((8, 8)) == 1
    assert model.train().rescaling((8, 8)) == first
    assert model.rescaling((8, 9)) != first
    assert model.rescaling((8, 8)) != first


def test_rope_factor_without_cache() -> None:
    model = small(rope_cache=False).train()
    draws = {model.rescaling((8, 8)) for _ in range(5)}
    assert len(draws) == 5
    assert all(abs(math.log(draw)) <= math.log(2) for draw in draws)
    assert model.eval().rescaling((8, 8)) == 1
    assert small(rope_rescale=None, rope_cache=False).train().rescaling((8, 8)) == 1


@torch.no_grad()
def test_rope_factor_changes_the_output() -> None:
    image, features = torch.randn(1, 3, 24, 24), torch.randn(1, 4, 4, 4)
    model = small()
    expected = model(image, features)
    model.train()
    model._rescaled = None
    assert max_abs_difference(model(image, features), expected) > 1e-4


@torch.no_grad()
def test_group_g_takes_the_weights_of_head_g() -> None:
    image, features = torch.randn(1, 3, 24, 24), torch.randn(1, 4, 4, 4)
    values = torch.randn(1, 2, 4, 4)
    model = small()
    both = model(image, features, values=values)
    swapped = model(image, features, values=values.flip(1))
    assert max_abs_difference(both, swapped.flip(1)) > 1e-4
    constant = model(image, features, values=torch.ones(1, 2, 4, 4))
    assert max_abs_difference(constant, torch.ones_like(constant)) < 1e-5


# -- the two paths -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kept", "size"),
    [(0, (24, 20)), (0, (31, 40)), (40_000, (24, 20)), (40_000, (12, 13)), (1 << 30, (31, 40))],
)
@torch.no_grad()
def test_strips_equal_plain_for_every_budget(
    monkeypatch: pytest.MonkeyPatch, kept: int, size: tuple[int, int]
) -> None:
    monkeypatch.setattr("upfeat.upsamplers.base.MAP_BYTES", kept)
    monkeypatch.setattr("upfeat.ops.runtime.strips.STRIP_BYTES", 80_000)
    monkeypatch.setattr("upfeat.ops.stream.sweep.block_bytes", lambda _: 12_000)
    image, features = torch.randn(2, 3, 24, 20), torch.randn(2, 8, 5, 6)
    model = small()
    for module in model.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.normal_(module.weight, 1, 0.5)
            torch.nn.init.normal_(module.bias)
    strips = model(image, features, size)
    with torch.enable_grad():
        plain = model(image, features, size)
    torch.testing.assert_close(strips, plain, atol=2e-5, rtol=1e-4)
    tiles = model.tiles(image, features, size, max_bytes=60_000)
    tiled = torch.cat([tile for _, tile in tiles], dim=2)
    torch.testing.assert_close(tiled, plain, atol=2e-5, rtol=1e-4)


def test_plain_equals_the_definition() -> None:
    """Rotation, pooling and neighbourhoods against code written out for one integer ratio."""
    image, features = torch.randn(1, 3, 12, 12), torch.randn(1, 4, 4, 4)
    model = small(kernel_size=3)
    with torch.no_grad():
        x = torch.cat((model.pixel(image), model.context(image)), 1)
        position = (2 * ((torch.arange(12) + 0.5) / 12) - 1)[:, None] / model.periods
        angle = torch.empty(12, 12, 8)
        angle[..., :4] = 2 * math.pi * position[:, None]
        angle[..., 4:] = 2 * math.pi * position[None]
        angle = torch.cat((angle, angle), -1).permute(2, 0, 1)  # (16, 12, 12)
        query = torch.empty_like(x)
        for head in (slice(0, 16), slice(16, 32)):
            part = x[:, head]
            turned = torch.cat((-part[:, 8:], part[:, :8]), 1)
            query[:, head] = part * angle.cos() + turned * angle.sin()
        key = F.avg_pool2d(query, 3)
        expected = torch.empty(1, 4, 12, 12)
        for row in range(12):
            for col in range(12):
                top, left = (min(max(n // 3 - 1, 0), 1) for n in (row, col))
                window = (slice(None), slice(top, top + 3), slice(left, left + 3))
                for head in range(2):
                    keys = key[0][head * 16 : head * 16 + 16][window].flatten(1)
                    scores = query[0, head * 16 : head * 16 + 16, row, col] @ keys / 4
                    group = features[0][head * 2 : head * 2 + 2][window].flatten(1)
                    expected[0, head * 2 : head * 2 + 2, row, col] = group @ scores.softmax(0)
        assert max_abs_difference(model(image, features), expected) < 1e-5
    assert max_abs_difference(model(image, features), expected) < 1e-5


def test_gradcheck() -> None:
    model = small(dim=16, heads_attn=2, heads_rope=2, kernel_size=2, img_layers=1).double()
    image = torch.randn(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    features = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(model, (image, features), atol=1e-4)


@pytest.mark.export
@pytest.mark.parametrize("clamp", [False, True])
def test_an_exported_graph_lays_out_windows_for_cells_only(clamp: bool) -> None:
    """Unless the dilation is clamped, which the path per cell does not know."""
    model = small(clamp_dilation=clamp)
    inputs = torch.randn(1, 3, 16, 16), torch.randn(1, 8, 8, 8)
    program = torch.export.export(model, inputs, strict=False).graph_module
    graphs = [part.graph for part in program.modules() if isinstance(part, torch.fx.GraphModule)]
    made = [node.meta.get("val") for graph in graphs for node in graph.nodes]
    largest = max(one.numel() for one in made if isinstance(one, torch.Tensor))
    of_pixels = 16 * 16 * model.kernel_size**2 * model.config["dim"]  # keys of every pixel's window
    assert (largest >= of_pixels) == clamp
