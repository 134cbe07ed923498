"""Data that is not as it should be: one clear sentence each, and nothing is written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.data.test_nuscenes import write_sample
from tests.data.trees import write, write_image, write_label
from upfeat.cli.app import app

COMPACT = "upfeat/vit_compact_patch16"
TINY_CLIP = (
    "clip/ViT-B-16.openai(weights='random', vision={'layers': 1, 'width': 64}, "
    "text={'layers': 1, 'width': 32, 'heads': 2, 'context_length': 20})"
)


def labelled(root: Path, splits: tuple[str, ...] = ("train", "val")) -> Path:
    for split in splits:
        for name in "ab":
            write_image(root / split / "images" / f"{name}.png", size=(16, 16))
            write_label(root / split / "labels" / f"{name}.png", [0, 1], (16, 16))
    return root


def missing_split(root: Path) -> tuple[str, ...]:
    labelled(root, ("train",))
    return ("seg-probe", "--data", "folder")


def unknown_class(root: Path) -> tuple[str, ...]:
    labelled(root)
    (root / "classes.txt").write_text("road\ncar\n")
    write_label(root / "val" / "labels" / "b.png", [0, 7], (16, 16))
    return ("seg-probe", "--data", "folder")


def wrong_key_points(root: Path) -> tuple[str, ...]:
    for name in "ab":
        write_image(root / "images" / f"{name}.png", size=(16, 16))
    (root / "annotations").mkdir()
    (root / "annotations" / "a.json").write_text(json.dumps({"keypoints": {"nose": [3, 2]}}))
    (root / "annotations" / "b.json").write_text(json.dumps({"keypoints": {"nose": [3]}}))
    (root / "pairs.csv").write_text("source,target\na,b\n")
    return ("correspondence", "--data", "folder")


def no_calibration(root: Path) -> tuple[str, ...]:
    write_sample(root, without="CAM_BACK")
    return ("bev", "--data", "nuscenes_sample")


def half_a_calibration(root: Path) -> tuple[str, ...]:
    write_sample(root)
    content = json.loads((root / "sample.json").read_text())
    del content["cameras"]["CAM_BACK"]["intrinsics"]
    (root / "sample.json").write_text(json.dumps(content))
    return ("bev", "--data", "nuscenes_sample")


def an_empty_class(root: Path) -> tuple[str, ...]:
    pytest.importorskip("open_clip")
    labelled(root)
    (root / "words.txt").write_text("road\n\n")
    return ("open-vocabulary", "--data", "folder", "--set", f"words={root / 'words.txt'}")


def no_focal_length(root: Path) -> tuple[str, ...]:
    for split in ("train", "val"):
        write_image(root / split / "images" / "a.png", size=(16, 16))
        write(root / split / "depth" / "a.png", np.full((16, 16), 1500, np.uint16))
    return ("normals-probe", "--data", "folder")


@pytest.mark.parametrize(
    ("prepare", "sentence"),
    [
        (missing_split, "no folder {root}/val/images. Expected: "),
        (unknown_class, "labels/b.png holds class 7; classes.txt names classes 0 to 1, and 255"),
        (wrong_key_points, "the key point 'nose' of {root}/annotations/b.json is [3], expected"),
        (no_calibration, "sample.json has no calibration of CAM_BACK; all six cameras are needed"),
        (half_a_calibration, "no key frame: camera CAM_BACK: 'intrinsics' is missing"),
        (an_empty_class, "words.txt, line 2: class 1 has an empty word; write"),
        (no_focal_length, "which needs the focal length in pixels; write focal:"),
    ],
)
def test_bad_data_is_one_sentence(
    tmp_path: Path, prepare: Callable[[Path], tuple[str, ...]], sentence: str
) -> None:
    root = tmp_path / "set"
    task, *more = prepare(root)
    before = sorted(root.rglob("*"))
    backbone = TINY_CLIP if task == "open-vocabulary" else COMPACT
    line = ["eval", task, "--backbone", backbone, "--upsampler", "bilinear", "--root", str(root)]
    line += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache"), *more]
    outcome = CliRunner(env={"COLUMNS": "200", "UPFEAT_OFFLINE": "1"}).invoke(app, line)
    text = " ".join(outcome.output.split())
    assert outcome.exit_code == 2, text
    assert sentence.format(root=root) in text
    assert "Expected:" not in text or "train/images/NAME.jpg" in text
    assert "Traceback" not in text
    assert text.count("error:") == 1
    assert sorted(root.rglob("*")) == before
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "cache").exists()


def test_a_missing_part_of_a_known_set_shows_the_whole_tree(tmp_path: Path) -> None:
    root = labelled(tmp_path / "set", ("train",))
    shutil.rmtree(root / "train" / "labels")
    line = ["eval", "seg-probe", "--data", "msrc", "--root", str(root), "--backbone", COMPACT]
    outcome = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*line, "--upsampler", "bilinear"])
    assert outcome.exit_code == 2
    assert len(outcome.output.split("Expected:")[1].split("\n")) > 2
