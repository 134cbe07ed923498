"""Key frames as the networks read them: views of the cameras, calibration, motion, targets.

A view is the camera's image after scale, crop of the sky, zoom and rotation, with the intrinsics
that fit it. Pixel coordinates are continuous: an image covers ``[0, W] x [0, H]``, its first
pixel's centre is (0.5, 0.5).
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from upfeat.data.sets.nuscenes import DrivingData
from upfeat.evaluation.probes.bev.lifting import BevGrid, Cameras, draw_bev_motion
from upfeat.evaluation.probes.bev.targets import BevTargets, bottom_corners, draw_targets
from upfeat.ops.images import Size, resize_antialiased

Filter = Literal["nearest", "bilinear"]
Range = tuple[float, float]

SOURCE = (900, 1600)  # height and width of a camera image of nuScenes
ZOOM: Range = (0.95, 1.05)
ROTATION: Range = (-2.5, 2.5)  # degrees
SPREAD = 0.023  # of the scale, where a size has no entry below

VISIBLE = 2
"""The published filter: vehicles that are visible by 40 % and more."""
MOST_KEPT = 8  # frames whose views do not change


# -- views of a camera ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ViewSettings:
    """Size of the images, and the ranges that each camera draws from in training.

    Attributes:
        size: (H, W) before padding.
        scale: of a source of 1600 columns.
        kept: share of the rows that stays when the sky is cut off.
        padding: columns of zeros at each side, added after normalisation.
    """

    size: Size
    scale: Range
    kept: Range
    padding: int = 0

    @property
    def padded(self) -> Size:
        """(H, W) with the padding."""
        return self.size[0], self.size[1] + 2 * self.padding


VIEW_SETTINGS = {
    "224x480": ViewSettings((224, 480), (0.294, 0.308), (0.83, 0.83)),
    "448x800": ViewSettings((448, 800), (0.495, 0.505), (0.95, 1.0)),
    "640x1600": ViewSettings((640, 1600), (1.0, 1.0), (0.71, 1.0)),
    "224x490": ViewSettings((224, 490), (0.299, 0.3135), (0.8145, 0.8145)),
    "224x476": ViewSettings((224, 476), (0.2905, 0.3045), (0.8389, 0.8389)),
    "224x496pad": ViewSettings((224, 496), (0.303, 0.317), (0.8028, 0.8028), padding=4),
    "448x798": ViewSettings((448, 798), (0.494, 0.504), (0.95, 1.0)),
}
"""By size. The first three are PointBeV's; the others have sides that 14 divides, or padding."""


def view_settings(name: str) -> ViewSettings:
    """Return the settings of a size.

    Args:
        name: of ``VIEW_SETTINGS``, or any ``HxW``: columns are then kept, sky is cut to fit, and
            the scale varies by 2.3 %.

    Raises:
        ValueError: neither.
    """
    if name in VIEW_SETTINGS:
        return VIEW_SETTINGS[name]
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name)
    if match is None:
        raise ValueError(
            f"image_size must be HxW or one of {', '.join(VIEW_SETTINGS)}, got {name!r}"
        )
    height, width = int(match[1]), int(match[2])
    mean = width / SOURCE[1]
    rows = int(mean * SOURCE[0])
    kept = round(min(1.0, height / rows), 4)
    scale = (round(mean * (1 - SPREAD), 6), round(mean * (1 + SPREAD), 6))
    return ViewSettings((height, width), scale, (kept, kept))


class View(NamedTuple):
    """What one camera of one frame drew: scale, kept share of the rows, zoom, degrees."""

    scale: float
    kept: float
    zoom: float = 1.0
    rotation: float = 0.0

    @classmethod
    def usual(cls, settings: ViewSettings) -> "View":
        """Return the view of validation, the middle of the ranges."""
        return cls(sum(settings.scale) / 2, sum(settings.kept) / 2)

    @classmethod
    def draw(cls, settings: ViewSettings, generator: torch.Generator) -> "View":
        """Return a random view of training."""
        ranges = (settings.scale, settings.kept, ZOOM, ROTATION)
        drawn = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        return cls(
            *(low + (high - low) * at for (low, high), at in zip(ranges, drawn, strict=True))
        )


