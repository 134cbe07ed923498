"""LoftUp: goldens of the original code, official layouts, its options, with and without a graph."""

import re
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import upfeat
from tests.goldens import golden_state, load_golden
from tests.tolerances import GOLDEN_ATOL, max_abs_difference, tolerance
from tests.upsamplers.contract import UpsamplerContract
from upfeat.errors import CheckpointError, UnsupportedError
from upfeat.ops.coordinates import pixel_centres
from upfeat.upsamplers.loftup import LoftUp
from upfeat.upsamplers.registry import get_checkpoint


class TestContract(UpsamplerContract):
    name = "loftup"
    config: ClassVar = {"n_freqs": 4, "num_heads": 2, "num_layers": 2}
    output_sizes = ((20, 28), (23, 31), (45, 52))
    refused_transforms = ("jvp",)  # torch has no tangents of its fused attention
    # The image is rounded to the dtype before frequencies up to e^10 see it, and float32 rounds the
    # angles; an image that stays in float32 gives far smaller differences in half precision
    # (test_half_precision_weights).
    half: ClassVar = {torch.bfloat16: 0.5, torch.float16: 0.5, torch.float64: 1e-3}


class TestContractLearnable(UpsamplerContract):
    name = "loftup"
    config: ClassVar = {"n_freqs": 3, "position": "learnable", "lr_size": 4, "color_feats": True}
    output_sizes = ((20, 28), (23, 31), (45, 52))
    refused_transforms = ("jvp",)  # torch has no tangents of its fused attention
    half = TestContract.half


class TestContractWithoutPositions(UpsamplerContract):
    name = "loftup"
    config: ClassVar = {"n_freqs": 3, "num_heads": 2, "position": "none", "conv_kernel": 1}
    output_sizes = ((20, 28), (23, 31), (45, 52))
    refused_transforms = ("jvp",)  # torch has no tangents of its fused attention
    half = TestContract.half


class TestContractTokenColors(UpsamplerContract):
    name = "loftup"
    config: ClassVar = {"n_freqs": 3, "num_heads": 2, "token_colors": True}
    output_sizes = ((20, 28), (23, 31), (45, 52))
    refused_transforms = ("jvp",)  # torch has no tangents of its fused attention
    half = TestContract.half

    def build(self, channels=None, **config):
        """With weights that use the colours: fresh ones are zero."""
        model = super().build(channels, **config)
        generator = torch.Generator().manual_seed(1)
        weight = model.token_colors.weight.data
        weight.copy_(0.3 * torch.randn(weight.shape, generator=generator))
        return model


def small(**config):
    torch.manual_seed(0)
    return upfeat.create_upsampler(
        "loftup", **{"feature_dim": 12, "n_freqs": 3, "num_heads": 2, **config}
    ).eval()


def test_ablations_change_what_they_name() -> None:
    """Table B.3: without a code the order of the cells does not matter; 1x1 sees one pixel."""
    torch.manual_seed(0)
    image, features = torch.rand(1, 3, 16, 16), torch.randn(1, 12, 4, 4)
    turned = features.flip(-1)
    same = small(position="none")
    torch.testing.assert_close(same(image, features), same(image, turned), atol=1e-5, rtol=1e-4)
    sine = small()
    assert (sine(image, features) - sine(image, turned)).abs().max() > 1e-3
    other = image.clone()
    other[..., 8, 8] = 0.5
    for kernel, changed in ((1, 1), (3, 25)):
        model = small(conv_kernel=kernel)
        moved = (model(image, features) - model(other, features)).abs().amax(1) > 1e-6
        assert int(moved.sum()) == changed
    with pytest.raises(ValueError, match="conv_kernel"):
        small(conv_kernel=5)


# Our keys -> those of the released file.
RELEASED = {
    r"channel_norm\.": "channelnorm.norm.",
    r"position\.phases": "upsampler.lr_pe.biases",
    r"fourier\.phases": "upsampler.fourier_feat.1.biases",
    r"guidance_norm\.": "upsampler.first_conv.0.norm.",
    r"conv1\.": "upsampler.first_conv.1.",
    r"batch_norm1\.": "upsampler.first_conv.2.",
    r"conv2\.": "upsampler.first_conv.4.",
    r"batch_norm2\.": "upsampler.first_conv.5.",
    r"norm\.": "upsampler.ca_transformer.norm.",
    r"(layers\.\d)\.norm_query\.": r"upsampler.ca_transformer.\1.0.norm_q.",
    r"(layers\.\d)\.norm_tokens\.": r"upsampler.ca_transformer.\1.0.norm_kv.",
    r"(layers\.\d)\.attention\.": r"upsampler.ca_transformer.\1.0.attention.",
    r"(layers\.\d)\.norm\.": r"upsampler.ca_transformer.\1.1.net.0.",
    r"(layers\.\d)\.expand\.": r"upsampler.ca_transformer.\1.1.net.1.",
    r"(layers\.\d)\.reduce\.": r"upsampler.ca_transformer.\1.1.net.4.",
    r"project\.": "upsampler.final_conv.0.",
    r"output_norm\.": "upsampler.final_conv.1.",
}


