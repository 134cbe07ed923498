"""``upfeat report``: from folders to a page, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from upfeat.cli.app import app
from upfeat.evaluation.results import Result, Score
from upfeat.evaluation.tables.panels import Panel, save_panel


def save_results(folder: Path) -> None:
    for label, miou in (("bilinear", 70.0), ("kin.upfeat", 80.0), ("nearest", 60.0)):
        Result(
            task="seg-probe",
            label=label,
            settings={"data": "msrc", "seeds": [0], "upsampler": {"name": label}},
            scores={"miou": Score.of([miou])},
            seconds={"training": miou},
            environment={"date": "2026-01-01T00:00:00", "torch": "2.13.0"},
        ).save(folder / f"{label}.json")


def save_panels(folder: Path) -> None:
    image = torch.zeros(3, 24, 32, dtype=torch.uint8)
    save_panel(folder, Panel("depth-probe", "nyuv2", "room", "image", "image", image))
    for label, scale in (("bilinear", 2.0), ("kin.upfeat", 4.0)):
        depth = torch.full((24, 32), scale)
        depth[0, 0] = torch.nan
        save_panel(folder, Panel("depth-probe", "nyuv2", "room", label, "depth", depth, unit="m"))
    target = torch.tensor([[0, 1], [255, 1]])
    known = {"classes": ("sky", "car", "tree"), "ignore_index": 255}
    for label, kind in (("target", "target"), ("kin.upfeat", "prediction")):
        save_panel(folder, Panel("seg-probe", "camvid", "a", label, kind, target, **known))


def report(*arguments: object) -> str:
    outcome = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["report", *map(str, arguments)])
    assert outcome.exit_code == 0, outcome.output
    return outcome.stdout


def refused(*arguments: object) -> str:
    outcome = CliRunner(env={"COLUMNS": "300"}).invoke(app, ["report", *map(str, arguments)])
    assert outcome.exit_code == 2, outcome.output
    return outcome.stderr


def test_tables_pictures_and_markdown(tmp_path: Path) -> None:
    results, out = tmp_path / "results", tmp_path / "report"
    save_results(results)
    save_panels(results)
    (results / "remarks.md").write_text("## Segmentation, linear probe\n\nAs expected.\n")
    printed = report(results, "--out", out, "--markdown", tmp_path / "docs" / "results.md")
    assert printed.split() == [str(out / "index.html"), str(tmp_path / "docs" / "results.md")]
    page = (out / "index.html").read_text(encoding="utf-8")
    assert '<td class="best" data-value="80.0"><b>80.00</b>' in page
    assert '<td class="second" data-value="70.0"><u>70.00</u>' in page
    assert "<svg" in page
    assert "3 results" in page
    assert "2 m" in page
    assert "4 m" in page  # the ends of one scale
    assert page.count("<img ") == 5
    assert "</span>sky</li>" in page
    assert "</span>tree</li>" not in page  # does not occur
    assert page.count("</span>ignored</li>") == 1  # grey, in the target
    assert page.count("</span>no value</li>") == 1  # grey, in both depth maps
    text = (tmp_path / "docs" / "results.md").read_text(encoding="utf-8")
    assert "As expected." in text
    assert "(../results/)" in text
    assert [path.name for path in out.iterdir() if path.is_file()] == ["index.html"]


def test_a_folder_of_panels_alone(tmp_path: Path) -> None:
    save_panels(tmp_path / "some")
    for folder in (tmp_path / "some", tmp_path / "some" / "panels"):
        report(folder, "--out", tmp_path / "out", "--title", "Rooms")
        page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
        assert "<title>Rooms</title>" in page
        assert "<table" not in page


def test_features_of_a_photo(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (50, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    options = ("--upsampler", "nearest", "--input-size", "32", "--out", tmp_path)
    report("--image", tmp_path / "photo.png", *options)
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 4
    for label in ("image", "low-res", "bilinear", "nearest"):
        assert f"features, one PCA basis for all of photo · vit_compact_patch16: {label}" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a.json": "{"}, "a.json"),
        ({"a.json": '{"task": 3}'}, "a.json is not a result"),
        ({}, "no results (*.json)"),
        ({"panels/a.npz": "text"}, "a.npz is not a panel"),
    ],
)
def test_bad_folders_leave_nothing_behind(
    tmp_path: Path, content: dict[str, str], message: str
) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    for name, text in content.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    options = ("--out", tmp_path / "out", "--markdown", tmp_path / "page.md")
    assert message in refused(folder, *options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results"]


def test_nothing_to_report(tmp_path: Path) -> None:
    assert "nothing to report" in refused("--out", tmp_path / "out")
    assert "no file or folder" in refused(tmp_path / "none", "--out", tmp_path / "out")
    save_results(tmp_path / "results")
    page = tmp_path / "out" / "index.html"
    report(tmp_path / "results", "--out", page.parent)
    before = page.read_bytes()
    refused(tmp_path / "results", "--image", tmp_path / "none.png", "--out", page.parent)
    assert page.read_bytes() == before  # the page of before is whole


@pytest.mark.parametrize("name", ["report/index.html", "docs/results.md"])
def test_only_own_pages_are_replaced(tmp_path: Path, name: str) -> None:
    save_results(tmp_path / "results")
    arguments = ("--out", tmp_path / "report", "--markdown", tmp_path / "docs" / "results.md")
    for _ in range(2):
        report(tmp_path / "results", *arguments)
    (tmp_path / name).write_text("mine")
    assert f"{name} is there already and was not written" in refused(
        tmp_path / "results", *arguments
    )
    assert (tmp_path / name).read_text() == "mine"