def view_affine(view: View, size: Size, source: Sequence[int] = SOURCE) -> Tensor:
    """Return the map (3, 3) from pixels of the source to pixels of the view, float64.

    Args:
        view: scale (of this source), crop, zoom and rotation.
        size: (H, W) of the view.
        source: (H, W) of the image.
    """
    (rows, columns), (height, width) = source, size
    new_rows, new_columns = int(rows * view.scale), int(columns * view.scale)
    cut = int((1 - view.kept) * new_rows)
    # The window of the scaled image that fills the view; a zoom in has positive margins.
    margins = (
        math.floor((new_rows - cut) * (1 - view.zoom) / 2),
        math.floor(new_columns * (1 - view.zoom) / 2),
    )
    stretch_y = height / (new_rows - cut + 2 * margins[0])
    stretch_x = width / (new_columns + 2 * margins[1])
    scaled = torch.eye(3, dtype=torch.float64)
    scaled[0, 0], scaled[1, 1] = view.scale * stretch_x, view.scale * stretch_y
    scaled[0, 2] = (width - columns * view.scale * stretch_x) / 2
    scaled[1, 2] = (height - (rows * view.scale + cut) * stretch_y) / 2
    angle = -math.radians(view.rotation)
    cos, sin = math.cos(angle), math.sin(angle)
    turned = torch.tensor([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]], dtype=torch.float64)
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    turned[:2, 2] = centre - turned[:2, :2] @ centre
    return turned @ scaled


def warp_image(image: Tensor, affine: Tensor, size: Size, filter: Filter = "nearest") -> Tensor:
    """Return the view of an image, 0 where it shows nothing of it.

    ``nearest`` takes the source pixel at each centre without antialiasing, as PointBeV's code does.
    ``bilinear`` scales the image with antialiasing first.

    Args:
        image: (3, H, W), float.
        affine: (3, 3) of :func:`view_affine`.
        size: (H', W').
        filter: of the pixels.
    """
    if filter == "bilinear":
        factors = affine[:2, :2].norm(dim=1)  # of x and y
        rows = max(1, round(image.shape[1] * float(factors[1])))
        columns = max(1, round(image.shape[2] * float(factors[0])))
        back = torch.tensor([image.shape[2] / columns, image.shape[1] / rows, 1.0]).double().diag()
        image, affine = resize_antialiased(image[None], (rows, columns))[0], affine @ back
    height, width = size
    centres = torch.ones(height, width, 3, dtype=torch.float64)
    centres[..., 0] = torch.arange(width) + 0.5
    centres[..., 1] = (torch.arange(height) + 0.5)[:, None]
    at = (centres @ affine.inverse().T)[..., :2]  # (H', W', 2) in pixels of the source
    rows, columns = image.shape[1:]
    if filter == "bilinear":
        relative = 2 * at / torch.tensor([columns, rows]).double() - 1
        return F.grid_sample(image[None], relative[None].to(image), align_corners=False)[0]
    column, row = at.floor().long().unbind(-1)
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    found = image[:, row.clamp(0, rows - 1), column.clamp(0, columns - 1)]  # (3, H', W')
    return found * inside.to(found)


def feature_intrinsics(
    intrinsics: Tensor, image_size: Size, feature_size: Size, skew: Literal["fixed", "released"]
) -> Tensor:
    """Return intrinsics for a feature map instead of the image it was computed from.

    Args:
        intrinsics: (..., 3, 3), camera to pixels of the image.
        image_size: (H, W).
        feature_size: (h, w).
        skew: ``fixed`` scales the whole rows; ``released`` leaves the two skew entries at the
            image's scale, as PointBeV's code does. They are 0 without a rotation.
    """
    factors = intrinsics.new_ones(3, 3)
    factors[0] = feature_size[1] / image_size[1]
    factors[1] = feature_size[0] / image_size[0]
    if skew == "released":
        factors[0, 1] = factors[1, 0] = 1
    return intrinsics * factors


