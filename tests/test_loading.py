"""From what a user writes to an upsampler: names, tags, arguments, folders, repositories."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import upfeat
from tests.tolerances import tolerance
from upfeat.errors import (
    CheckpointError,
    UnknownNameError,
    UnsupportedError,
    WeightsNotFoundError,
)
from upfeat.loading import split_label, split_specs, under_autocast


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8).save_pretrained(tmp_path / "mine")
    return tmp_path / "mine"


def test_what_needs_no_weights_and_what_brings_them(folder: Path) -> None:
    assert upfeat.load_upsampler("bilinear", 8).info.name == "bilinear"
    assert upfeat.load_upsampler("upsample_anything", 8).info.abilities.per_image
    backbone = upfeat.CallableBackbone(lambda x: x, dim=192, patch_size=1)
    assert upfeat.load_upsampler("jafar.vit_compact_patch16", backbone).config["qk_dim"] == 64
    loaded = upfeat.load_upsampler(folder, 8)
    assert loaded.config["qk_dim"] == 8
    assert not loaded.training


def test_a_method_without_weights_is_refused_unless_random_ones_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"must be trained first.*jafar\.vit_compact_patch16"):
        upfeat.load_upsampler("jafar", 8)
    with pytest.raises(ValueError, match="must be trained first"):
        upfeat.load_upsampler("carafe", 8)
    assert upfeat.load_upsampler("jafar", 8, allow_random=True, qk_dim=8).config["feature_dim"] == 8
    bundled = upfeat.load_upsampler("kin.upfeat", 8).state_dict()
    named = upfeat.load_upsampler("kin.upfeat", 8, allow_random=True).state_dict()
    assert all(torch.equal(named[key], value) for key, value in bundled.items())


def test_what_fits_the_backbone_is_named() -> None:
    encoder = upfeat.create_backbone("upfeat/vit_compact_patch16")
    with pytest.raises(ValueError, match=r"its published weights \(jafar\.vit_compact_patch16\)"):
        upfeat.load_upsampler("jafar", encoder)
    with pytest.raises(ValueError, match=r"its published weights \(kin\.upfeat, kin\.upfeat_v1\)"):
        upfeat.load_upsampler("kin", 8)


def test_the_folder_of_a_run_stands_for_its_model(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.csv").write_text("step,loss\n1,0.5\n")
    (run / "config.json").write_text("{}")
    with pytest.raises(WeightsNotFoundError, match=f"--resume --out {run} finishes it"):
        upfeat.load_upsampler(run, 8)
    folder.rename(run / "model")
    assert upfeat.load_upsampler(run, 8).config["qk_dim"] == 8
    assert upfeat.Upsampler.from_pretrained(run).config["qk_dim"] == 8


def test_arguments_are_literals_of_the_methods_class() -> None:
    up = upfeat.load_upsampler(" guided_filter( radius=3, guide='gray' ) ", 8)
    assert (up.config["radius"], up.config["guide"]) == (3, "gray")
    assert upfeat.load_upsampler("guided_filter(radius=3)", 8, radius=2).config["radius"] == 2
    with pytest.raises(UnknownNameError, match="did you mean 'radius'"):
        upfeat.load_upsampler("guided_filter(radus=3)", 8)
    with pytest.raises(ValueError, match="does not fit"):
        upfeat.load_upsampler("jafar(qk_dim='big')", 8, allow_random=True)
    with pytest.raises(TypeError, match="radus"):
        upfeat.load_upsampler("guided_filter", 8, radus=3)
    for wrong in ("(3)", "(radius=open('a'))", "(**{})", "(radius=)", "(radius=1)(2)"):
        with pytest.raises(ValueError, match=r"written name\(option=value"):
            upfeat.load_upsampler(f"guided_filter{wrong}", 8)


def test_weights_of_another_width_method_or_configuration_are_refused(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="8 channels and the backbone has 9"):
        upfeat.load_upsampler(folder, 9)
    with pytest.raises(CheckpointError, match="192 channels and the backbone has 9"):
        upfeat.load_upsampler("jafar.vit_compact_patch16", 9)
    with pytest.raises(CheckpointError, match="holds jafar"):
        upfeat.load_upsampler("loftup", 8, weights=folder)
    with pytest.raises(CheckpointError, match="holds jafar"):
        upfeat.load_upsampler("jafar", 8, weights=folder, qk_dim=16)
    assert upfeat.load_upsampler("jafar", 8, weights=folder, qk_dim=8).config["qk_dim"] == 8


def test_nothing_is_given_twice(folder: Path) -> None:
    with pytest.raises(ValueError, match="holds weights and arguments already"):
        upfeat.load_upsampler(folder, 8, qk_dim=8)
    with pytest.raises(ValueError, match="holds weights and arguments already"):
        upfeat.load_upsampler(folder, 8, weights=folder)


def test_a_file_of_weights(folder: Path, tmp_path: Path) -> None:
    state = upfeat.create_upsampler("jafar", feature_dim=8, qk_dim=8).state_dict()
    torch.save(state, tmp_path / "jafar.pth")
    up = upfeat.load_upsampler("jafar(num_heads=2)", 8, weights=tmp_path / "jafar.pth")
    assert up.config["num_heads"] == 2
    assert all(torch.equal(value, state[key]) for key, value in up.state_dict().items())


def test_folders_and_repositories(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPFEAT_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="no folder at runs/none/model"):
        upfeat.load_upsampler("runs/none/model", 8)
    with pytest.raises(WeightsNotFoundError, match="neither a folder nor a reachable"):
        upfeat.load_upsampler("nobody/nothing-of-the-kind", 8)
    monkeypatch.chdir(tmp_path)
    folder.rename("bilinear")
    assert upfeat.load_upsampler("bilinear", 8).info.name == "bilinear"
    assert upfeat.load_upsampler("./bilinear", 8).info.name == "jafar"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("a,b", ["a", "b"]),
        ("a(x=1, y=[2, 3]), l=b", ["a(x=1, y=[2, 3])", "l=b"]),
        ("", [""]),
    ],
)
def test_specs_are_split_between_arguments_never(text: str, parts: list[Any]) -> None:
    assert split_specs(text) == parts


def test_a_label_stands_before_the_spec(tmp_path: Path) -> None:
    assert split_label("linear=bilinear") == ("linear", "bilinear")
    assert split_label("g=guided_filter(radius=3)") == ("g", "guided_filter(radius=3)")
    (tmp_path / "lr=0.1").mkdir()
    assert split_label(str(tmp_path / "lr=0.1")) == ("lr=0.1", str(tmp_path / "lr=0.1"))


@torch.no_grad()
def test_rows_without_an_upsampler_are_the_backbones_own_grids() -> None:
    backbone = upfeat.create_backbone("timm/vit_tiny_patch16_224", weights="random", depth=1)
    image = torch.randn(1, 3, 32, 48)
    features = backbone(image)
    for spec, finer in (
        ("large:2", upfeat.large_image(backbone, 2)),
        ("strided:8", upfeat.strided(backbone, 8)),
        ("shifted:2", upfeat.shift_and_interleave(backbone, 2)),
    ):
        up = upfeat.load_upsampler(spec, backbone)
        wanted = F.interpolate(finer(image), (20, 30), mode="bilinear")
        assert up.info.name == spec
        torch.testing.assert_close(up(image, features, (20, 30)), wanted)
        assert up.info.views
        out = upfeat.Pipeline(backbone, up)(torch.rand(3, 32, 48))
        assert (out.low.shape, out.high.shape) == ((192, 2, 3), (192, 32, 48))
        with pytest.raises(UnsupportedError, match="nothing to save"):
            up.save_pretrained("unused")
    low = upfeat.load_upsampler("low-res", 192)(image, features)
    assert torch.equal(low, features.repeat_interleave(16, 2).repeat_interleave(16, 3))


def test_rows_without_an_upsampler_say_what_they_need() -> None:
    with pytest.raises(ValueError, match="give the backbone, not its channels"):
        upfeat.load_upsampler("large:8", 192)
    with pytest.raises(ValueError, match="takes no weights"):
        upfeat.load_upsampler("low-res", 192, radius=3)
    pool = upfeat.CallableBackbone(torch.nn.AvgPool2d(8), dim=3, patch_size=8)
    with pytest.raises(ValueError, match="at least 2"):
        upfeat.load_upsampler("large:1", pool)
    with pytest.raises(UnsupportedError, match="strided"):
        upfeat.load_upsampler("strided:6", pool)


@pytest.mark.parametrize("name", ["bilinear", "kin.upfeat"])
def test_a_network_under_autocast_takes_and_gives_float32(name: str) -> None:
    backbone = upfeat.create_backbone("upfeat/vit_compact_patch16")
    image = torch.rand(1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    plain = upfeat.Pipeline(backbone, name)(image)
    upsampler = under_autocast(upfeat.load_upsampler(name, backbone), torch.bfloat16)
    half = upfeat.Pipeline(
        under_autocast(copy.deepcopy(backbone), torch.bfloat16), copy.deepcopy(upsampler)
    )
    assert half.identity == upfeat.Pipeline(backbone).identity | {"dtype": "bfloat16"}
    output = half(image)
    positions = torch.tensor([0, 100])
    found = half.at(half.encode(image), (32, 48), positions)
    pairs = [(output.low, plain.low), (output.high, plain.high)]
    pairs.append((found, plain.high[0].flatten(1).T[positions]))
    for ours, expected in pairs:
        assert ours.dtype == torch.float32
        assert not torch.equal(ours, expected)
        error = (ours - expected).std() / expected.std()  # single values may be near 0
        assert error < tolerance(torch.bfloat16)["rtol"]
