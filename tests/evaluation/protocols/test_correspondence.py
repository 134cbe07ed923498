"""Key points of coloured squares, found by their colours: values that are known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.data import keypoint_folder
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.protocols import correspondence
from upfeat.evaluation.protocols.correspondence import (
    CorrespondenceConfig,
    correspondence_preset,
    run_correspondence,
)
from upfeat.evaluation.results import Result

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}
PLACES = {"a": ((8, 8), (40, 8), (24, 24)), "b": ((24, 8), (40, 24), (8, 24))}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, 48 x 32, of the same three squares of 8 x 8 in other places."""
    folder = tmp_path / "pairs"
    for part in ("images", "annotations"):
        (folder / part).mkdir(parents=True)
    for name, places in PLACES.items():
        image = Image.new("RGB", (48, 32), (100, 100, 100))
        draw = ImageDraw.Draw(image)
        points = {}
        for (x, y), (color, value) in zip(places, COLORS.items(), strict=True):
            draw.rectangle((x - 4, y - 4, x + 3, y + 3), fill=value)
            points[color] = [x, y]
        image.save(folder / f"images/{name}.png")
        content = {"keypoints": points, "box": [0, 0, 40, 20]}
        (folder / f"annotations/{name}.json").write_text(json.dumps(content))
    (folder / "pairs.csv").write_text("source,target\na,b\nb,a\n")
    return folder


@pytest.fixture
def backbone() -> upfeat.Backbone:
    def centred(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image, 4) - 0.4

    return upfeat.CallableBackbone(centred, dim=3, patch_size=4)


def tiny(preset: str = "square", **changes: object) -> CorrespondenceConfig:
    settings: dict[str, object] = {"input_size": 48}
    settings |= {"map_size": 24} if preset in ("square", "geo-aware") else {}
    return correspondence_preset(preset, "keypoints", **settings | changes)


def run(
    root: Path, backbone: upfeat.Backbone, *names: str, config: CorrespondenceConfig | None = None
) -> list[Result]:
    rows = [
        LowRes() if name == "low-res" else Method(name, upfeat.create_upsampler(name))
        for name in names
    ]
    folders = {"out": root.parent / "results", "cache": root.parent / "cache"}
    return run_correspondence(config or tiny(), keypoint_folder(root), backbone, rows, **folders)


@pytest.mark.parametrize("preset", ["square", "lift", "probe3d", "geo-aware"])
def test_colours_are_found(root: Path, backbone: upfeat.Backbone, preset: str) -> None:
    results = run(root, backbone, "low-res", "bilinear", config=tiny(preset, alphas=(0.15, 0.01)))
    for result in results:
        scores = {name: score.mean for name, score in result.scores.items()}
        assert scores["pck_15"] == 100  # within 6 of 40 pixels
        # To less than a pixel only where the squares' middles are found by their surroundings.
        assert (scores["pck_1"] == 100) == (preset == "geo-aware")
        assert scores["pck_image_15"] == scores["pck_pairs_15"] == 100
        assert result.details["categories"]["all"]["pck"] == 100
    low, bilinear = results
    assert low.settings["output_size"] == [12, 12]
    assert bilinear.settings["output_size"] == [24, 24]
    if preset == "geo-aware":
        assert low.scores["geo_pck_15"].mean != low.scores["geo_pck_15"].mean  # no groups: NaN


def test_a_point_that_is_elsewhere_is_missed(root: Path, backbone: upfeat.Backbone) -> None:
    path = root / "annotations/b.json"
    content = json.loads(path.read_text())
    content["keypoints"]["red"] = [46, 30]
    path.write_text(json.dumps(content))
    (result,) = run(root, backbone, "bilinear", config=tiny(alphas=(0.15,)))
    # From a to b 2 of 3; from b to a the place that is asked for is grey: 2 of 3 as well.
    assert result.scores["pck_15"].mean == pytest.approx(400 / 6, abs=1e-3)


def test_an_interrupted_run_goes_on(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = run(root, backbone, "bilinear")
    for path in (root.parent / "results").iterdir():
        path.unlink()
    seen: list[str] = []
    original = correspondence._Matching.square

    def square(self, method, file, pair):  # type: ignore[no-untyped-def]
        seen.append(file.name)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, method, file, pair)

    monkeypatch.setattr(correspondence._Matching, "square", square)
    with pytest.raises(KeyboardInterrupt):
        run(root, backbone, "bilinear")
    assert not list((root.parent / "results").glob("*"))
    (resumed,) = run(root, backbone, "bilinear")
    assert len(seen) == 3
    assert resumed.scores == whole.scores
    assert not list((root.parent / "cache" / "correspondence").iterdir())


def test_pairs_are_drawn_as_the_presets_say(root: Path, backbone: upfeat.Backbone) -> None:
    (result,) = run(root, backbone, "low-res", config=tiny("lift"))
    assert result.settings["splits"]["pairs/all"]["pairs"] == 100  # with replacement
    assert result.details["categories"]["all"]["points"] == 300
    (result,) = run(root, backbone, "low-res", config=tiny("probe3d", limit=1))
    assert result.settings["splits"]["pairs/all"]["pairs"] == 1


def test_settings_of_data_sets() -> None:
    assert correspondence_preset("square", "pf_pascal").threshold == "image"
    assert correspondence_preset("square", "pf_willow").alphas == (0.05, 0.1, 0.15)
    with pytest.raises(ValueError, match="unknown data set"):
        correspondence_preset("square", "spair")


def test_command(root: Path, tmp_path: Path) -> None:
    line = ["eval", "correspondence", "--backbone", "upfeat/vit_compact_patch16", "--data"]
    line += ["homographies", "--root", str(root / "images"), "--upsampler", "low-res,bilinear"]
    line += ["--out", str(tmp_path / "r"), "--cache", str(tmp_path / "c"), "--limit", "1"]
    line += ["--set", "input_size=64", "--set", "map_size=16"]
    outcome = CliRunner(env={"COLUMNS": "250", "UPFEAT_OFFLINE": "1"}).invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    assert "PCK@0.1" in outcome.stdout
    assert len(list((tmp_path / "r").glob("correspondence--homographies--*.json"))) == 2
