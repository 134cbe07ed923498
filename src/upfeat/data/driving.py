"""Frames of a car with cameras all around: what the loaders of driving sets give.

Ego frame: x forward, y left, z up, origin on the ground below the rear axle. Camera frame: x right,
y down, z along the axis. Lengths are metres, poses (4, 4) map into the frame that they name last.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from upfeat.data.images import read_image
from upfeat.data.layouts import FileSet

__all__ = ["CAMERAS", "Boxes", "CameraFile", "DrivingData", "DrivingFile", "DrivingFrame"]

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
    """An image and its calibration.

    Attributes:
        name: such as ``CAM_FRONT``.
        image: its file.
        intrinsics: (3, 3), camera to pixels of the image.
        pose: (4, 4), camera to ego.
    """

    name: str
    image: Path
    intrinsics: Array
    pose: Array


class Boxes(NamedTuple):
    """M vehicles in the global frame, in the order in which they are drawn.

    Attributes:
        centres: (M, 3).
        sizes: (M, 3), width, length, height.
        rotations: (M, 3, 3); x of a box is its length.
        visibility: (M,), 1 (0 to 40 % visible in the cameras) to 4 (80 to 100 %).
    """

    centres: Array
    sizes: Array
    rotations: Array
    visibility: npt.NDArray[np.int64]


class DrivingFile(NamedTuple):
    """One key frame: where its images are, and what is known of it."""

    name: str
    cameras: tuple[CameraFile, ...]
    boxes: Boxes
    ego: Array
    """(4, 4), ego to global."""


class DrivingFrame(NamedTuple):
    """The images of one key frame, each (3, H, W) in [0, 1], float32, in the cameras' order."""

    images: tuple[Tensor, ...]
    file: DrivingFile


@dataclass(frozen=True)
class DrivingData(FileSet[DrivingFile, DrivingFrame]):
    """One split of a driving set: calibration and boxes, images read when asked for.

    Attributes:
        name: of the set and split, such as ``"nuscenes/val"``.
        files: the key frames, in a fixed order.
    """

    name: str
    files: tuple[DrivingFile, ...]

    def read(self, file: DrivingFile) -> DrivingFrame:
        """Read the images of a frame.

        Raises:
            FileNotFoundError: an image is missing.
            ValueError: one cannot be read.
        """
        return DrivingFrame(tuple(read_image(camera.image) for camera in file.cameras), file)

    def paths(self, file: DrivingFile) -> Sequence[Path]:
        """Return the images."""
        return [camera.image for camera in file.cameras]

    def file_hash(self, file: DrivingFile) -> str:
        """Return 16 hexadecimal digits of images, calibration, boxes and pose."""
        digest = hashlib.blake2b(super().file_hash(file).encode(), digest_size=8)
        numbers = [file.ego, *file.boxes]
        numbers += [part for camera in file.cameras for part in (camera.intrinsics, camera.pose)]
        for array in numbers:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()
