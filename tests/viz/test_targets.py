"""The targets of one photo: each is what the objective of its kind compares with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.cli.show.targets import find_teacher, read_depth, read_masks
from upfeat.data.mask_sets import LabelMasks
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.objectives import DoubledInputConfig, MaskRefinedConfig, SelfDistillationConfig
from upfeat.objectives.masks import refine_with_masks
from upfeat.viz import PCABasis
from upfeat.viz.pictures import depth_picture, mask_picture, shared_basis
from upfeat.viz.targets import (
    TARGETS,
    PseudoGroundTruth,
    PseudoGroundTruthConfig,
    PseudoGroundTruths,
    make_pseudo_ground_truths,
)

CELL, DIM = 8, 12
LABELS = np.kron(np.arange(6).reshape(2, 3), np.ones((32, 32), int))  # (64, 96)


@pytest.fixture
def backbone() -> upfeat.Backbone:
    weight = torch.randn(DIM, 3, CELL, CELL, generator=torch.Generator().manual_seed(1))
    return upfeat.CallableBackbone(
        lambda x: F.conv2d(x, weight.to(x), stride=CELL), dim=DIM, patch_size=CELL
    )


@pytest.fixture
def photo() -> torch.Tensor:
    return torch.rand(3, 64, 96)


@pytest.fixture
def jafar() -> upfeat.Upsampler:
    return upfeat.create_upsampler("jafar", feature_dim=DIM, qk_dim=8).eval()


def make(
    photo: torch.Tensor, backbone: upfeat.Backbone, *names: str, **settings: object
) -> PseudoGroundTruths:
    given = {name: settings.pop(name, None) for name in ("teacher", "depth")}
    config = PseudoGroundTruthConfig(**({"input_size": (32, 48)} | settings))
    masks = LabelMasks(LABELS)
    return make_pseudo_ground_truths(config, photo, backbone, masks, names=names, **given)


def only(made: PseudoGroundTruths) -> PseudoGroundTruth:
    (target,) = made.targets
    return target


class Recorder(torch.nn.Module):
    """Hands on an upsampler's calls and keeps what came back."""

    def __init__(self, module: upfeat.Upsampler) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: object) -> torch.Tensor:
        self.output = self.module(*args)
        return self.output


def test_mask_refined_is_what_the_first_stage_learns_from(photo, backbone, jafar) -> None:
    """The objective's loss is the error of the output against this map."""
    made = make(photo, backbone, "mask_refined", feature_space="raw", alpha=0.7)
    objective = MaskRefinedConfig(alpha=0.7, feature_space="raw").build()
    objective.prepare(jafar, backbone)
    batch = {"image": made.image[None], "masks": made.masks[None]}
    recorder = Recorder(jafar)
    loss = objective.step(batch, backbone, recorder, torch.Generator())["loss"]
    expected = F.mse_loss(recorder.output[0], only(made).map)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert len(made.masks) == 6
    constant = only(make(photo, backbone, "mask_refined", alpha=1.0)).map
    inside = constant[:, :16, :16].flatten(1)
    torch.testing.assert_close(inside, inside[:, :1].expand_as(inside), rtol=1e-5, atol=1e-5)


def test_doubled_is_what_the_doubled_input_learns_from(photo, backbone, jafar) -> None:
    made = make(photo, backbone, "doubled", feature_space="raw")
    objective = DoubledInputConfig(levels=1, distance="mse", feature_space="raw").build()
    objective.prepare(jafar, backbone)
    recorder = Recorder(jafar)
    batch = {"image": photo[None]}  # twice the input
    loss = objective.step(batch, backbone, recorder, torch.Generator())["loss"]
    assert only(made).map.shape == (DIM, 8, 12)
    torch.testing.assert_close(loss, F.mse_loss(recorder.output[0], only(made).map))


