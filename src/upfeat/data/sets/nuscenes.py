"""nuScenes: key frames of a car with six cameras, and vehicles as boxes.

Caesar et al.: "nuScenes: A multimodal dataset for autonomous driving", CVPR 2020, arXiv 1903.11027.
Non-commercial use. ``nuscenes`` reads the whole set through its devkit, ``nuscenes_sample`` a
single key frame from one JSON file.

Ego frame: x forward, y left, z up, origin on the ground below the rear axle. Camera frame: x right,
y down, z along the axis. Lengths are metres, poses (4, 4) map into the frame that they name last.
"""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet, Layout, PathLike, check_split, content_problem
from upfeat.data.surfaces import rotation_matrix
from upfeat.errors import import_optional

Array = npt.NDArray[np.float64]

CAMERAS = (
    "CAM_FRONT_LEFT",
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_BACK_LEFT",
    "CAM_BACK",
    "CAM_BACK_RIGHT",
)
"""Cameras of nuScenes, in the order in which they are read."""


class CameraFile(NamedTuple):
    """An image and its calibration."""

    name: str
    image: Path
    intrinsics: Array  # (3, 3), camera to pixels of the image
    pose: Array  # (4, 4), camera to ego


class Boxes(NamedTuple):
    """M vehicles in the global frame, in the order in which they are drawn."""

    centres: Array  # (M, 3)
    sizes: Array  # (M, 3), width, length, height
    rotations: Array  # (M, 3, 3); x of a box is its length
    visibility: npt.NDArray[np.int64]  # (M,), 1 (0 to 40 % visible) to 4 (80 to 100 %)


class DrivingFile(NamedTuple):
    """One key frame: where its images are, and what is known of it."""

    name: str
    cameras: tuple[CameraFile, ...]
    boxes: Boxes
    ego: Array  # (4, 4), ego to global


class DrivingFrame(NamedTuple):
    """The images of one key frame, each (3, H, W) in [0, 1], float32, in the cameras' order."""

    images: tuple[Tensor, ...]
    file: DrivingFile


@dataclass(frozen=True)
class DrivingData(FileSet[DrivingFile, DrivingFrame]):
    """One split of a driving set: calibration and boxes, images read when asked for."""

    name: str
    files: tuple[DrivingFile, ...]

    def read(self, file: DrivingFile) -> DrivingFrame:
        """Read the images of a frame."""
        return DrivingFrame(tuple(read_image(camera.image) for camera in file.cameras), file)

    def file_hash(self, file: DrivingFile) -> str:
        """Return 16 hexadecimal digits of images, calibration, boxes and pose."""
        digest = hashlib.blake2b(super().file_hash(file).encode(), digest_size=8)
        numbers = [file.ego, *file.boxes]
        numbers += [part for camera in file.cameras for part in (camera.intrinsics, camera.pose)]
        for array in numbers:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


# -- reading -------------------------------------------------------------------------------------

ADDRESS = "https://www.nuscenes.org/nuscenes"
SPLITS = ("train", "val")
VEHICLE = "vehicle"  # in the name of a category
REFERENCE = "LIDAR_TOP"  # whose ego pose is the frame's
SAMPLE_VEHICLES = (
    *("car", "truck", "trailer", "bus", "construction_vehicle"),
    *("bicycle", "motorcycle"),
)
VISIBLE = 4

_LAYOUT = Layout(
    "nuScenes",
    """
v1.0-trainval/*.json            tables (v1.0-mini for version="v1.0-mini")
samples/CAM_FRONT/*.jpg         images of the key frames, a folder for each of the six cameras
""",
    ADDRESS,
)
_SAMPLE_LAYOUT = Layout(
    "the nuScenes sample",
    """
sample.json       cameras with intrinsics and cam2ego, lidar2ego, ego2global, boxes, categories
CAM_FRONT.jpg     and the images of the other five cameras
""",
    ADDRESS,
)


def nuscenes(root: PathLike, split: str = "val", version: str = "v1.0-trainval") -> DrivingData:
    """List the key frames of a split, sorted by scene and time.

    Vehicles are the annotations whose category contains ``vehicle``. The motion of the car between
    the cameras' and the LiDAR's time stamps is ignored, as the published protocols do.

    Args:
        root: the folder that holds ``samples`` and the tables.
        split: ``train`` or ``val``, the devkit's lists of scenes.
        version: folder of the tables.
    """
    check_split("nuScenes", split, SPLITS)
    folder = Path(root).expanduser()
    if not (folder / version).is_dir():
        raise _LAYOUT.error(root, f"no folder {folder / version}")
    needed = ("nuscenes-devkit", "bev", "readers of nuScenes")
    devkit, splits = (
        import_optional(f"nuscenes.{name}", *needed) for name in ("nuscenes", "utils.splits")
    )
    with contextlib.redirect_stdout(io.StringIO()):  # the devkit announces its tables
        tables = devkit.NuScenes(version=version, dataroot=str(folder), verbose=False)
    lists = splits.create_splits_scenes()
    scenes = set(lists[f"mini_{split}" if version == "v1.0-mini" else split])
    kept = {scene["token"] for scene in tables.scene if scene["name"] in scenes}
    samples = [sample for sample in tables.sample if sample["scene_token"] in kept]
    samples.sort(key=lambda sample: (sample["scene_token"], sample["timestamp"]))
    if not samples:
        raise _LAYOUT.error(root, f"{version} holds no key frame of {split}")
    files = tuple(_key_frame(tables, sample, folder) for sample in samples)
    _LAYOUT.check_files(root, *(camera.image for camera in files[0].cameras))
    return DrivingData(f"nuscenes/{split}", files)