# -- frames ---------------------------------------------------------------------------------------


class BevBatch(NamedTuple):
    """B frames.

    Attributes:
        images: (B, N, 3, H, W) in [0, 1].
        cameras: intrinsics for pixels of the padded image.
        motion: (B, 4, 4) of the grid, float32.
        targets: of all vehicles that are visible enough for the settings.
        visible: (B, 1, X, Y), 0 on vehicles that the published filter ignores.
    """

    images: Tensor
    cameras: Cameras
    motion: Tensor
    targets: BevTargets
    visible: Tensor

    def to(self, device: torch.device) -> "BevBatch":
        """Return the batch on a device."""
        return BevBatch(
            self.images.to(device),
            Cameras(*(part.to(device) for part in self.cameras)),
            self.motion.to(device),
            BevTargets(*(part.to(device) for part in self.targets)),
            self.visible.to(device),
        )


class BevFrames:
    """One split, ready for the networks.

    Args:
        data: the key frames.
        settings: of the views.
        grid: of the targets.
        min_visibility: of vehicles that count, 1 to 4.
        filter: of the images' pixels.
    """

    def __init__(
        self,
        data: DrivingData,
        settings: ViewSettings,
        grid: BevGrid,
        *,
        min_visibility: int = 1,
        filter: Filter = "nearest",
    ) -> None:
        self.data, self.settings, self.grid = data, settings, grid
        self.min_visibility, self.filter = min_visibility, filter
        self._kept: dict[int, BevBatch] = {}

    def __len__(self) -> int:
        return len(self.data)

    def load(self, index: int, generator: torch.Generator | None = None) -> BevBatch:
        """Return one frame.

        Args:
            index: of the frame.
            generator: of the random views and motion of training; None for the usual views and no
                motion.
        """
        if generator is None and index in self._kept:
            return self._kept[index]
        frame = self.data[index]
        motion = torch.eye(4).double() if generator is None else draw_bev_motion(generator)
        views, affines = [], []
        for image in frame.images:
            view = View.usual(self.settings)
            if generator is not None:
                view = View.draw(self.settings, generator)
            # The scale is that of a source of 1600 columns.
            view = view._replace(scale=view.scale * SOURCE[1] / image.shape[2])
            affine = view_affine(view, self.settings.size, image.shape[1:])
            views.append(warp_image(image, affine, self.settings.size, self.filter))
            affine[0] += self.settings.padding * affine.new_tensor([0, 0, 1])
            affines.append(affine)
        poses = torch.from_numpy(np.stack([camera.pose for camera in frame.file.cameras]))
        sensors = np.stack([camera.intrinsics for camera in frame.file.cameras])
        intrinsics = torch.stack(affines) @ torch.from_numpy(sensors)
        cameras = Cameras(
            *(part[None].float() for part in (poses[:, :3, :3], poses[:, :3, 3], intrinsics))
        )
        boxes = frame.file.boxes
        targets, seen = draw_targets(
            bottom_corners(boxes, frame.file.ego),
            boxes.visibility.tolist(),
            self.grid,
            min_visibility=self.min_visibility,
            motion=None if generator is None else motion.numpy(),
        )
        visible = (seen >= VISIBLE).float()[None, None]
        batch = BevBatch(torch.stack(views)[None], cameras, motion[None].float(), targets, visible)
        if generator is None and len(self.data) <= MOST_KEPT:
            self._kept[index] = batch
        return batch


def join_frames(frames: list[BevBatch]) -> BevBatch:
    """Return one batch of several frames."""
    if len(frames) == 1:
        return frames[0]
    return BevBatch(
        torch.cat([frame.images for frame in frames]),
        Cameras(*map(torch.cat, zip(*(frame.cameras for frame in frames), strict=True))),
        torch.cat([frame.motion for frame in frames]),
        BevTargets(*map(torch.cat, zip(*(frame.targets for frame in frames), strict=True))),
        torch.cat([frame.visible for frame in frames]),
    )