def test_self_distilled_is_what_the_second_stage_learns_from(photo, backbone, jafar) -> None:
    """Four crops of a doubled image do not overlap: each region is one crop's target."""
    made = make(photo, backbone, "self_distilled", teacher=jafar, crops_per_side=2, crop_multiple=8)
    assert made.feature_space == "raw"
    target = only(made).map
    objective = SelfDistillationConfig(
        scale=2.0, crops=1, crop_multiple=8, distance="mse", feature_space="raw"
    ).build()
    objective.prepare(jafar, backbone)
    masks = torch.stack([torch.from_numpy(np.equal(LABELS, i)) for i in range(6)])[None]
    batch = {"image": photo[None], "masks": masks}
    for corner in ((0, 0), (32, 48)):
        objective._corner = lambda *_, corner=corner: corner
        recorder = Recorder(jafar)
        loss = objective.step(batch, backbone, recorder, torch.Generator())["loss"]
        region = tuple(
            slice(start // 2, start // 2 + side)
            for start, side in zip(corner, (16, 24), strict=True)
        )
        expected = F.mse_loss(recorder.output[0][:, *region], target[:, *region])
        torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "crops", "scale", "output_scale"),
    [((32, 48), 3, 2.0, 1.0), ((40, 24), 2, 1.8, 0.5), ((56, 32), 3, 2.3, 0.37)],
)
def test_crops_leave_no_gap(size, crops, scale, output_scale, backbone, jafar, monkeypatch) -> None:
    """A teacher that says one everywhere gives a map of ones, at sizes that divide badly."""
    ones = lambda self, image, features, size: features.new_ones(1, DIM, *size)  # noqa: E731
    monkeypatch.setattr(type(jafar), "forward", ones)
    config = PseudoGroundTruthConfig(
        input_size=size, crops_per_side=crops, scale=scale, output_scale=output_scale
    )
    masks = LabelMasks(np.zeros(size, int))
    made = make_pseudo_ground_truths(
        config, torch.rand(3, *size), backbone, masks, teacher=jafar, names=("self_distilled",)
    )
    torch.testing.assert_close(only(made).map, torch.ones_like(only(made).map))


def test_implicit_is_the_method_itself(photo, backbone) -> None:
    made = make(
        photo, backbone, "implicit", implicit_steps=2, implicit_views=2, feature_space="raw", seed=3
    )
    up = upfeat.create_upsampler("featup_implicit", feature_dim=DIM, steps=2, views=2, seed=3)
    norm = (made.image[None] - made.image.new_tensor(backbone.image_mean)[:, None, None]) / (
        made.image.new_tensor(backbone.image_std)[:, None, None]
    )
    expected = up.with_backbone(backbone)(norm, backbone(norm))[0]
    torch.testing.assert_close(only(made).map, expected, rtol=1e-4, atol=1e-4)


def test_regressing_teacher_brings_its_space(photo, backbone) -> None:
    loftup = upfeat.create_upsampler("loftup", feature_dim=DIM, num_heads=4, n_freqs=2).eval()
    made = make(photo, backbone, "mask_refined", "self_distilled", teacher=loftup)
    assert made.feature_space == "channel_norm"
    assert [target.name for target in made.targets] == ["mask_refined", "self_distilled"]
    for values in (made.low, made.targets[1].map):
        assert values.shape[0] == DIM
        torch.testing.assert_close(values.mean(0), torch.zeros_like(values[0]), atol=0.2, rtol=0)
    with pytest.raises(UnsupportedError, match="cannot be shown in 'raw'"):
        make(photo, backbone, "self_distilled", teacher=loftup, feature_space="raw")


def test_agreement_with_the_features(photo, backbone) -> None:
    """Averages of the features' own cells, which a mask over everything replaces by their mean."""
    near = only(make(photo, backbone, "mask_refined", alpha=0.0))
    far = only(make(photo, backbone, "mask_refined", alpha=1.0))
    assert 0.9 < near.agreement <= 1
    assert far.agreement < near.agreement


def test_depth_is_resized_without_mixing(photo, backbone) -> None:
    depth = torch.tensor([1.0, 0.0, 5.0]).repeat_interleave(32).expand(64, 96)
    target = only(make(photo, backbone, "depth", depth=depth))
    assert target.map.shape == (1, 32, 48)
    assert target.map.unique().tolist() == [0, 1, 5]
    assert target.agreement is None
    picture = depth_picture(target.map[0])
    assert (picture[:, :, 20] == 128).all()  # unknown
    assert picture[:, 0, 0].sum() > picture[:, 0, 47].sum()  # near is brighter


def test_what_is_missing_is_said(photo, backbone, jafar) -> None:
    made = make(photo, backbone, "depth", "doubled", "self_distilled")
    assert [target.name for target in made.targets] == ["doubled"]
    assert set(made.left_out) == {"depth", "self_distilled"}
    with pytest.raises(UnknownNameError, match="did you mean 'doubled'"):
        make(photo, backbone, "double")
    with pytest.raises(ValueError, match="different aspect ratios"):
        make(photo, backbone, "depth", depth=torch.ones(64, 64))
    with pytest.raises(ValueError, match="set crops_per_side to 3"):
        make(photo, backbone, "self_distilled", teacher=jafar, scale=2.5, crops_per_side=2)
    with pytest.raises(UnsupportedError, match="no parameter"):
        make(photo, backbone, "depth", teacher=upfeat.create_upsampler("bilinear"))


