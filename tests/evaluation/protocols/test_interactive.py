"""Interactive segmentation on tiny images: what it learns, writes, resumes, leaves out, refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.data import ObjectData, load_objects
from upfeat.errors import UnknownNameError, UnsupportedError
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.probes import click_training
from upfeat.evaluation.probes.click_training import ClickTraining, ClickTrainingConfig
from upfeat.evaluation.protocols.interactive import interactive_preset, run_interactive
from upfeat.evaluation.results import Result
from upfeat.upsamplers import Abilities, UpsamplerInfo, WholeMapUpsampler

TINY = {
    "crop_size": 32,
    "feature_size": 16,
    "batch": 2,
    "draws": 6,
    "epochs": 2,
    "clicks": 2,
    "injection": "late",
    "thresholds": (50,),
}


def write(folder: Path, count: int, kinds: tuple[str, str] = ("images", "masks")) -> None:
    """Bright squares, one an image, on a dark ground."""
    for index in range(count):
        mask = np.zeros((40, 48), np.uint8)
        top, left = 4 + 3 * index % 16, 5 + 5 * index % 20
        mask[top : top + 18, left : left + 20] = 1
        image = np.stack([60 + 150 * mask, 40 + 20 * mask, 90 - 60 * mask], 2).astype(np.uint8)
        for kind, array in zip(kinds, (image, mask), strict=True):
            path = folder / kind / f"p{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "grabcut", 2)
    write(tmp_path / "train", 6)
    return tmp_path


@pytest.fixture
def backbone() -> upfeat.Backbone:
    """Colours and their opposites, for the head has as many channels as the features."""

    def both(image: torch.Tensor) -> torch.Tensor:
        pooled = torch.nn.functional.avg_pool2d(image, 4)
        return torch.cat([pooled, -pooled, pooled.abs(), 1 - pooled], 1)

    return upfeat.CallableBackbone(both, dim=12, patch_size=4)


def config(**changes: object) -> ClickTrainingConfig:
    return interactive_preset("loftup", "grabcut", **TINY | changes)


def sets(root: Path) -> tuple[ObjectData, list[ObjectData]]:
    folders = ("grabcut", "train")
    data, train = (load_objects("grabcut", root / name, "val") for name in folders)
    return data, [train]


def run(root: Path, backbone: upfeat.Backbone, *names: str, **changes: object) -> list[Result]:
    data, train = sets(root)
    rows = [LowRes() if n == "low-res" else Method(n, upfeat.create_upsampler(n)) for n in names]
    folders = {"out": root / "results", "cache": root / "cache"}
    return run_interactive(config(**changes), data, train, backbone, rows, **folders)


def test_results_curves_and_pictures(root: Path, backbone: upfeat.Backbone) -> None:
    low, bilinear = run(root, backbone, "low-res", "bilinear")
    for result in (low, bilinear):
        assert set(result.scores) == {"iou_1", "noc_50", "missed_50"}
        assert 1 <= result.scores["noc_50"].mean <= 2
        assert result.details["objects"] == 2
        assert len(result.details["mean_iou_by_click"]) == 2
        assert result.details["mean_iou_by_click"][0] == pytest.approx(
            result.scores["iou_1"].mean, abs=1e-3
        )
        objects = result.details["iou_1_by_object"]["0"]
        assert set(objects) == {"p0/1", "p1/1"}
        assert result.settings["trained_on"] == ["grabcut"]
    files = {path.name for path in (root / "results").iterdir()}
    assert {low.file_name("grabcut"), bilinear.file_name("grabcut")} < files
    figures = [root / "results" / f"interactive--grabcut--{name}.svg" for name in CURVES]
    assert all(path.read_text().count("<polyline") == 2 for path in figures)
    assert len(list((root / "results/panels").iterdir())) == 8  # image, object and two masks, twice
    assert not list((root / "cache").rglob("*.pt"))
    again = run(root, backbone, "low-res", "bilinear")
    assert again == [low, bilinear]


CURVES = ("iou-by-click", "clicks-by-iou")


def test_squares_are_learnt(root: Path, backbone: upfeat.Backbone) -> None:
    changes = {"epochs": 25, "draws": 16, "batch": 4, "learning_rate": 1e-2, "corrective": 1}
    (result,) = run(root, backbone, "bilinear", **changes)
    assert result.scores["iou_1"].mean > 60


@pytest.mark.parametrize("limit", [None, 1])
def test_images_of_the_evaluated_set_are_not_trained_on(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    seen: list[str] = []

    def note(self: ClickTraining, on_step: Callable[[int, int], None]) -> None:
        seen.extend(file.name for _, file in self.files)
        self.probe.eval()

    monkeypatch.setattr(ClickTraining, "run", note)
    run(root, backbone, "low-res", train_limit=3, limit=limit)
    assert seen == ["p2", "p3", "p4"]  # with a limit, too, the set keeps p0 and p1 to itself


class StopError(Exception):
    pass


def trained(root: Path, backbone: upfeat.Backbone, method: Method, stop: int | None = None):  # type: ignore[no-untyped-def]
    _, train = sets(root)
    settings = config(released_batchnorm=method.label == "norms")
    training = ClickTraining(settings, train, backbone, method, 3, root / f"{method.label}.pt")

    def step(done: int, total: int) -> None:
        if done == stop:
            raise StopError

    training.run(step)
    return training


class Norms(WholeMapUpsampler):
    """Bilinear behind a batch norm and dropout, which only training mode shows."""

    info = UpsamplerInfo(name="norms", summary="", abilities=Abilities())

    def __init__(self) -> None:
        super().__init__()
        self.config = {}
        self.norm, self.drop = torch.nn.BatchNorm2d(12), torch.nn.Dropout(0.5)

    def upsample(self, image, features, output_size, values):  # type: ignore[no-untyped-def]
        values = self.drop(self.norm(values))
        return torch.nn.functional.interpolate(values, output_size, mode="bilinear")


@pytest.mark.parametrize("kind", ["bilinear", "norms"])
def test_an_interrupted_training_goes_on_to_the_same_bits(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(click_training, "KEPT_EVERY", 2)
    up = Norms() if kind == "norms" else upfeat.create_upsampler(kind)
    method = Method(kind, up)
    whole = trained(root, backbone, method)
    (root / f"{kind}.pt").unlink()
    with pytest.raises(StopError):
        trained(root, backbone, method, stop=5)
    resumed = trained(root, backbone, method)
    for one, other in zip(whole.probe.parameters(), resumed.probe.parameters(), strict=True):
        assert torch.equal(one, other)
    for one, other in zip(whole.upsampler.buffers(), resumed.upsampler.buffers(), strict=True):
        assert torch.equal(one, other)
    if kind == "norms":  # the statistics drifted in training, and the evaluation's did not
        assert not torch.equal(whole.upsampler.norm.running_mean, torch.zeros(12))  # type: ignore[union-attr]
        assert torch.equal(whole.original.norm.running_mean, torch.zeros(12))  # type: ignore[union-attr]
        assert not method.upsampler.training


def test_a_checkpoint_that_is_no_checkpoint_is_none(
    root: Path, backbone: upfeat.Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    method = Method("bilinear", upfeat.create_upsampler("bilinear"))
    (root / "bilinear.pt").write_bytes(b"half")
    assert trained(root, backbone, method).step == 6
    assert "from the start" in caplog.text


def test_clicked_objects_are_kept(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    from upfeat.evaluation.protocols import interactive

    original, seen = interactive.click_steps, []

    def steps(network, image, target, rules):  # type: ignore[no-untyped-def]
        seen.append(int(target.sum()))
        if len(seen) == 2:
            raise StopError
        return original(network, image, target, rules)

    whole = run(root, backbone, "low-res")
    (root / "results" / whole[0].file_name("grabcut")).unlink()
    monkeypatch.setattr(interactive, "click_steps", steps)
    with pytest.raises(StopError):
        run(root, backbone, "low-res")
    (resumed,) = run(root, backbone, "low-res")
    assert len(seen) == 3  # the first object once, the second twice
    assert resumed.scores == whole[0].scores


def test_errors(root: Path, backbone: upfeat.Backbone) -> None:
    with pytest.raises(UnknownNameError, match="preset"):
        interactive_preset("simpleclick", "grabcut")
    with pytest.raises(UnknownNameError, match="data set"):
        interactive_preset("loftup", "pascal")
    with pytest.raises(UnsupportedError, match="injection=late"):
        run(root, backbone, "low-res", injection="early")
    with pytest.raises(ValueError, match="a batch of 8"):
        run(root, backbone, "low-res", batch=8)
    fitted = Method("fitted", upfeat.create_upsampler("bilinear"))
    fitted.upsampler.info = fitted.upsampler.info.with_abilities(gradients=False)
    data, train = sets(root)
    folders = {"out": root / "results", "cache": root / "cache"}
    with pytest.raises(UnsupportedError, match="fitted gives no gradient"):
        run_interactive(config(), data, train, backbone, [fitted], **folders)
    assert not list((root / "results").glob("*.json"))


# -- the command ---------------------------------------------------------------------------------


def arguments(root: Path, *more: object) -> list[str]:
    fixed = ("eval", "interactive", "--data", "grabcut", "--backbone", "upfeat/vit_compact_patch16")
    folders = ("--out", root / "results", "--cache", root / "cache", "--root", root / "grabcut")
    settings = {"crop_size": 32, "feature_size": 8, "batch": 2, "draws": 4, "epochs": 1}
    changes = [part for item in settings.items() for part in ("--set", "{}={}".format(*item))]
    line = (*fixed, *folders, *changes, "--set", "clicks=2", "--set", "thresholds=[50]", *more)
    return [str(part) for part in line]


def test_command(root: Path) -> None:
    environment = {"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}
    train = f"grabcut={root / 'train'}"
    line = arguments(root, "--upsampler", "low-res,bilinear", "--train", train, "--limit", "1")
    outcome = CliRunner(env=environment).invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    assert "IoU@1" in outcome.stdout
    assert "NoC at 50" in outcome.stdout
    (low, bilinear) = (
        Result.load(next((root / "results").glob(f"*--{name}--*.json")))
        for name in ("low-res", "bilinear")
    )
    assert low.settings["injection"] == bilinear.settings["injection"] == "early"
    assert bilinear.details["objects"] == 1


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        (("--train", ""), "--train takes NAME=FOLDER"),
        (("--train", "sbd=nowhere"), "not a copy of SBD"),
        (("--train", "voc=x"), "unknown set of objects"),
        (("--train", "grabcut=.", "--root", "nowhere"), "Expected:"),
    ],
)
def test_command_errors(root: Path, more: tuple[str, ...], problem: str) -> None:
    line = arguments(root, "--upsampler", "low-res", *more)
    outcome = CliRunner(env={"COLUMNS": "300", "UPFEAT_OFFLINE": "1"}).invoke(app, line)
    assert outcome.exit_code == 2
    assert problem in " ".join(outcome.output.split())
    assert not (root / "results").exists()
