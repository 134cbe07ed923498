"""Key frames of a car: nuScenes through a stand-in of its devkit, and one JSON file."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data.trees import write_image
from upfeat.data import nuscenes, nuscenes_sample
from upfeat.data.sets.nuscenes import CAMERAS
from upfeat.errors import MissingPackageError

INTRINSICS = [[4.0, 0, 3], [0, 4, 2], [0, 0, 1]]
YAWS = dict(zip(CAMERAS, (55, 0, -55, 110, 180, -110), strict=True))


def looking(yaw: float) -> list[list[float]]:
    """The pose of a camera 1.5 m above the ground; its axis is turned to the left by degrees."""
    cos, sin = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    return [[sin, 0, cos, 0], [-cos, 0, sin, 0], [0, -1, 0, 1.5], [0, 0, 0, 1]]


def write_sample(root: Path, *, without: str = "") -> Path:
    """A car ahead of an ego pose 5 m along x; the LiDAR sits 1 m above it, turned to the left."""
    lidar = [[0.0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 1]]
    pose = np.eye(4)
    pose[0, 3] = 5
    content = {
        "categories": ["car", "pedestrian"],
        "ego2global": pose.tolist(),
        "lidar2ego": lidar,
        "cameras": {
            name: {"file": f"{name}.jpg", "intrinsics": INTRINSICS, "cam2ego": looking(YAWS[name])}
            for name in CAMERAS
            if name != without
        },
        "boxes": [
            {"label": 0, "box": [0.0, -10.0, 0.0, 4.0, 2.0, 1.5, 0.0]},
            {"label": 1, "box": [0.0, -3.0, 0.0, 1.0, 1.0, 1.5, 0.0]},
        ],
    }
    for name in CAMERAS:
        write_image(root / f"{name}.jpg")
    (root / "sample.json").write_text(json.dumps(content))
    return root


def test_sample_is_in_the_global_frame(tmp_path: Path) -> None:
    data = nuscenes_sample(write_sample(tmp_path))
    assert (data.name, len(data)) == ("nuscenes_sample/val", 1)
    frame = data[0]
    assert [camera.name for camera in frame.file.cameras] == list(CAMERAS)
    assert frame.images[0].shape == (3, 4, 6)
    boxes = frame.file.boxes
    np.testing.assert_allclose(boxes.centres, [[15.0, 0.0, 1.0]])
    np.testing.assert_allclose(boxes.sizes, [[2.0, 4.0, 1.5]])
    np.testing.assert_allclose(boxes.rotations[0, :, 0], [0, 1, 0], atol=1e-12)
    assert boxes.visibility.tolist() == [4]


def test_fingerprint_covers_calibration(tmp_path: Path) -> None:
    before = nuscenes_sample(write_sample(tmp_path)).fingerprint()
    assert before == nuscenes_sample(tmp_path).fingerprint()
    path = tmp_path / "sample.json"
    path.write_text(path.read_text().replace("4.0, 0, 3", "5.0, 0, 3", 1))
    assert before != nuscenes_sample(tmp_path).fingerprint()


def test_sample_without_a_camera_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no calibration of CAM_BACK; all six cameras are needed"):
        nuscenes_sample(write_sample(tmp_path, without="CAM_BACK"))


@pytest.mark.parametrize("text", ["[]", "{", '{"cameras": 3}'])
def test_broken_samples_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "sample.json").write_text(text)
    with pytest.raises(ValueError, match=r"sample\.json"):
        nuscenes_sample(tmp_path)


def test_missing_files_show_the_tree(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*sample\.json"):
        nuscenes_sample(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no folder .*v1\.0-trainval(.|\n)*nuscenes\.org"):
        nuscenes(tmp_path)
    with pytest.raises(ValueError, match="splits train and val"):
        nuscenes(tmp_path, "test")


# -- the whole set --------------------------------------------------------------------------------


class StandIn:
    """The devkit's tables with two scenes, of one key frame each."""

    def __init__(self, version: str, dataroot: str, verbose: bool) -> None:
        self.scene = [{"token": f"s{i}", "name": f"scene-{i}"} for i in (1, 2)]
        channels = (*CAMERAS, "LIDAR_TOP")
        self.sample = [
            {
                "token": f"frame{i}{time}",
                "scene_token": f"s{i}",
                "timestamp": time,
                "data": {name: f"{name}{i}{time}" for name in channels},
                "anns": ["car", "person"],
            }
            for i in (2, 1)
            for time in (7, 3)
        ]

    def get(self, table: str, token: str) -> dict[str, Any]:
        turned = [np.sqrt(0.5), 0, 0, np.sqrt(0.5)]  # a quarter to the left
        if table == "sample_data":
            name = f"samples/{token}.jpg"
            return {"calibrated_sensor_token": "", "ego_pose_token": "", "filename": name}
        if table == "sample_annotation":
            name = {"car": "vehicle.car", "person": "human.pedestrian.adult"}[token]
            place = {"translation": [1, 2, 3], "size": [2, 4, 1], "rotation": turned}
            return {"category_name": name, "visibility_token": "2"} | place
        pose = {"rotation": turned, "translation": [1, 2, 0]}
        return pose | {"camera_intrinsic": INTRINSICS}


@pytest.fixture
def devkit(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    tables, splits = types.ModuleType("nuscenes.nuscenes"), types.ModuleType("splits")
    vars(tables)["NuScenes"] = StandIn
    vars(splits)["create_splits_scenes"] = lambda: {"train": ["scene-2"], "val": ["scene-1"]}
    for name, module in (
        ("nuscenes", types.ModuleType("nuscenes")),
        ("nuscenes.nuscenes", tables),
        ("nuscenes.utils", types.ModuleType("nuscenes.utils")),
        ("nuscenes.utils.splits", splits),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return StandIn


def test_key_frames_come_by_scene_and_time(tmp_path: Path, devkit: type[StandIn]) -> None:
    (tmp_path / "v1.0-trainval").mkdir()
    for name in CAMERAS:
        for time in (3, 7):
            write_image(tmp_path / "samples" / f"{name}1{time}.jpg")
    data = nuscenes(tmp_path, "val")
    assert [file.name for file in data.files] == ["frame13", "frame17"]
    file = data.files[0]
    np.testing.assert_allclose(file.cameras[0].pose[:3, 0], [0, 1, 0], atol=1e-12)
    np.testing.assert_allclose(file.ego[:3, 3], [1, 2, 0])
    assert len(file.boxes.centres) == 1
    assert file.boxes.visibility.tolist() == [2]
    assert data[0].images[0].shape == (3, 4, 6)


def test_a_key_frame_without_a_camera_is_refused(
    tmp_path: Path, devkit: type[StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "v1.0-trainval").mkdir()
    monkeypatch.setattr("upfeat.data.sets.nuscenes.REFERENCE", "RADAR_FRONT")
    with pytest.raises(ValueError, match=r"frame13 .* has no RADAR_FRONT"):
        nuscenes(tmp_path, "val")


def test_the_devkit_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v1.0-trainval").mkdir()
    monkeypatch.setitem(sys.modules, "nuscenes.nuscenes", None)
    with pytest.raises(MissingPackageError, match=r"upfeat\[bev\]"):
        nuscenes(tmp_path, "val")
