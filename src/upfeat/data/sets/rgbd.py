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

from upfeat.data.images import read_image
from upfeat.data.layouts import Layout, PathLike, check_split, lay_on_image, read_numbers
from upfeat.data.surfaces import SurfaceData, SurfaceImage, normals_from_depth

__all__ = ["RgbdCrop", "RgbdData", "rgbd"]

# All chosen here: side of the crops, their strides and the frames that are scored.
SIDE = 240
STRIDES = {"train": 80, "test": 200}
TEST_FRAMES = (2, 4)

_LAYOUT = Layout(
    "an RGB-D folder",
    """
meta.json             of each scene: depth_scale, intrinsics (fx, fy, cx, cy)
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

    @property
    def has_normals(self) -> bool:
        """True: they are derived from depth."""
        return True

    def read(self, file: RgbdCrop) -> SurfaceImage:
        """Read a crop.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: one cannot be read, or image and depth differ in size.
        """
        image = read_image(file.image)
        stored = read_numbers(file.depth, "depth map", "with 16 bit of distance")
        stored = lay_on_image(stored, file.depth, file.image, image.shape[1:])
        depth = stored.float() / file.units_per_metre
        normals = normals_from_depth(depth, file.focal, file.center)
        rows = slice(file.top, file.top + SIDE)
        columns = slice(file.left, file.left + SIDE)
        return SurfaceImage(
            image[:, rows, columns], depth[rows, columns], normals[:, rows, columns]
        )

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

    Raises:
        FileNotFoundError: a folder, ``meta.json`` or all frames are missing; shows the tree.
        ValueError: the split is unknown, or the camera is incomplete.
    """
    check_split("this RGB-D folder", split, ("train", "test"))
    base = Path(root).expanduser()
    frames = sorted((base / scene).glob("*_color.jpg"))
    if not frames or not (base / "meta.json").is_file():
        problem = f"no {scene}/K_color.jpg" if not frames else "no meta.json"
        raise _LAYOUT.error(root, problem)
    scale, focal, center = _camera(base / "meta.json", scene)
    crops = []
    for number, image in enumerate(frames):
        if (number in TEST_FRAMES) != (split == "test"):
            continue
        size = read_image(image).shape[1:]
        depth = image.with_name(image.name.replace("_color.jpg", "_depth.png"))
        stride = STRIDES[split]
        for top in range(0, size[0] - SIDE + 1, stride):
            for left in range(0, size[1] - SIDE + 1, stride):
                name = f"{scene}/{image.stem}-{top}-{left}"
                crops.append(RgbdCrop(name, image, depth, top, left, scale, focal, center))
    if not crops:
        raise _LAYOUT.error(root, f"no frame for {split} in {scene}")
    return RgbdData(f"rgbd-{scene}/{split}", tuple(crops))


def _camera(path: Path, scene: str) -> tuple[float, tuple[float, float], tuple[float, float]]:
    """Return units a metre, (fx, |fy|) and (cx, cy)."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())[scene]
        camera = {name: float(record["intrinsics"][name]) for name in ("fx", "fy", "cx", "cy")}
        scale = float(record["depth_scale"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} says no complete camera of {scene}; expected depth_scale and intrinsics with "
            f"fx, fy, cx, cy: {type(error).__name__} {error}"
        ) from error
    if not (camera["fx"] > 0 and camera["fy"] and scale > 0):
        raise ValueError(f"{path} has an impossible camera of {scene}: {camera}, scale {scale}")
    return scale, (camera["fx"], abs(camera["fy"])), (camera["cx"], camera["cy"])
