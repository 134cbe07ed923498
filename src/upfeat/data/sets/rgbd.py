"""Frames of an RGB-D camera with known intrinsics, and crops of them with depth and normals.

The layout is that of a small folder of scenes: rendered or recorded frames and one ``meta.json``.
Crops overlap and all frames of a scene show one room, so scores compare methods on the same
pictures; they say nothing about other rooms.

Legend: ``H W`` image.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from upfeat.data.depth import read_depth
from upfeat.data.images import read_image
from upfeat.data.layouts import Layout, PathLike, check_split
from upfeat.data.surfaces import SurfaceData, SurfaceImage, normals_from_depth

# All chosen here: side of the crops, their strides and the frames that are scored.
SIDE = 240
STRIDES = {"train": 80, "test": 200}
TEST_FRAMES = (2, 4)

RGBD_LAYOUT = Layout(
    "an RGB-D folder",
    """
meta.json             of each scene: depth_scale, intrinsics (fx, fy, cx, cy); for pairs of views
                      pose_tx_ty_tz_qx_qy_qz_qw (camera to world), seven numbers a frame
SCENE/K_color.jpg     K = 0, 1, ...
SCENE/K_depth.png     16 bit: metres = value / depth_scale, 0 = missing
""",
)


class RgbdCrop(NamedTuple):
    """A square crop of a frame, and the frame's camera."""

    name: str
    image: Path
    depth: Path
    top: int
    left: int
    units_per_metre: float
    focal: tuple[float, float]
    center: tuple[float, float]


@dataclass(frozen=True)
class RgbdData(SurfaceData[RgbdCrop]):
    """Crops of the frames of a scene; normals are derived from the whole frame's depth."""

    name: str
    files: tuple[RgbdCrop, ...]

    def read(self, file: RgbdCrop) -> SurfaceImage:
        """Read a crop."""
        image, depth = read_depth(file.image, file.depth, file.units_per_metre)
        normals = normals_from_depth(depth, file.focal, file.center)
        rows = slice(file.top, file.top + SIDE)
        columns = slice(file.left, file.left + SIDE)
        return SurfaceImage(image, depth, normals).cut(rows, columns)

    def settings(self) -> str:
        """Return crops and cameras."""
        return repr([(crop.name, *crop[3:]) for crop in self.files])


def rgbd(
    root: PathLike, split: Literal["train", "test"] = "train", scene: str = "livingroom"
) -> RgbdData:
    """List square crops of the frames of a scene: the third and fifth frame are ``test``.

    A negative focal length ``fy`` says that the origin's y axis points up; its sign is dropped, so
    that normals are in the frame of :mod:`upfeat.data.surfaces`.

    Args:
        root: the folder of the scenes.
        split: ``train`` or ``test``; the split is ours.
        scene: name of its folder.
    """
    check_split("this RGB-D folder", split, ("train", "test"))
    base = Path(root).expanduser()
    frames = sorted((base / scene).glob("*_color.jpg"))
    if not frames or not (base / "meta.json").is_file():
        problem = f"no {scene}/K_color.jpg" if not frames else "no meta.json"
        raise RGBD_LAYOUT.error(root, problem)
    camera = read_camera(base / "meta.json", scene)
    focal, center = (camera.fx, abs(camera.fy)), (camera.cx, camera.cy)
    if not (focal[0] > 0 and focal[1] > 0 and camera.scale > 0):
        raise ValueError(f"{base / 'meta.json'} has an impossible camera of {scene}: {camera}")
    crops = []
    for number, image in enumerate(frames):
        if (number in TEST_FRAMES) != (split == "test"):
            continue
        size = read_image(image).shape[1:]
        depth = depth_file(image)
        stride = STRIDES[split]
        for top in range(0, size[0] - SIDE + 1, stride):
            for left in range(0, size[1] - SIDE + 1, stride):
                name = f"{scene}/{image.stem}-{top}-{left}"
                crops.append(RgbdCrop(name, image, depth, top, left, camera.scale, focal, center))
    if not crops:
        raise RGBD_LAYOUT.error(root, f"no frame for {split} in {scene}")
    return RgbdData(f"rgbd-{scene}/{split}", tuple(crops))


class RgbdCamera(NamedTuple):
    """Focal lengths and principal point in pixels, depth units a metre, poses of the frames."""

    fx: float
    fy: float
    cx: float
    cy: float
    scale: float
    poses: tuple[tuple[float, ...], ...]


def read_camera(meta: Path, scene: str) -> RgbdCamera:
    """Return what ``meta.json`` says of a scene; ``ValueError`` if it lacks the camera."""
    try:
        record: dict[str, Any] = json.loads(meta.read_text())[scene]
        fx, fy, cx, cy = (float(record["intrinsics"][name]) for name in ("fx", "fy", "cx", "cy"))
        poses = record.get("pose_tx_ty_tz_qx_qy_qz_qw", ())
        if any(len(pose) != 7 for pose in poses):
            raise ValueError("a pose has another number")
        poses = tuple(tuple(map(float, pose)) for pose in poses)
        return RgbdCamera(fx, fy, cx, cy, float(record["depth_scale"]), poses)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{meta} says no complete camera of {scene}; expected depth_scale, intrinsics with "
            f"fx, fy, cx, cy, and poses of seven numbers: {type(error).__name__} {error}"
        ) from error


def depth_file(image: Path) -> Path:
    """Return the depth map of a frame ``K_color.jpg``."""
    return image.with_name(image.name.replace("_color.jpg", "_depth.png"))
