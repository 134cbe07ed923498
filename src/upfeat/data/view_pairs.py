"""Pairs of posed views with depth: NAVI, ScanNet, and the scenes of an RGB-D folder.

Points are in a camera's frame; a pose (4, 4) takes those of the first view to the second.

Legend: ``H W`` image.
"""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from upfeat.data.depth import read_depth
from upfeat.data.layouts import FileSet, Layout, PathLike, check_split
from upfeat.data.sets.navi import EVERY, NaviData, NaviFile, navi
from upfeat.data.sets.rgbd import RGBD_LAYOUT, depth_file, read_camera
from upfeat.data.surfaces import rotation_matrix, square_around

LARGEST_ANGLE = 120.0  # degrees between two views of NAVI
ROOM_ANGLE = 60.0  # between two frames of a room; farther ones show different walls (chosen here)
PAIR_SEED = 8

_SCANNET = Layout(
    "ScanNet's pairs",
    """
test.npz                               name (N, 4): scene, part, number of both frames
SCENE_PART/color/K.jpg                 640 x 480
SCENE_PART/depth/K.png                 16 bit, millimetres
SCENE_PART/pose/K.txt                  4 x 4, camera to world
SCENE_PART/intrinsic/intrinsic_depth.txt
""",
)


class PosedView(NamedTuple):
    """A picture (3, H, W) in [0, 1], depth (H, W) in metres, 0 = missing, and K (3, 3)."""

    image: Tensor
    depth: Tensor
    camera: Tensor


class ViewPair(NamedTuple):
    """Two views, and the pose (3, 4) that takes points of the first to the second's frame."""

    first: PosedView
    second: PosedView
    pose: Tensor


class ViewFile(NamedTuple):
    """Files of a view, units a metre of its depth, K and the pose world to camera as tuples."""

    image: Path
    depth: Path
    units_per_metre: float
    camera: tuple[float, ...]
    pose: tuple[float, ...]


class ViewPairFile(NamedTuple):
    """A pair: its name, both views, and the pose (12 numbers) of the first to the second."""

    name: str
    first: Any
    second: Any
    pose: tuple[float, ...]


@dataclass(frozen=True)
class ViewPairs(FileSet[ViewPairFile, ViewPair]):
    """Pairs of views, which ``view`` reads when they are asked for."""

    name: str
    files: tuple[ViewPairFile, ...]
    view: "Callable[[Any], PosedView]"

    def read(self, file: ViewPairFile) -> ViewPair:
        """Read both views."""
        pose = torch.tensor(file.pose).view(3, 4)
        return ViewPair(self.view(file.first), self.view(file.second), pose)

    def paths(self, file: ViewPairFile) -> Sequence[Path]:
        """Return images and depth maps."""
        return (file.first.image, file.first.depth, file.second.image, file.second.depth)

    def settings(self) -> str:
        """Return the pairs and their poses."""
        return repr([(file.name, file.pose) for file in self.files])


def view_pairs(data: str, root: PathLike) -> ViewPairs:
    """List the pairs of a set that Probe3D (arXiv 2404.08636) or we score.

    Args:
        data: ``navi`` (an image of the wild sets, every fourth kept, with another one of its
            object, up to 120 degrees apart), ``scannet`` (the 1,500 pairs of SuperGlue's list), or
            ``rgbd`` (all pairs of a scene's frames, up to 60 degrees apart).
        root: folder of the set; for ``rgbd`` that of the scenes, or one scene in it.
    """
    check_split("view_pairs", data, tuple(_READERS))
    return _READERS[data](Path(root).expanduser())


# -- reading -------------------------------------------------------------------------------------


def _frame(file: ViewFile) -> PosedView:
    image, depth = read_depth(file.image, file.depth, file.units_per_metre)
    return PosedView(image, depth, torch.tensor(file.camera).view(3, 3))


def _navi(root: Path) -> ViewPairs:
    data = navi(root, "test", every=1)
    files = tuple(_navi_pairs(data))
    return ViewPairs("navi-pairs/test", files[::EVERY], lambda file: _navi_view(data, file))


def _navi_pairs(data: NaviData) -> Iterator[ViewPairFile]:
    """Draw a partner for each image; images without one are left out."""
    draw = random.Random(PAIR_SEED)
    poses = {file.name: _navi_pose(file) for file in data.files}
    for file in data.files:
        scene = file.annotations
        fitting = [
            other
            for other in data.files
            if other.annotations == scene
            and other.name != file.name
            and 0 < _angle(_between(poses[file.name], poses[other.name])) <= LARGEST_ANGLE
        ]
        if fitting:
            other = draw.choice(fitting)
            pose = _between(poses[file.name], poses[other.name])
            yield _pair(f"{file.name}-{Path(other.name).name}", file, other, pose)


def _navi_pose(file: NaviFile) -> np.ndarray:
    w, x, y, z = file.quaternion
    pose = _pose((x, y, z, w), file.translation)
    pose[:3, 3] /= 1000
    return pose


