"""Bird's-eye-view segmentation on one key frame: what is learned, resumed, written, refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import upfeat
from tests.data.test_nuscenes import write_sample
from upfeat.data import DrivingData, nuscenes_sample
from upfeat.errors import UnknownNameError
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.probes.bev import training
from upfeat.evaluation.probes.bev.networks import BevConfig
from upfeat.evaluation.protocols.bev import bev_preset, run_bev
from upfeat.evaluation.results import Result

SMALL: dict[str, Any] = {
    "image_size": "32x64",
    "width": 8,
    "neck_width": 8,
    "embedding_width": 8,
    "grid_size": (24, 24),
    "heights": 2,
    "epochs": 4,
    "validate_every": 2,
    "bevformer_feed_forward": 8,
    "bevformer_count": 1,
}
OF_PRESET: dict[str, dict[str, Any]] = {
    "simplebev": {"trunk": (4, 8, 8)},
    "pointbev": {"sparse_width": 4, "coarse_points": 100, "fine_points": 60, "anchors": 4},
    "bevformer": {},
}


@pytest.fixture
def data(tmp_path: Path) -> DrivingData:
    """One key frame with a vehicle of several of the wide cells."""
    root = tmp_path / "sample"
    root.mkdir()
    path = write_sample(root) / "sample.json"
    path.write_text(path.read_text().replace("4.0, 2.0, 1.5", "24.0, 12.0, 1.5"))
    return nuscenes_sample(root)


@pytest.fixture
def backbone() -> upfeat.Backbone:
    torch.manual_seed(0)
    patches = torch.nn.Conv2d(3, 6, 8, 8).requires_grad_(False)
    return upfeat.CallableBackbone(patches, dim=6, patch_size=8)


def config(preset: str = "simplebev", **changes: Any) -> BevConfig:
    return bev_preset(preset, "nuscenes_sample", **SMALL | OF_PRESET[preset] | changes)


def run(
    data: DrivingData,
    backbone: upfeat.Backbone,
    methods: list[Method],
    folder: Path,
    settings: BevConfig,
    **options: Any,
) -> list[Result]:
    return run_bev(
        settings,
        nuscenes_sample(data.files[0].cameras[0].image.parent, "train"),
        data,
        backbone,
        methods,
        out=folder / "out",
        cache=folder / "cache",
        **options,
    )


def bilinear() -> Method:
    return Method("bilinear", upfeat.create_upsampler("bilinear"))


@pytest.mark.parametrize("preset", list(OF_PRESET))
def test_loss_falls(
    data: DrivingData, backbone: upfeat.Backbone, tmp_path: Path, preset: str
) -> None:
    settings = config(preset, epochs=12, learning_rate=1e-2)
    (result,) = run(data, backbone, [bilinear()], tmp_path, settings)
    scores = {name: score.mean for name, score in result.scores.items()}
    assert scores["loss"] < 0.8 * scores["first_loss"]
    assert len(result.details["validations"]["0"]) == 6
    assert result.settings["splits"]["nuscenes_sample/val"]["key_frames"] == 1


def test_a_frame_is_learned_by_heart(
    data: DrivingData, backbone: upfeat.Backbone, tmp_path: Path
) -> None:
    settings = config(epochs=40, learning_rate=5e-3, validate_every=40, aux_heads=False)
    (result,) = run(data, backbone, [bilinear()], tmp_path, settings)
    assert result.scores["iou"].mean >= 90
    assert result.scores["iou_visible"] == result.scores["iou"]


def test_upsamplers_are_trained_with_the_rest(
    data: DrivingData, backbone: upfeat.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[bool, dict[str, Any], dict[str, Any]]] = []
    run_once = training.BevTraining.step

    def step(self: Any, model: training.BevModel, *rest: Any) -> float:
        before = {name: w.clone() for name, w in model.upsampler.state_dict().items()}
        loss = run_once(self, model, *rest)
        trained.append((model.trains_upsampler, before, model.upsampler.state_dict()))
        return loss

    monkeypatch.setattr(training.BevTraining, "step", step)
    jafar = Method("jafar", upfeat.create_upsampler("jafar", feature_dim=6))
    weights = {name: w.clone() for name, w in jafar.upsampler.state_dict().items()}
    (result,) = run(data, backbone, [jafar], tmp_path, config(epochs=2))
    learns, before, after = trained[0]
    assert learns
    assert any(not torch.equal(before[name], after[name]) for name in before)
    # The method's own weights are neither used nor changed.
    assert any(not torch.equal(before[name], weights[name]) for name in before)
    assert all(torch.equal(w, weights[name]) for name, w in jafar.upsampler.state_dict().items())
    assert "random ones of the seed" in result.settings["upsampler"]["weights"]
    trained.clear()
    (given,) = run(data, backbone, [jafar], tmp_path, config(epochs=2, upsampler_init="pretrained"))
    assert all(torch.equal(w, weights[name]) for name, w in trained[0][1].items())
    assert given.settings["upsampler"]["weights"] != result.settings["upsampler"]["weights"]


@pytest.mark.parametrize("preset", list(OF_PRESET))
def test_an_interrupted_run_goes_on_to_the_same_numbers(
    data: DrivingData,
    backbone: upfeat.Backbone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    preset: str,
) -> None:
    settings = config(preset, augment=True)
    (whole,) = run(data, backbone, [bilinear()], tmp_path / "whole", settings)
    monkeypatch.setattr(training, "SAVE_SECONDS", 0.0)

    def stop(label: str, stage: str, done: int, total: int) -> None:
        if stage.startswith("training") and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(data, backbone, [bilinear()], tmp_path / "parts", settings, on_progress=stop)
    steps: list[int] = []
    (parts,) = run(
        data,
        backbone,
        [bilinear()],
        tmp_path / "parts",
        settings,
        on_progress=lambda label, stage, done, total: steps.append(done),
    )
    assert steps[0] == 3
    assert parts.scores == whole.scores
    assert parts.details == whole.details
    assert not list((tmp_path / "parts" / "cache").rglob("*.pt"))
    # A finished method is read.
    steps.clear()
    run(
        data,
        backbone,
        [bilinear()],
        tmp_path / "parts",
        settings,
        on_progress=lambda *shown: steps.append(1),
    )
    assert steps == []


def test_low_res_keeps_the_backbones_grid(
    data: DrivingData, backbone: upfeat.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[tuple[int, ...]] = []
    whole = training.BevModel.maps

    def maps(self: training.BevModel, *arguments: Any) -> torch.Tensor:
        shapes.append(tuple(whole(self, *arguments).shape))
        return whole(self, *arguments)

    monkeypatch.setattr(training.BevModel, "maps", maps)
    run(data, backbone, [LowRes(), bilinear()], tmp_path, config(epochs=1))
    assert set(shapes) == {(6, 8, 4, 8), (6, 8, 8, 16)}


def test_a_narrow_neck_goes_first(
    data: DrivingData, backbone: upfeat.Backbone, tmp_path: Path
) -> None:
    """A 1x1 convolution in front of a linear method gives the maps that it gives behind."""
    settings = config(neck="conv1")
    pipe = upfeat.Pipeline(backbone)
    model = training.BevModel(settings, bilinear(), pipe, 0)
    image, features = torch.rand(6, 3, 32, 64), torch.rand(6, 6, 4, 8)
    assert model.neck_first
    first = model.maps(image, features, (8, 16))
    model.neck_first = False
    torch.testing.assert_close(first, model.maps(image, features, (8, 16)))


def test_padding_moves_the_principal_point(
    data: DrivingData, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upfeat.evaluation.probes.bev.frames import BevFrames, ViewSettings
    from upfeat.evaluation.probes.bev.lifting import BevGrid

    grid = BevGrid.around((24, 24), 2)
    plain, padded = (
        BevFrames(data, ViewSettings((28, 62), (0.04, 0.04), (0.8, 0.8), padding), grid).load(0)
        for padding in (0, 1)
    )
    moved = padded.cameras.intrinsics - plain.cameras.intrinsics
    assert moved[..., 0, 2].unique().tolist() == [1.0]
    assert moved.abs().sum() == 6
    assert plain.images.shape == padded.images.shape


def test_one_cycle_is_torchs() -> None:
    settings = bev_preset("simplebev", "nuscenes")
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=60,
        pct_start=settings.warm_up,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=settings.start_division,
        final_div_factor=settings.end_division,
    )
    for step in range(60):
        expected = optimizer.param_groups[0]["lr"]
        assert training.one_cycle(step, 60, settings) == pytest.approx(expected, rel=1e-9)
        optimizer.step()
        if step < 59:
            cycle.step()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"grid_size": (20, 24)}, "multiples of 8"),
        ({"image_size": "big"}, "image_size must be HxW"),
        ({"min_visibility": 5}, "min_visibility"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        config(**changes)


def test_impossible_settings_of_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="ask for no more points"):
        config("pointbev", coarse_points=1000)
    with pytest.raises(ValueError, match="odd"):
        config("pointbev", fine_patch_size=4)
    with pytest.raises(ValueError, match="heights that divide 8"):
        config("bevformer", heights=3)
    with pytest.raises(UnknownNameError, match="bevformer"):
        bev_preset("bevformers", "nuscenes")


def test_images_that_the_backbone_does_not_take_are_refused(
    data: DrivingData, tmp_path: Path
) -> None:
    vit = upfeat.create_backbone("upfeat/vit_compact_patch16")
    with pytest.raises(ValueError, match="16"):
        run(data, vit, [bilinear()], tmp_path, config(image_size="30x64"))


def test_a_loss_that_is_not_finite_stops_the_run(data: DrivingData, tmp_path: Path) -> None:
    broken = upfeat.CallableBackbone(
        lambda image: torch.full((len(image), 6, 4, 8), torch.nan), dim=6, patch_size=8
    )
    with pytest.raises(ValueError, match="loss is nan in step 0"):
        run(data, broken, [bilinear()], tmp_path, config(augment=True))