def official_layout(model: LoftUp) -> dict[str, torch.Tensor]:
    """The state dict of a small sine model under the released wrapper's keys."""
    back = {}
    for key, value in model.state_dict().items():
        names = [re.sub(f"^{ours}", name, key) for ours, name in RELEASED.items()]
        (name,) = (name for name in names if name != key)
        back[name] = value[:, :, None, None] if key == "project.weight" else value
    return back


@pytest.mark.parametrize("grad", [False, True], ids=["rows", "plain"])
@pytest.mark.parametrize("case", ["sine_small", "learnable_interp"])
def test_golden(golden_dir: Path, case: str, grad: bool) -> None:
    tensors, meta = load_golden(golden_dir / "loftup" / f"{case}.safetensors")
    heads = meta["constructor"]["num_heads"]
    state = golden_state(tensors)
    image, features = tensors["input.image"], tensors["input.features"]
    with torch.set_grad_enabled(grad):
        batch = upfeat.from_official("loftup", state, num_heads=heads, min_max="batch")
        single = upfeat.from_official("loftup", state, num_heads=heads)
        differences = {
            "output": max_abs_difference(batch(image, features), tensors["output"]),
            "output_single": max_abs_difference(
                single(image, features)[:1], tensors["output_single"]
            ),
        }
    assert batch.config["lr_size"] == (4 if case == "learnable_interp" else 16)
    assert max(differences.values()) <= GOLDEN_ATOL


@torch.no_grad()
def test_golden_intermediates(golden_dir: Path) -> None:
    tensors, _ = load_golden(golden_dir / "loftup" / "sine_small.safetensors")
    state = golden_state(tensors)
    image, features = tensors["input.image"], tensors["input.features"]
    model = upfeat.from_official("loftup", state, min_max="batch")
    fourier = model.fourier(model.scale_colors(image, image.shape[-2:]))
    assert max_abs_difference(fourier, tensors["fourier"]) == 0
    bare = {
        key.removeprefix("upsampler."): value
        for key, value in state.items()
        if not key.startswith("channelnorm")
    }
    model = upfeat.from_official("loftup", bare, min_max="batch", channel_norm=False)
    difference = max_abs_difference(model(image, features), tensors["output_no_channelnorm"])
    assert difference <= GOLDEN_ATOL


# -- official layouts ----------------------------------------------------------------------------


def test_released_layout_round_trip(tmp_path: Path) -> None:
    model = small()
    path = tmp_path / "pytorch_model.bin"
    torch.save(official_layout(model), path)
    loaded = upfeat.from_official("loftup", path, num_heads=2)
    assert loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key


def test_lightning_training_checkpoint() -> None:
    model = small()
    state = {
        key.replace("channelnorm.norm.", "model.1.norm."): value
        for key, value in official_layout(model).items()
    }
    state["model.0.backbone.weight"] = torch.zeros(3)
    state["downsampler.weight"] = torch.zeros(3)
    loaded = upfeat.from_official("loftup", {"state_dict": state, "epoch": 1}, num_heads=2)
    assert torch.equal(loaded.channel_norm.weight, model.channel_norm.weight)


def test_hub_file_without_channel_norm_is_refused(tmp_path: Path) -> None:
    state = {
        key.removeprefix("upsampler."): value
        for key, value in official_layout(small()).items()
        if not key.startswith("channelnorm")
    }
    from upfeat.checkpoints import write_safetensors

    path = tmp_path / "model.safetensors"
    write_safetensors(path, state)
    with pytest.raises(CheckpointError, match="without the channel norm"):
        upfeat.from_official("loftup", path, num_heads=2)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        upfeat.create_upsampler("loftup", weights=path, num_heads=2)
    allowed = upfeat.from_official("loftup", path, num_heads=2, channel_norm=False)
    assert allowed.config["channel_norm"] is False
    with pytest.raises(CheckpointError, match=r"channel_norm\.weight"):
        upfeat.from_official("loftup", path, num_heads=2, channel_norm=True)


def test_records() -> None:
    records = [get_checkpoint(n) for n in upfeat.list_upsamplers("loftup*", pretrained=True)]
    published = [record for record in records if record is not None and not record.ours]
    assert len(published) == 7
    repositories = set()
    for record in published:
        assert record.file.filename == "pytorch_model.bin"
        repositories.add(record.file.repository)
        assert (record.feature_dim + 20) % record.config["num_heads"] == 0
    assert len(repositories) == 7