def _navi_view(data: NaviData, file: NaviFile) -> PosedView:
    """Return the square crop around the object."""
    frame = data.frame(file)
    rows, columns = square_around(frame.depth)
    middle = frame.depth.shape[0] / 2
    across, down = middle - columns.start, middle - rows.start
    camera = torch.tensor([[frame.focal, 0, across], [0, frame.focal, down], [0, 0, 1]])
    return PosedView(frame.image[:, rows, columns], frame.depth[rows, columns], camera)


def _scannet(root: Path) -> ViewPairs:
    listed = root / "test.npz"
    if not listed.is_file():
        raise _SCANNET.error(root, "no test.npz")
    try:
        rows = np.load(listed, allow_pickle=False)["name"]
        names = [tuple(map(int, row)) for row in rows]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(
            f"{listed} must hold name (N, 4): scene, part and two frames; {error}"
        ) from error
    files = []
    for scene, part, *frames in names:
        folder = root / f"scene{scene:04d}_{part:02d}"
        first, second = (_scannet_view(folder, frame) for frame in frames)
        name = f"{folder.name}/{frames[0]}-{frames[1]}"
        files.append(_pair(name, first, second, _relative(first, second)))
    return ViewPairs("scannet-pairs/test", tuple(files), _frame)


def _scannet_view(folder: Path, frame: int) -> ViewFile:
    camera = _numbers(folder / "intrinsic" / "intrinsic_depth.txt")[:3, :3]
    world = np.linalg.inv(_numbers(folder / "pose" / f"{frame}.txt"))
    return ViewFile(
        folder / "color" / f"{frame}.jpg",
        folder / "depth" / f"{frame}.png",
        1000.0,
        tuple(camera.flatten().tolist()),
        tuple(world.flatten().tolist()),
    )


def _numbers(path: Path) -> np.ndarray:
    """Read 4 x 4 numbers."""
    try:
        found = np.loadtxt(path)
        if found.shape != (4, 4) or not np.isfinite(found).all():
            raise ValueError(f"it holds {found.shape} numbers")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no file at {path}; every view needs one") from error
    except ValueError as error:
        raise ValueError(f"{path} must hold 4 x 4 finite numbers; {error}") from error
    return found


def _rgbd(root: Path) -> ViewPairs:
    """List all pairs of frames of the scenes whose poses are known."""
    one = root.name if (root.parent / "meta.json").is_file() else None
    base = root if one is None else root.parent
    meta = base / "meta.json"
    if not meta.is_file():
        raise RGBD_LAYOUT.error(root, "no meta.json")
    files = []
    for scene, record in json.loads(meta.read_text()).items():
        if one not in (None, scene) or not isinstance(record, dict):
            continue
        views = _rgbd_views(base / scene, meta)
        for i, j in combinations(range(len(views)), 2):
            pose = _relative(views[i], views[j])
            if _angle(pose) <= ROOM_ANGLE:
                files.append(_pair(f"{scene}/{i}-{j}", views[i], views[j], pose))
    if not files:
        raise RGBD_LAYOUT.error(root, "no scene with two frames and their poses")
    return ViewPairs(f"rgbd-pairs/{one or 'all'}", tuple(files), _frame)


def _rgbd_views(folder: Path, meta: Path) -> list[ViewFile]:
    fx, fy, cx, cy, scale, poses = read_camera(meta, folder.name)
    images = sorted(folder.glob("*_color.jpg"))
    if poses and len(poses) != len(images):
        raise ValueError(f"{meta}: {folder.name} has {len(images)} frames and {len(poses)} poses")
    camera = (fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0)
    views = []
    for image, pose in zip(images, poses, strict=False):
        world = np.linalg.inv(_pose(pose[3:], pose[:3]))
        pose = tuple(world.flatten().tolist())
        views.append(ViewFile(image, depth_file(image), scale, camera, pose))
    return views


_READERS: dict[str, Callable[[Path], ViewPairs]] = {
    "navi": _navi,
    "scannet": _scannet,
    "rgbd": _rgbd,
}


# -- poses ---------------------------------------------------------------------------------------


def _pose(quaternion: Sequence[float], shift: Sequence[float]) -> np.ndarray:
    """Return (4, 4) of a quaternion (x, y, z, w) and a shift."""
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation_matrix(quaternion), shift
    return pose


def _between(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the pose of the first camera to the second, of two poses world to camera."""
    return second @ np.linalg.inv(first)


def _relative(first: ViewFile, second: ViewFile) -> np.ndarray:
    return _between(*(np.array(view.pose).reshape(4, 4) for view in (first, second)))


def _angle(pose: np.ndarray) -> float:
    return float(np.degrees(np.arccos(np.clip((np.trace(pose[:3, :3]) - 1) / 2, -1, 1))))


def _pair(name: str, first: Any, second: Any, pose: np.ndarray) -> ViewPairFile:
    return ViewPairFile(name, first, second, tuple(pose[:3].flatten().tolist()))
