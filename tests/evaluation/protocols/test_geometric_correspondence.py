"""Views of a made-up room: pairs of three sets, matches that are right, and shifted ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import upfeat
from tests.data.test_surfaces import make_navi, small_navi
from tests.data.trees import write
from upfeat.cli.app import app
from upfeat.data.view_pairs import view_pairs
from upfeat.evaluation.methods import LowRes, Method
from upfeat.evaluation.protocols.geometric_correspondence import (
    geometric_preset,
    run_geometric_correspondence,
)
from upfeat.evaluation.results import Result

__all__ = ["small_navi"]

SIZE, FOCAL, DEPTH = (32, 48), 40.0, 2.0
CAMERA = [[FOCAL, 0, 24], [0, FOCAL, 16], [0, 0, 1]]


def picture(seed: int = 0) -> np.ndarray:
    """Cells of 4 pixels of one colour each."""
    cells = np.random.default_rng(seed).integers(0, 256, (8, 12, 3)).astype(np.uint8)
    return cells.repeat(4, 0).repeat(4, 1)


def room(root: Path, shift: float = 0.0) -> Path:
    """Two frames that show the same; the second camera is said to be shifted to the right."""
    half = math.sin(math.radians(10) / 2)
    turned = [0.0, 0.0, 0.0, 0.0, 0.0, half, math.cos(math.radians(10) / 2)]
    poses = [[0, 0, 0, 0, 0, 0, 1], [shift, 0, 0, 0, 0, 0, 1], turned]
    for number in range(3):
        write(root / "hall" / f"{number}_color.jpg", picture(), quality=100, subsampling=0)
        write(root / "hall" / f"{number}_depth.png", np.full(SIZE, 1000 * DEPTH, np.uint16))
    intrinsics = {"fx": FOCAL, "fy": FOCAL, "cx": 24, "cy": 16}
    record = {"depth_scale": 1000, "intrinsics": intrinsics, "pose_tx_ty_tz_qx_qy_qz_qw": poses}
    (root / "meta.json").write_text(json.dumps({"hall": record}))
    return root


def run(root: Path, folder: Path, *methods: Method) -> list[Result]:
    pool = upfeat.CallableBackbone(torch.nn.AvgPool2d(4), dim=3, patch_size=4, name="pool")
    config = geometric_preset(
        "scannet", "rgbd", input_size=SIZE, grid=(8, 12), metres=(0.05, 0.2, 0.5), limit=1
    )
    places = {"out": folder / "results", "cache": folder / "cache"}
    data = view_pairs("rgbd", root)
    return run_geometric_correspondence(config, data, pool, methods, **places)


def test_the_same_view_matches_itself(tmp_path: Path) -> None:
    nearest = Method("nearest", upfeat.create_upsampler("nearest"))
    low, same = run(room(tmp_path / "set"), tmp_path, LowRes(), nearest)
    assert low.scores["recall_5cm"].mean == same.scores["recall_5cm"].mean == 100
    assert low.scores["recall_5px"].mean == 100
    assert low.details["matches"] == 8 * 12
    assert run(tmp_path / "set", tmp_path, LowRes()) == [low]


def test_a_wrong_pose_shows_in_metres_and_pixels(tmp_path: Path) -> None:
    """0.3 m at a depth of 2 m are 6 pixels of the picture, 1.5 of the reduced one."""
    (low,) = run(room(tmp_path / "set", 0.3), tmp_path, LowRes())
    assert low.scores["recall_20cm"].mean == 0
    assert low.scores["recall_50cm"].mean == 100
    assert low.scores["recall_5px"].mean == 100
    assert low.scores["angle_0_to_15"].mean == 100


def test_pairs_of_scannet(tmp_path: Path) -> None:
    scene = tmp_path / "scene0007_01"
    for number in (4, 9):
        write(scene / "color" / f"{number}.jpg", picture())
        write(scene / "depth" / f"{number}.png", np.full(SIZE, 1500, np.uint16))
        pose = np.eye(4)
        pose[0, 3] = number
        (scene / "pose").mkdir(exist_ok=True)
        np.savetxt(scene / "pose" / f"{number}.txt", pose)
    (scene / "intrinsic").mkdir()
    camera = np.eye(4)
    camera[:3, :3] = CAMERA
    np.savetxt(scene / "intrinsic" / "intrinsic_depth.txt", camera)
    with pytest.raises(FileNotFoundError, match=r"no test\.npz.*Expected:"):
        view_pairs("scannet", tmp_path)
    np.savez(tmp_path / "test.npz", name=np.array([[7, 1, 4, 9]]))
    (file,) = view_pairs("scannet", tmp_path).files
    pair = view_pairs("scannet", tmp_path)[0]
    assert file.name == "scene0007_01/4-9"
    assert pair.pose[:, 3].tolist() == [-5, 0, 0]
    assert pair.first.camera.tolist() == CAMERA
    assert pair.second.depth.unique().tolist() == [1.5]
    (scene / "pose" / "4.txt").write_text("1 2 3")
    with pytest.raises(ValueError, match=r"4\.txt must hold 4 x 4 finite numbers"):
        view_pairs("scannet", tmp_path)


def test_pairs_of_navi(tmp_path: Path, small_navi: None) -> None:
    """Partners of one object, turned by up to 120 degrees; the crop keeps the ray of a pixel."""
    path = make_navi(tmp_path) / "navi_v1/cup/wild_set/annotations.json"
    records = json.loads(path.read_text())
    for number, record in enumerate(records):
        angle = math.radians((0, 50, 175)[number])
        record["camera"]["q"] = [math.cos(angle / 2), 0, 0, math.sin(angle / 2)]
    path.write_text(json.dumps(records))
    upfeat.data.shrink_navi(tmp_path / "navi_v1")
    data = view_pairs("navi", tmp_path)
    (file,) = data.files  # of three images every fourth
    assert file.name == "cup/wild_set/000-001"  # the third is 175 degrees away
    pair = data[0]
    height, width = pair.first.depth.shape
    assert height == width == pair.first.image.shape[1]
    assert pair.first.camera[0, 2] == pair.first.camera[1, 2] == pytest.approx(width / 2, abs=1)
    torch.testing.assert_close(pair.pose[:, 3], torch.tensor([0.0, 0.0, 0.0]), atol=1, rtol=0)


def test_command_and_what_is_refused(tmp_path: Path) -> None:
    root = room(tmp_path / "set")
    line = ["eval", "geometric-correspondence", "--data", "rgbd", "--root", str(root)]
    line += ["--backbone", "upfeat/vit_compact_patch16", "--upsampler", "low-res"]
    line += ["--preset", "scannet", "--set", "input_size=[32, 48]", "--set", "grid=[8, 12]"]
    line += ["--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, line)
    assert done.exit_code == 0, done.output
    assert "recall at 2 cm, % ↑" in done.output
    meta = json.loads((root / "meta.json").read_text())
    del meta["hall"]["intrinsics"]["fx"]
    (root / "meta.json").write_text(json.dumps(meta))
    done = CliRunner(env={"COLUMNS": "300"}).invoke(app, [*line[:-4], "--out", str(tmp_path / "b")])
    assert done.exit_code == 2
    assert "says no complete camera of hall" in " ".join(done.output.split())
    assert not (tmp_path / "b").exists()