def test_weights_found_under_the_records_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = upfeat.create_upsampler("loftup", feature_dim=384, num_heads=4)
    torch.save(official_layout(model), tmp_path / "loftup.dinov2_vits14.pth")
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(tmp_path))
    loaded = upfeat.create_upsampler("loftup.dinov2_vits14")
    assert not loaded.training
    assert torch.equal(loaded.conv1.weight, model.conv1.weight)
    with pytest.raises(CheckpointError, match="another backbone"):
        upfeat.create_upsampler("loftup.clip_vitb16", weights=tmp_path / "loftup.dinov2_vits14.pth")


# -- options -------------------------------------------------------------------------------------


@torch.no_grad()
def test_min_max_over_the_batch_couples_images() -> None:
    image, features = torch.randn(2, 3, 20, 24), torch.randn(2, 12, 3, 4)
    image[1] *= 3
    alone = {mode: small(min_max=mode)(image[:1], features[:1]) for mode in ("image", "batch")}
    together = {mode: small(min_max=mode)(image, features)[:1] for mode in ("image", "batch")}
    assert max_abs_difference(alone["image"], together["image"]) < 1e-5
    assert max_abs_difference(alone["batch"], together["batch"]) > 1e-2
    assert max_abs_difference(alone["batch"], alone["image"]) < 1e-6


@pytest.mark.parametrize("mode", ["image", "batch"])
def test_batches_agree_with_and_without_a_graph(mode: str) -> None:
    """Rows of the items are computed one by one, colours scaled over what ``min_max`` says."""
    image, features = torch.randn(3, 3, 40, 24), torch.randn(3, 12, 3, 4)
    image[1] *= 3
    model = small(min_max=mode)
    plain = model(image, features)
    with torch.no_grad():
        rows = model(image, features)
        tiles = [tile for _, tile in model.tiles(image, features, max_bytes=40_000)]
    assert len(tiles) > 3
    assert max_abs_difference(rows, plain) < 1e-5
    assert max_abs_difference(torch.cat(tiles, dim=2), plain) < 1e-5


@torch.no_grad()
def test_other_output_size_resizes_the_image_first() -> None:
    image, features = torch.randn(1, 3, 20, 24).double(), torch.randn(1, 12, 3, 4).double()
    model = small().double()
    resized = torch.nn.functional.interpolate(image, (31, 18), mode="bilinear")
    torch.testing.assert_close(
        model(image, features, (31, 18)), model(resized, features), **tolerance(torch.float64)
    )


@torch.no_grad()
def test_learnable_table_compares_counts() -> None:
    """A 2x8 grid has as many tokens as the 4x4 table and takes it as it lies in memory."""
    model = small(position="learnable", lr_size=4)
    features = torch.randn(1, 12, 2, 8)
    normed = model.channel_norm(features.flatten(2).transpose(1, 2))
    assert torch.equal(model.tokens(features, torch.zeros(1, 3, 8, 8)), normed + model.position)


@torch.no_grad()
def test_without_colors_the_image_does_not_matter() -> None:
    image, features = torch.randn(1, 3, 20, 24), torch.randn(1, 12, 3, 4)
    model = small(color_feats=False)
    assert torch.equal(model(image, features), model(-image, features))
    with torch.enable_grad():
        plain = model(image, features)
    assert max_abs_difference(plain, model(image, features)) < 1e-5


@torch.no_grad()
def test_tokens_see_colors_once_trained() -> None:
    """Queries are blind here, so what the image changes goes through the tokens."""
    image, features = torch.randn(1, 3, 20, 24), torch.randn(1, 12, 3, 4)
    blind, seeing = small(color_feats=False), small(color_feats=False, token_colors=True)
    seeing.load_state_dict(blind.state_dict(), strict=False)
    assert torch.equal(seeing(image, features), blind(image, features))  # zero before training
    torch.nn.init.normal_(seeing.token_colors.weight)
    assert max_abs_difference(seeing(image, features), seeing(-image, features)) > 1e-2


def test_token_colors_learn() -> None:
    model = small(token_colors=True)
    model(torch.randn(1, 3, 20, 24), torch.randn(1, 12, 3, 4)).square().sum().backward()
    assert model.token_colors.weight.grad.abs().max() > 0


@torch.no_grad()
def test_constant_image_is_finite() -> None:
    assert torch.isfinite(small()(torch.ones(1, 3, 9, 9), torch.randn(1, 12, 3, 3))).all()


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="num_heads=5 must divide the token width 32"):
        small(num_heads=5)
    with pytest.raises(ValueError, match="position"):
        small(position="cosine")
    with pytest.raises(ValueError, match="min_max"):
        small(min_max="none")


def test_values_are_refused() -> None:
    features = torch.randn(1, 12, 3, 4)
    with pytest.raises(UnsupportedError, match="values"):
        small()(torch.randn(1, 3, 9, 9), features, values=features)