def test_one_basis_for_all() -> None:
    maps = {"low": torch.rand(8, 3, 3), "high": 10 + torch.rand(8, 6, 6)}
    low, every = shared_basis(maps, "low"), shared_basis(maps, "all")
    torch.testing.assert_close(low.components, PCABasis.fit(maps["low"]).components)
    # Of all maps, what tells the two apart is the first component.
    near, far = (every.colors(every.project(maps[name]))[0].float() for name in maps)
    assert (near.mean() - far.mean()).abs() > 150
    with pytest.raises(UnknownNameError, match="'hig'"):
        shared_basis(maps, "hig")


def test_masks_are_filled_with_their_mean() -> None:
    photo = torch.rand(3, 4, 6)
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, :, 3:] = True
    picture = mask_picture(photo, masks)
    assert (picture[:, :, 3] == 0).all()  # the border
    filled = refine_with_masks(photo[None], masks[None], 1.0)[0]
    torch.testing.assert_close(picture[:, :, 4:].float() / 255, filled[:, :, 4:], atol=3e-3, rtol=0)


def write_photo(folder: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    return folder / "photo.png"


def run(*arguments: object) -> tuple[int, str]:
    command = [
        "show",
        "targets",
        *map(str, arguments),
        "--backbone",
        "upfeat/vit_compact_patch16",
    ]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, command)
    return result.exit_code, result.output


@pytest.mark.parametrize("stage", ["", "_stage1"])  # the first is not in the wheel
def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    weights = Path(__file__).resolve().parents[2] / "weights" if stage else tmp_path / "none"
    monkeypatch.setenv("UPFEAT_WEIGHTS", str(weights))
    monkeypatch.setenv("UPFEAT_CACHE", str(tmp_path / "none"))
    photo, out = write_photo(tmp_path), tmp_path / "out"
    Image.fromarray(LABELS.astype(np.uint8)).save(tmp_path / "masks.png")
    np.save(tmp_path / "depth.npy", np.ones((64, 96), np.float32))
    code, text = run(
        photo, "--out", out, "--masks", tmp_path / "masks.png", "--depth", tmp_path / "depth.npy",
        "--input-size", "32x48", "--side", "64", "--set", "implicit_steps=1",
        "--set", "implicit_views=1", "--set", "output_scale=0.5",
    )  # fmt: skip
    assert code == 0, text
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "photo_targets.json",
        "photo_targets.png",
    ]
    record = json.loads((out / "photo_targets.json").read_text())
    assert [target["name"] for target in record["targets"]] == list(TARGETS)
    assert record["teacher"]["label"] == f"loftup.vit_compact_patch16{stage}"
    assert record["settings"]["output_scale"] == 0.5
    assert record["masks"] == 6
    assert Image.open(out / "photo_targets.png").width > 4 * 64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--masks", "nowhere.png"], "there is none at nowhere.png"),
        (["--masks", "{photo}"], "must have one channel"),
        (["--depth", "{photo}"], "expected one channel"),
        (["--targets", "depht"], "did you mean 'depth'"),
        (["--fit-on", "lo", "--targets", "doubled"], "unknown map to fit the colours to 'lo'"),
        (["--set", "alpha=2"], "alpha"),
        (["--teacher", "jafar", "--targets", "doubled"], "jafar must be trained first"),
    ],
)
def test_command_refuses(tmp_path: Path, arguments: list[str], message: str) -> None:
    photo, out = write_photo(tmp_path), tmp_path / "out"
    filled = [argument.format(photo=photo) for argument in arguments]
    code, text = run(photo, *filled, "--input-size", "32x48", "--out", out)
    assert code == 2, text
    assert message in " ".join(text.split())
    assert not out.exists()


def test_teacher_is_found_for_its_backbone_only(backbone) -> None:
    assert find_teacher("auto", backbone, "cpu") is None
    assert find_teacher("none", backbone, "cpu") is None


def test_masks_and_depth_of_files(tmp_path: Path) -> None:
    photo = write_photo(tmp_path)
    pixels = torch.rand(3, 64, 96)
    assert read_masks("slic", photo, pixels).size == (64, 96)
    Image.fromarray((LABELS * 1000).astype(np.uint16)).save(tmp_path / "depth.png")
    assert read_depth(tmp_path / "depth.png").max() == 5000
    np.save(tmp_path / "bad.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        read_depth(tmp_path / "bad.npy")
    with pytest.raises(FileNotFoundError, match="check --depth"):
        read_depth(tmp_path / "nowhere.png")
