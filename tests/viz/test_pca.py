from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import upfeat
from upfeat.viz import PCABasis, pca_panel, pca_picture, save_png
from upfeat.viz.panel import to_pil


def features(channels: int = 12, size: tuple[int, int] = (9, 7), batch: int = 2) -> Tensor:
    """Maps whose channels have clearly different directions of variance."""
    generator = torch.Generator().manual_seed(3)
    directions = torch.linalg.qr(torch.randn(channels, channels, generator=generator)).Q
    scales = 2.0 ** -torch.arange(channels)
    tokens = torch.randn(batch, *size, channels, generator=generator) * scales
    return (tokens @ directions.T + 5 * directions[0]).permute(0, 3, 1, 2)  # (B, C, h, w)


def pipeline(method: str = "bilinear", **options: Any) -> upfeat.Pipeline:
    weight = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    backbone = upfeat.CallableBackbone(
        lambda x: F.conv2d(x, weight.to(x), stride=8), dim=16, patch_size=8, name="test/conv"
    )
    return upfeat.Pipeline(backbone, upfeat.create_upsampler(method), **options)


# -- the basis -----------------------------------------------------------------------------------


def test_agrees_with_a_singular_value_decomposition() -> None:
    maps = features()
    basis = PCABasis.fit(maps)
    tokens = maps.permute(0, 2, 3, 1).reshape(-1, 12).double()
    centered = tokens - tokens.mean(0)
    _, values, vectors = torch.linalg.svd(centered, full_matrices=False)
    torch.testing.assert_close(basis.mean.double(), tokens.mean(0), atol=1e-6, rtol=0)
    alike = (basis.components.double() * vectors[:3]).sum(1).abs()
    torch.testing.assert_close(alike, torch.ones(3).double(), atol=1e-6, rtol=0)
    shares = (values**2 / (values**2).sum())[:3]
    torch.testing.assert_close(basis.explained.double(), shares, atol=1e-6, rtol=0)
    expected = (centered @ basis.components.double().T).reshape(2, 9, 7, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(basis.project(maps).double(), expected, atol=1e-5, rtol=0)


def test_components_are_orthonormal_and_sorted() -> None:
    basis = PCABasis.fit(features())
    torch.testing.assert_close(basis.components @ basis.components.T, torch.eye(3))
    assert torch.equal(basis.explained, basis.explained.sort(descending=True).values)


def test_sign_rule() -> None:
    """The largest loading is positive: turned features turn the picture, not the basis."""
    maps = features()
    basis, turned = PCABasis.fit(maps), PCABasis.fit(-maps)
    largest = basis.components.gather(1, basis.components.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()
    torch.testing.assert_close(turned.components, basis.components)
    torch.testing.assert_close(turned.project(-maps), -basis.project(maps), atol=1e-5, rtol=0)
    inverse = 255 - turned.colors(turned.project(-maps)).int()
    assert (inverse - basis.colors(basis.project(maps)).int()).abs().max() <= 1


def test_order_of_positions_does_not_matter() -> None:
    maps = features()
    basis, other = PCABasis.fit(maps), PCABasis.fit(maps.flip(0, 2, 3))
    torch.testing.assert_close(other.components, basis.components)
    torch.testing.assert_close(other.low, basis.low)


def test_deterministic_and_seeded() -> None:
    maps = features(size=(30, 30))
    options: dict[str, Any] = {"max_samples": 200}
    first = PCABasis.fit(maps, **options)
    assert torch.equal(first.components, PCABasis.fit(maps, **options).components)
    other = PCABasis.fit(maps, **options, seed=1)
    assert not torch.equal(first.components, other.components)
    full = PCABasis.fit(maps)
    assert (first.components * full.components).sum(1).min() > 0.98
    state = torch.get_rng_state()
    PCABasis.fit(maps, **options)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_folder_of_sizes_is_one_set_of_positions() -> None:
    maps = features(size=(4, 6), batch=3)
    one = PCABasis.fit(maps)
    many = PCABasis.fit([maps[0], maps[1:2], maps[2].reshape(12, 6, 4)])
    torch.testing.assert_close(many.components, one.components)
    torch.testing.assert_close(many.high, one.high)


def test_robust_scaling_ignores_outliers() -> None:
    maps = features(size=(40, 40), batch=1)
    calm = PCABasis.fit(maps)
    spoiled = maps.clone()
    spoiled[0, :, 0, :3] += 6 * calm.components[0, :, None]
    colors = [basis.colors(basis.project(maps)).float() for basis in (calm, PCABasis.fit(spoiled))]
    assert (colors[0] - colors[1]).abs().mean() < 6
    bounds = PCABasis.fit(spoiled, percentiles=(0, 100))
    assert (bounds.high - bounds.low)[0] > 1.5 * (calm.high - calm.low)[0]


def test_range_of_colors() -> None:
    maps = features()
    basis = PCABasis.fit(maps, percentiles=(0, 100))
    colors = basis.colors(basis.project(maps))
    assert colors.dtype == torch.uint8
    assert colors.amin((0, 2, 3)).tolist() == [0, 0, 0]
    assert colors.amax((0, 2, 3)).tolist() == [255, 255, 255]
    clipped = PCABasis.fit(maps, percentiles=(25, 75))
    colors = clipped.colors(clipped.project(maps))
    assert 0.2 < (colors == 255).float().mean() < 0.3


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_few_channels(channels: int) -> None:
    maps = features(channels)
    basis = PCABasis.fit(maps)
    colors = basis.colors(basis.project(maps))
    assert colors.shape == (2, 3, 9, 7)
    assert (colors[:, channels:] == 128).all()


@pytest.mark.parametrize("value", [0.0, 3.7, -1e4])
def test_constant_features_are_grey(value: float) -> None:
    maps = torch.full((1, 8, 4, 4), value)
    basis = PCABasis.fit(maps)
    assert (basis.colors(basis.project(maps)) == 128).all()
    assert basis.explained.tolist() == [0, 0, 0]


def test_dtypes(dtype: torch.dtype) -> None:
    maps = features().to(dtype)
    basis = PCABasis.fit(maps)
    projected = basis.project(maps)
    assert (basis.components.dtype, projected.dtype) == (torch.float32, torch.float32)
    again = PCABasis.fit(maps.float())
    torch.testing.assert_close(basis.components, again.components, atol=1e-5, rtol=0)


def test_devices(device: torch.device) -> None:
    maps = features().to(device)
    basis = PCABasis.fit(maps)
    assert basis.colors(basis.project(maps)).device.type == device.type
    assert basis.colors(basis.project(maps.cpu())).device.type == "cpu"


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 9))
def test_sizes(height: int, width: int, channels: int) -> None:
    maps = torch.rand(channels, height, width)
    basis = PCABasis.fit(maps)
    assert basis.colors(basis.project(maps)).shape == (3, height, width)
    assert basis.project(maps[None]).shape == (1, 3, height, width)