def test_tiles_in_training_mode_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\.eval\(\)"):
        next(small().train().tiles(torch.randn(1, 3, 9, 9), torch.randn(1, 12, 3, 4)))


def test_single_positions_train_the_batch_norms() -> None:
    """All at once, so that the statistics are those of all positions, and every weight learns."""
    model = small().train()
    image, features = torch.randn(2, 3, 40, 48), torch.randn(2, 12, 3, 4)
    coords = pixel_centres((40, 48), dtype=torch.float64).expand(2, -1, -1)
    output = model.query(image, features, coords)
    assert model.batch_norm1.num_batches_tracked == 1
    hidden = model.batch_norm2.running_mean.clone()
    whole = model(image, features).flatten(2).mT
    # Of the last convolution each position is met once, so the second norm sees the same numbers
    # twice; of the first one those around it are met nine times, and those at the border less.
    assert (output - whole).abs().mean() < 0.1 * whole.abs().mean()
    assert not torch.equal(model.batch_norm2.running_mean, hidden)
    output.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


# -- with and without a graph --------------------------------------------------------------------


@torch.no_grad()
def test_rows_with_trained_batch_norm() -> None:
    """Running statistics far from 0 and 1 are folded into the convolutions correctly."""
    model = small()
    for norm in (model.batch_norm1, model.batch_norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.3, 3)
        torch.nn.init.uniform_(norm.weight, 0.5, 2)
        torch.nn.init.normal_(norm.bias)
    image, features = torch.randn(2, 3, 37, 29), torch.randn(2, 12, 3, 4)
    rows = model(image, features)
    with torch.enable_grad():
        plain = model(image, features)
    assert max_abs_difference(rows, plain) < 2e-5


@torch.no_grad()
def test_rows_at_a_width_that_takes_winograd() -> None:
    model = small(feature_dim=192, n_freqs=20, num_layers=1, num_heads=4)
    image, features = torch.randn(1, 3, 33, 27), torch.randn(1, 192, 3, 4)
    rows = model(image, features)
    with torch.enable_grad():
        plain = model(image, features)
    assert max_abs_difference(rows, plain) < 2e-5


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.bfloat16, 0.05), (torch.float16, 0.01)], ids=["bf16", "fp16"]
)
@torch.no_grad()
def test_half_precision_weights(dtype: torch.dtype, limit: float) -> None:
    """With the image in float32 the Fourier features are exact; the rest rounds moderately."""
    model = small(n_freqs=20, feature_dim=32)
    image, features = torch.randn(1, 3, 40, 40), torch.randn(1, 32, 5, 5)
    expected = model(image, features)
    actual = model.to(dtype)(image, features.to(dtype)).float()
    error = ((actual - expected).abs().mean() / expected.std()).item()
    assert error < limit


def test_gradcheck() -> None:
    model = small(feature_dim=4, num_heads=2, num_layers=1, n_freqs=2).double()
    features = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    image = torch.randn(1, 3, 4, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f: model(image, f), (features,))


@pytest.mark.parametrize("training", [False, True])
def test_feature_scale_multiplies_the_output(training):
    plain, scaled = small(), small(feature_scale=2.5)
    scaled.load_state_dict(plain.state_dict())
    plain, scaled = plain.train(training), scaled.train(training)
    image, features = torch.rand(2, 3, 20, 28), torch.randn(2, 12, 3, 4)
    with torch.set_grad_enabled(training):  # with a graph, or by rows
        wide, narrow = scaled(image, features), plain(image, features)
    torch.testing.assert_close(wide, 2.5 * narrow, rtol=0, atol=1e-5)
    coords = pixel_centres((20, 28))[None, ::50].expand(2, -1, -1)
    scaled, plain = scaled.eval(), plain.eval()
    asked = scaled.query(image, features, coords), plain.query(image, features, coords)
    torch.testing.assert_close(asked[0], 2.5 * asked[1], rtol=0, atol=1e-5)


def test_feature_scale_is_positive():
    with pytest.raises(ValueError, match="feature_scale must be positive, got 0"):
        small(feature_scale=0)


@torch.no_grad()
@pytest.mark.parametrize("level", [-2.1, 0.7, 3.0])
def test_a_flat_colour_stays_flat_in_a_resize(level: float) -> None:
    """Scaled to its own range, the rounding of a resize would be noise of full strength."""
    model = small().double()
    image, features = torch.randn(1, 3, 14, 21), torch.randn(1, 12, 2, 3)
    image[:, 1:] = level
    colors = small().scale_colors(image, (23, 31))
    assert (colors[:, 1:] == -0.5).all()
    output = small()(image, features, (23, 31))
    exact = model(image.double(), features.double(), (23, 31))
    assert (output - exact).abs().mean() < 1e-3
