"""The probes of normals and depth with convolutional heads, on tiny pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from typer.testing import CliRunner

import upfeat
from tests.data.test_surfaces import make_rgbd
from tests.data.trees import write, write_image
from upfeat.cli.app import app
from upfeat.data import nyuv2_depth
from upfeat.data.surfaces import SurfaceData, SurfaceImage
from upfeat.errors import UnknownNameError
from upfeat.evaluation.methods import JointMethod, LowRes, Method
from upfeat.evaluation.probes.parts import DenseHeads, DptHead
from upfeat.evaluation.probes.surfaces import color_jitter, zoomed
from upfeat.evaluation.protocols.depth_probe import depth_probe_preset, run_depth_probe
from upfeat.evaluation.protocols.normals_probe import (
    NormalsProbeConfig,
    _NormalsProbe,
    normals_probe_preset,
    run_normals_probe,
)
from upfeat.evaluation.registry import silent
from upfeat.evaluation.results import Result

PATCH = 4
SIDE = 16


class Name(str):
    """A picture that is made up; its number is its seed."""

    @property
    def name(self) -> str:
        return str(self)


@dataclass(frozen=True)
class MadeUp(SurfaceData[Name]):
    """Patches of one normal each, whose picture shows the normal as a colour."""

    name: str
    files: tuple[Name, ...]
    has_normals: bool = True

    def read(self, file: Name) -> SurfaceImage:
        generator = torch.Generator().manual_seed(int(file))
        cells = torch.randn(3, SIDE // PATCH, SIDE // PATCH, generator=generator)
        cells = torch.nn.functional.normalize(cells, dim=0)
        normals = cells.repeat_interleave(PATCH, 1).repeat_interleave(PATCH, 2)
        depth = 0.5 + 0.2 * normals[0]
        depth[0] = 0
        return SurfaceImage(normals / 2 + 0.5, depth, normals if self.has_normals else None)

    def paths(self, file: Name) -> Sequence[Path]:
        return ()


def made_up(start: int, count: int, **options: Any) -> MadeUp:
    return MadeUp(f"made-up/{start}", tuple(Name(start + i) for i in range(count)), **options)


def pooling() -> upfeat.Backbone:
    return upfeat.CallableBackbone(torch.nn.AvgPool2d(PATCH), dim=3, patch_size=PATCH, name="pool")


SMALL: dict[str, Any] = {
    "crop_size": SIDE,
    "score_size": SIDE,
    "hidden": 8,
    "epochs": 2,
    "batch": 2,
    "jitter": 0.0,
}


def config(preset: str = "loftup", **changes: Any) -> NormalsProbeConfig:
    return normals_probe_preset(preset, "rgbd", **SMALL | changes)


def method(name: str, **options: Any) -> Method:
    return Method(name, upfeat.create_upsampler(name, **options))


def probe(
    folder: Path, *methods: Method, settings: NormalsProbeConfig, **inputs: Any
) -> list[Result]:
    return run_normals_probe(
        settings,
        inputs.get("train", made_up(0, 4)),
        inputs.get("val", made_up(100, 2)),
        pooling(),
        methods,
        out=folder / "results",
        cache=folder / "cache",
    )


def test_normals_in_the_features_are_learnt(tmp_path: Path) -> None:
    settings = config(head="linear", epochs=20, learning_rate=0.1)
    nearest, bilinear, low = probe(
        tmp_path, method("nearest"), method("bilinear"), LowRes(), settings=settings
    )
    assert nearest.scores["rmse"].mean < 15
    assert nearest.scores["recall_30"].mean > 95
    assert nearest.scores["rmse"].mean < bilinear.scores["rmse"].mean
    assert nearest.scores["rmse"].mean < low.scores["rmse"].mean
    assert nearest.details["images"] == 2
    assert nearest.details["head_before_upsampling"] == {"training": True, "validation": True}
    assert not list((tmp_path / "cache/probes").iterdir())
    again, *_ = probe(tmp_path, method("nearest"), method("bilinear"), LowRes(), settings=settings)
    assert again == nearest


def test_convolutional_head_learns_and_joint_methods_train(tmp_path: Path) -> None:
    resfu = JointMethod("resfu", upfeat.create_upsampler("resfu", feature_dim=3))
    few = config(seeds=(0, 1))
    many = config(epochs=30, learning_rate=5e-3, hidden=16, seeds=(0,))
    seen = made_up(0, 4)  # the pictures that it was trained on
    first, joint = probe(tmp_path, method("nearest"), resfu, settings=few, val=seen)
    assert len(first.scores["rmse"].per_seed) == len(joint.scores["rmse"].per_seed) == 2
    assert first.scores["rmse"].per_seed[0] != first.scores["rmse"].per_seed[1]
    assert first.details["head_before_upsampling"]["validation"] is False
    (longer,) = probe(tmp_path, method("nearest"), settings=many, val=seen)
    assert longer.scores["rmse"].mean < 30 < first.scores["rmse"].mean


def test_an_interrupted_run_goes_on_to_the_same_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(jitter=1.0, zoom=0.5, epochs=3)
    (whole,) = probe(tmp_path / "whole", method("nearest"), settings=settings)
    epochs = _NormalsProbe._train_epoch

    def stops(self: _NormalsProbe, active: Any, epoch: int) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        epochs(self, active, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(_NormalsProbe, "_train_epoch", stops)
        with pytest.raises(KeyboardInterrupt):
            probe(tmp_path / "parts", method("nearest"), settings=settings)
    (resumed,) = probe(tmp_path / "parts", method("nearest"), settings=settings)
    assert resumed.scores == whole.scores
    # Features of changed pictures are not kept, those of the scored ones are.
    assert len(list((tmp_path / "whole/cache/features").rglob("*.npy"))) == 2


def engine(tmp_path: Path, **changes: Any) -> _NormalsProbe:
    settings = config(**changes)
    data = made_up(0, 2), made_up(9, 1)
    return _NormalsProbe(settings, tmp_path, silent, *data, pooling(), tmp_path)


def test_targets_at_another_size_and_padding(tmp_path: Path) -> None:
    """14 is no multiple of 4: two pixels of the mean colour; outputs grow to the target."""
    task = engine(tmp_path, crop_size=14, score_size=24)
    image, target = task.read("val", 0)
    assert (image.shape, target.shape) == ((3, 16, 16), (4, 24, 24))
    assert task.size == (16, 16)
    assert image[:, 0].unique().tolist() == [pytest.approx(m) for m in set(pooling().image_mean)]
    outputs = torch.randn(1, 1, 4, 16, 16)
    assert task.enlarged(outputs[:, 0]).shape == (1, 4, 24, 24)
    loss = task.loss(outputs, target[None], 0)
    assert loss is not None
    assert task.loss(outputs, torch.zeros_like(target[None]), 0) is None
    both = task.loss(outputs.expand(-1, 2, -1, -1, -1), target[None], 0)
    assert both is not None
    assert both.item() == pytest.approx(2 * loss.item(), rel=1e-5)


def test_augmentation_changes_with_the_epoch_and_only_in_training(tmp_path: Path) -> None:
    task = engine(tmp_path, jitter=1.0, zoom=1.0)
    first, target = task.read("train", 0)
    again, _ = task.read("train", 0)
    assert torch.equal(first, again)
    task.epoch = 1
    other, moved = task.read("train", 0)
    assert not torch.equal(first, other)
    assert not torch.equal(target, moved)
    assert torch.equal(task.read("val", 0)[0], task.splits["val"][0].image)


def test_settings_say_which_features_are_stored(tmp_path: Path) -> None:
    texts = []
    for changes in ({}, {"jitter": 1.0}, {"zoom": 0.5}):
        task = engine(tmp_path / str(len(texts)), **changes)
        task.load("train", [0])
        kept = list((tmp_path / str(len(texts))).rglob("*.npy"))
        texts.append(task.settings(method("nearest"))["features"])
        assert bool(kept) == (texts[-1] == "stored")
    assert texts[0] == "stored"
    assert texts[1] == texts[2] == "of a training image computed for each step, of others stored"


def test_jitter_and_zoom() -> None:
    image = torch.rand(3, 8, 8)
    changed = color_jitter(image, torch.Generator().manual_seed(3))
    assert 0 <= float(changed.min()) <= float(changed.max()) <= 1
    assert not torch.equal(changed, image)
    sample = SurfaceImage(image.repeat(1, 4, 4), torch.rand(32, 32), torch.rand(3, 32, 32))
    for seed in range(20):
        part = zoomed(sample, torch.Generator().manual_seed(seed))
        side = part.depth.shape[0]
        assert 22 <= side <= 32
        assert part.normals is not None
        assert part.image.shape == part.normals.shape == (3, side, side)


def test_heads() -> None:
    """Seven convolutions with one input, twenty with four; a seed decides how a head starts."""
    counts = [
        sum(isinstance(part, torch.nn.Conv2d) for part in DptHead(4, 2, 8, inputs).modules())
        for inputs in (1, 4)
    ]
    assert counts == [7, 20]
    x = torch.rand(1, 3, 5, 5)
    heads = DenseHeads(3, 2, (0, 1, 0), hidden=4)
    first, second, third = (heads(x, None, slice(i, i + 1)) for i in range(3))
    assert torch.equal(first, third)
    assert not torch.equal(first, second)
    assert DptHead(3, 2, 4, inputs=4, limit=40)(torch.rand(1, 12, 5, 5)).shape[2:] == (40, 40)
    assert DptHead(3, 2, 4, inputs=4, limit=40)(torch.rand(1, 12, 40, 40)).shape[2:] == (40, 40)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="preset"):
        normals_probe_preset("dpt", "navi")
    with pytest.raises(ValidationError, match="flip"):
        config(flip=0.5)
    with pytest.raises(ValueError, match="four layers"):
        probe(tmp_path, method("nearest"), settings=config("probe3d"))
    flat = made_up(0, 2, has_normals=False)
    with pytest.raises(ValueError, match="has no normals"):
        probe(tmp_path, method("nearest"), settings=config(), train=flat)
    assert not (tmp_path / "results").exists()


def test_four_layers_of_a_backbone(tmp_path: Path) -> None:
    """The head reads the layers apart; without an upsampler it enlarges their maps itself."""
    vit = upfeat.create_backbone(
        "timm/vit_tiny_patch16_224", weights="random", depth=4, layers=(0, 1, 2, 3)
    )
    small = {"crop_size": 32, "score_size": 32, "epochs": 1, "head": "dpt"}
    settings = config("probe3d", **small)
    data = made_up(0, 2), made_up(9, 1)
    task = _NormalsProbe(settings, tmp_path, silent, *data, vit, tmp_path)
    heads = task.heads()
    assert isinstance(heads, DenseHeads)
    assert heads(torch.rand(1, 4 * 192, 2, 2), None, slice(0, 1)).shape == (1, 4, 32, 32)
    assert heads(torch.rand(1, 4 * 192, 32, 32), None, slice(0, 1)).shape == (1, 4, 32, 32)
    low, bilinear = task.run([LowRes(), method("bilinear")])
    assert low.scores["rmse"].mean != bilinear.scores["rmse"].mean


# -- depth ---------------------------------------------------------------------------------------


def depth(folder: Path, data: str = "navi", **changes: Any) -> Result:
    settings = depth_probe_preset("navi", data, **SMALL | changes)
    (result,) = run_depth_probe(
        settings,
        made_up(0, 4),
        made_up(100, 2),
        pooling(),
        [method("nearest")],
        out=folder / "results",
        cache=folder / "cache",
    )
    return result


def test_depth_is_learnt(tmp_path: Path) -> None:
    relative = depth(tmp_path, head="linear", bins=16, epochs=20, learning_rate=0.1)
    metric = depth(
        tmp_path, head="linear", bins=16, epochs=20, learning_rate=0.1, depth_target="metric"
    )
    assert (relative.unit, metric.unit) == ("", "m")
    assert metric.settings["max_depth"] == 1.0
    assert metric.scores["d1"].mean > 90
    assert metric.scores["si_rmse"].mean <= metric.scores["rmse"].mean + 1e-3
    assert relative.scores["si_d1"].mean > 50


def test_depth_of_nyu_without_normals(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(2):
            write_image(tmp_path / "set" / split / "images" / f"{i}.png", size=(16, 24))
            cells = np.full((16, 24), 60 + 40 * i, np.uint8)
            write(tmp_path / "set" / split / "depth" / f"{i}.png", cells)
    settings = depth_probe_preset("probe3d-nyu", "nyuv2", **SMALL | {"head": "dpt7", "bins": 8})
    train, val = (nyuv2_depth(tmp_path / "set", split) for split in ("train", "val"))
    common: dict[str, Any] = {"out": tmp_path / "results", "cache": tmp_path / "cache"}
    (result,) = run_depth_probe(settings, train, val, pooling(), [method("bilinear")], **common)
    assert result.settings["splits"]["nyuv2-depth/val"]["images"] == 2
    assert (result.settings["max_depth"], result.unit) == (10.0, "m")
    plain = depth_probe_preset("nyu", "nyuv2", crop_size=SIDE)
    with pytest.raises(ValueError, match="take a preset of its form"):
        run_depth_probe(plain, made_up(0, 2), made_up(5, 2), pooling(), [], **common)


def test_command(tmp_path: Path) -> None:
    root = make_rgbd(tmp_path)
    (root / "room").rename(root / "livingroom")
    text = (root / "meta.json").read_text().replace('"room"', '"livingroom"')
    (root / "meta.json").write_text(text)
    arguments = ["eval", "normals-probe", "--data", "rgbd", "--root", str(root)]
    arguments += ["--backbone", "upfeat/vit_compact_patch16", "--upsampler", "low-res"]
    arguments += ["--limit", "1", "--set", "hidden=4", "--set", "epochs=1"]
    arguments += ["--set", "crop_size=32", "--set", "score_size=32"]
    arguments += ["--out", str(tmp_path / "results"), "--cache", str(tmp_path / "cache")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "low-res" in done.output
    (path,) = (tmp_path / "results").glob("normals-probe--rgbd--*.json")
    assert Result.load(path).settings["crop_size"] == 32