def test_save_and_load(tmp_path: Path) -> None:
    basis = PCABasis.fit(features())
    basis.save(tmp_path / "basis.json")
    again = PCABasis.load(tmp_path / "basis.json")
    for name in ("mean", "components", "low", "high", "explained"):
        assert torch.equal(getattr(again, name), getattr(basis, name))
    assert [path.name for path in tmp_path.iterdir()] == ["basis.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": "other"}', "\x00"])
def test_load_errors(tmp_path: Path, content: str) -> None:
    path = tmp_path / "basis.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"basis\.json is not a PCA basis"):
        PCABasis.load(path)


def test_load_refuses_wrong_shapes(tmp_path: Path) -> None:
    basis = PCABasis.fit(features())
    basis.save(tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    content["mean"] = content["mean"][:-1]
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="components"):
        PCABasis.load(tmp_path / "a.json")


def test_errors() -> None:
    basis = PCABasis.fit(features())
    with pytest.raises(ValueError, match=r"\(B, 12, h, w\).*\(2, 5, 4, 4\)"):
        basis.project(torch.rand(2, 5, 4, 4))
    with pytest.raises(ValueError, match="no feature maps"):
        PCABasis.fit([])
    with pytest.raises(ValueError, match="same number of channels"):
        PCABasis.fit([torch.rand(4, 2, 2), torch.rand(5, 2, 2)])
    with pytest.raises(ValueError, match="got"):
        PCABasis.fit(torch.rand(4, 2))
    with pytest.raises(ValueError, match="NaN"):
        PCABasis.fit(torch.full((4, 2, 2), float("nan")))
    with pytest.raises(ValueError, match="percentiles"):
        PCABasis.fit(features(), percentiles=(99, 1))
    with pytest.raises(ValueError, match="max_samples"):
        PCABasis.fit(features(), max_samples=1)


# -- pictures ------------------------------------------------------------------------------------


def test_picture_equals_projecting_the_full_map() -> None:
    image = torch.rand(3, 45, 60)
    for method in ("bilinear", "nearest", "bicubic"):
        pipe = pipeline(method)
        picture = pca_picture(pipe, image)
        out = pipe(image)
        basis = PCABasis.fit(out.low)
        assert torch.equal(picture.low, basis.colors(basis.project(out.low)))
        full = basis.colors(basis.project(out.high))
        assert (picture.high.int() - full.int()).abs().max() <= 1


