"""Discovery of one coloured rectangle an image: the box is known by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import upfeat
from upfeat.cli.app import app
from upfeat.data import mask_folder
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.protocols import discovery
from upfeat.evaluation.protocols.discovery import (
    DiscoveryConfig,
    discovery_preset,
    run_discovery,
)
from upfeat.evaluation.registry import silent
from upfeat.evaluation.results import Result

PLACES = {"a": (8, 4, 24, 16), "b": (20, 12, 36, 28)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images, 46 x 30, of a red rectangle on green; and one without an object."""
    for name, (x0, y0, x1, y1) in {**PLACES, "empty": (0, 0, 0, 0)}.items():
        mask = np.zeros((30, 46), np.uint8)
        mask[y0:y1, x0:x1] = 1
        colors = np.array([[20, 200, 20], [220, 20, 20]], np.uint8)
        for folder, array in (("images", colors[mask]), ("masks", mask)):
            (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(tmp_path / "set" / folder / f"{name}.png")
    return tmp_path / "set"


@pytest.fixture
def backbone() -> upfeat.Backbone:
    pooling = torch.nn.AvgPool2d(4)
    return upfeat.CallableBackbone(lambda image: pooling(image) - 0.4, dim=3, patch_size=4)


def run(
    root: Path, backbone: upfeat.Backbone, *names: str, config: DiscoveryConfig
) -> list[Result]:
    rows = [
        LowRes() if name == "low-res" else Method(name, upfeat.create_upsampler(name))
        for name in names
    ]
    folders = {"out": root.parent / "results", "cache": root.parent / "cache"}
    return run_discovery(config, mask_folder(root), backbone, rows, **folders)


def test_rectangles_are_found(root: Path, backbone: upfeat.Backbone) -> None:
    low, nearest = run(
        root, backbone, "low-res", "nearest", config=discovery_preset("tokencut", "masks")
    )
    for result in (low, nearest):
        assert result.scores["corloc"].mean == 100
        assert result.details["boxes"] == {name: list(box) for name, box in PLACES.items()}
    assert low.settings["upsampler"] == {"name": "low-res"}
    assert nearest.settings["splits"]["set/all"]["images"] == 3
    again = run(root, backbone, "low-res", config=discovery_preset("tokencut", "masks"))
    assert again == [low]


def test_squashed_images(root: Path, backbone: upfeat.Backbone) -> None:
    config = discovery_preset("lift", "masks", side=48, limit=2)
    (result,) = run(root, backbone, "bilinear", config=config)
    assert result.scores["corloc"].mean == 100


def test_the_cut_has_at_most_64_cells_a_side(backbone: upfeat.Backbone, root: Path) -> None:
    config = discovery_preset("tokencut", "masks", factor=20)
    folder = root.parent
    search = discovery._Search(config, folder, silent, mask_folder(root), backbone, folder)
    assert search.grid(Method("x", upfeat.create_upsampler("nearest")), (8, 12)) == (42, 64)
    assert search.grid(LowRes(), (8, 12)) == (8, 12)


def test_an_interrupted_run_goes_on(
    root: Path, backbone: upfeat.Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    original = discovery._Search.find

    def find(self, method, file):  # type: ignore[no-untyped-def]
        seen.append(len(seen))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return original(self, method, file)

    monkeypatch.setattr(discovery._Search, "find", find)
    config = discovery_preset("tokencut", "masks")
    with pytest.raises(KeyboardInterrupt):
        run(root, backbone, "nearest", config=config)
    (result,) = run(root, backbone, "nearest", config=config)
    assert len(seen) == 3
    assert result.scores["corloc"].mean == 100


def test_command(root: Path, tmp_path: Path) -> None:
    line = ["eval", "discovery", "--backbone", "upfeat/vit_compact_patch16", "--data", "masks"]
    line += ["--root", str(root), "--upsampler", "low-res", "--out", str(tmp_path / "r")]
    line += ["--cache", str(tmp_path / "c"), "--limit", "1"]
    outcome = CliRunner(env={"COLUMNS": "200", "UPFEAT_OFFLINE": "1"}).invoke(app, line)
    assert outcome.exit_code == 0, outcome.output
    assert "CorLoc" in outcome.stdout