def _key_frame(tables: Any, sample: dict[str, Any], folder: Path) -> DrivingFile:
    cameras = []
    for name in (*CAMERAS, REFERENCE):
        if name not in sample["data"]:
            raise ValueError(f"the key frame {sample['token']} of {folder} has no {name}")
    for name in CAMERAS:
        data = tables.get("sample_data", sample["data"][name])
        sensor = tables.get("calibrated_sensor", data["calibrated_sensor_token"])
        intrinsics = np.array(sensor["camera_intrinsic"], np.float64)
        cameras.append(CameraFile(name, folder / data["filename"], intrinsics, _pose(sensor)))
    data = tables.get("sample_data", sample["data"][REFERENCE])
    found = [tables.get("sample_annotation", token) for token in sample["anns"]]
    found = [box for box in found if VEHICLE in box["category_name"]]
    boxes = Boxes(
        np.array([box["translation"] for box in found], np.float64).reshape(-1, 3),
        np.array([box["size"] for box in found], np.float64).reshape(-1, 3),
        np.array([_rotation(box["rotation"]) for box in found], np.float64).reshape(-1, 3, 3),
        np.array([int(box["visibility_token"]) for box in found], np.int64),
    )
    ego = _pose(tables.get("ego_pose", data["ego_pose_token"]))
    return DrivingFile(sample["token"], tuple(cameras), boxes, ego)


def _rotation(quaternion: Any) -> Array:
    """Return the matrix (3, 3) of a quaternion w, x, y, z."""
    return rotation_matrix((*quaternion[1:], quaternion[0]))


def _pose(record: dict[str, Any]) -> Array:
    """Return the pose (4, 4) of a record with a rotation and a translation."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = _rotation(record["rotation"]), record["translation"]
    return pose


def nuscenes_sample(root: PathLike, split: str = "val") -> DrivingData:
    """List the single key frame of a folder with ``sample.json``, whatever the split.

    Boxes are in the LiDAR frame, ``[x, y, z, length, width, height, yaw]`` with z at the centre;
    all vehicles count as visible, for the file does not say how visible they are.
    """
    check_split("the nuScenes sample", split, SPLITS)
    folder = Path(root).expanduser()
    path = folder / "sample.json"
    _SAMPLE_LAYOUT.check_files(root, path)
    try:
        content = json.loads(path.read_bytes())
        calibrations = dict(content["cameras"])
    except (ValueError, KeyError, TypeError) as error:
        raise _no_key_frame(path, error) from error
    lacking = [name for name in CAMERAS if name not in calibrations]
    if lacking:
        raise ValueError(
            f"{path} has no calibration of {', '.join(lacking)}; all six cameras are needed"
        )
    try:
        cameras = tuple(_sample_camera(name, calibrations[name], folder) for name in CAMERAS)
        ego = _matrix(content["ego2global"], 4)
        boxes = _sample_boxes(content, ego @ _matrix(content["lidar2ego"], 4))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _no_key_frame(path, error) from error
    _SAMPLE_LAYOUT.check_files(root, *(camera.image for camera in cameras))
    frame = DrivingFile("sample", cameras, boxes, ego)
    return DrivingData(f"nuscenes_sample/{split}", (frame,))


def _no_key_frame(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} describes no key frame: {content_problem(error)}")


def _sample_camera(name: str, record: dict[str, Any], folder: Path) -> CameraFile:
    try:
        intrinsics, pose = _matrix(record["intrinsics"], 3), _matrix(record["cam2ego"], 4)
        return CameraFile(name, folder / record["file"], intrinsics, pose)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"camera {name}: {content_problem(error)}") from error


def _matrix(rows: Any, side: int) -> Array:
    matrix = np.array(rows, np.float64)
    if matrix.shape != (side, side) or not np.isfinite(matrix).all():
        raise ValueError(f"expected a matrix of {side} x {side} finite numbers, got {rows}")
    return matrix


def _sample_boxes(content: dict[str, Any], lidar: Array) -> Boxes:
    names = content["categories"]
    found = [box["box"] for box in content["boxes"] if names[box["label"]] in SAMPLE_VEHICLES]
    numbers = np.array(found, np.float64).reshape(-1, 7)
    cos, sin, zero = np.cos(numbers[:, 6]), np.sin(numbers[:, 6]), np.zeros(len(numbers))
    turned = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, zero + 1], 1)
    return Boxes(
        numbers[:, :3] @ lidar[:3, :3].T + lidar[:3, 3],
        numbers[:, [4, 3, 5]],
        lidar[:3, :3] @ turned.reshape(-1, 3, 3),
        np.full(len(numbers), VISIBLE, np.int64),
    )