def test_shared_basis() -> None:
    pipe = pipeline()
    images = [torch.rand(3, 45, 60), torch.rand(3, 16, 30)]
    basis = PCABasis.fit(pipe.low(images))
    pictures = [pca_picture(pipe, image, basis=basis) for image in images]
    assert all(picture.basis is basis for picture in pictures)
    alone = pca_picture(pipe, pipe.encode(images[1]))
    assert not torch.equal(alone.low, pictures[1].low)


def test_picture_of_several_images_is_refused() -> None:
    with pytest.raises(ValueError, match="one image"):
        pca_picture(pipeline(), torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match="one image"):
        pca_picture(pipeline(), [torch.rand(3, 16, 16)])  # type: ignore[arg-type]


def find_colors(panel: Image.Image) -> np.ndarray:
    return np.asarray(panel).reshape(-1, 3)


def test_panel_shows_all_three_with_margins() -> None:
    image = torch.zeros(3, 300, 400)
    image[0] = 1
    low = torch.zeros(3, 6, 8, dtype=torch.uint8)
    low[1] = 255
    high = torch.zeros(3, 300, 400, dtype=torch.uint8)
    high[2] = 255
    panel = pca_panel(image, low, high)
    pixels = np.asarray(panel)
    middle = pixels[panel.height - 150]
    changes = np.flatnonzero((middle[1:] != middle[:-1]).any(1))
    assert len(changes) == 6  # three pictures, white on both sides of each
    starts, ends = changes[::2] + 1, changes[1::2] + 1
    assert (ends - starts).tolist() == [400, 400, 400]
    colors = [tuple(middle[start]) for start in starts]
    assert colors == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    assert (pixels[:, :4] == 255).all()
    assert (pixels[-4:] == 255).all()
    assert (pixels[: panel.height - 306].min(axis=(1, 2)) < 100).any()  # captions


def test_panel_cuts_padding_off_the_low_picture() -> None:
    low = torch.zeros(3, 2, 2, dtype=torch.uint8)
    low[:, 1, :] = 255
    image, high = torch.zeros(3, 300, 300), torch.zeros(3, 300, 300, dtype=torch.uint8)
    # The grid covers 1.25 times the image: its lower row starts at 187.5 of 300 pixels.
    pixels = np.asarray(pca_panel(image, low, high, low_extent=(1.25, 1.0)))
    column = pixels[-306:-6, pixels.shape[1] // 2, 0]
    assert abs(int((column == 0).sum()) - 187.5) <= 1


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (300, 5), (2000, 1000), (64, 64)])
def test_panel_sizes(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    high = torch.zeros(3, *size, dtype=torch.uint8)
    low = torch.zeros(3, 1, 1, dtype=torch.uint8)
    panel = pca_panel(image, low, high, max_side=300)
    assert panel.width <= 3 * 300 + 60
    assert panel.height <= 300 + 60


def test_long_captions_are_cut() -> None:
    colors = torch.zeros(3, 8, 8, dtype=torch.uint8)
    panel = pca_panel(torch.zeros(3, 8, 8), colors, colors, captions=("x" * 500, "", "z"))
    short = pca_panel(torch.zeros(3, 8, 8), colors, colors, captions=("", "", "z"))
    assert panel.size == short.size
    # Nothing of the first caption reaches the second picture's column.
    third = panel.width // 3 + 4
    same = np.asarray(panel)[:, third:] == np.asarray(short)[:, third:]
    assert same.all()


def test_panel_errors() -> None:
    colors = torch.zeros(3, 8, 8, dtype=torch.uint8)
    image = torch.zeros(3, 8, 8)
    with pytest.raises(ValueError, match="three texts"):
        pca_panel(image, colors, colors, captions=("a",))
    with pytest.raises(ValueError, match="uint8"):
        pca_panel(image, colors, colors.float())
    with pytest.raises(ValueError, match="max_side"):
        pca_panel(image, colors, colors, max_side=3)


def test_save_png(tmp_path: Path) -> None:
    colors = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(colors, tmp_path / "a.png")
    save_png(to_pil(colors), tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / name) as image:
            assert np.array_equal(np.asarray(image), colors.permute(1, 2, 0).numpy())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_vit_tiny_on_a_photo(
    data_dir: Path, weights_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(weights_dir))
    backbone = upfeat.create_backbone("timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k")
    pipe = upfeat.Pipeline(backbone, upfeat.create_upsampler("bilinear"), input_size=112)
    picture = pca_picture(pipe, data_dir / "photos" / "chelsea.jpg", output_size=112)
    assert picture.low.shape == (3, 7, 11)
    assert picture.high.shape == (3, 112, 168)
    # Not one flat colour: all three components vary.
    assert (picture.high.float().std((1, 2)) > 20).all()
